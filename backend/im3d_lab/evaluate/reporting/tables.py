"""The numbers of an evaluation, summed up: what the columns are, and mean, spread and worst case of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """One number of a row.

    Attributes:
        path: Keys into the row, dotted.
        title: With its unit.
        digits: After the point.
        better: +1 when more is better, −1 when less is, 0 when neither.
        factor: Multiplies the stored value.
    """

    path: str
    title: str
    digits: int
    better: int
    factor: float = 1.0

    def value(self, row: Row) -> float | None:
        """The number, in the title's unit, or None where the row has none."""
        found: Any = row
        for key in self.path.split("."):
            found = found.get(key) if isinstance(found, dict) else None
        return None if found is None else float(found) * self.factor

    def text(self, value: float | None) -> str:
        return "n/a" if value is None else f"{value:.{self.digits}f}"


def _pictures(group: str) -> tuple[Column, ...]:
    return (
        Column(f"{group}.psnr", "PSNR (dB)", 1, 1),
        Column(f"{group}.psnr_object", "PSNR on the object (dB)", 1, 1),
        Column(f"{group}.ssim", "SSIM", 3, 1),
        Column(f"{group}.lpips", "perceptual distance", 3, -1),
        Column(f"{group}.iou", "mask IoU", 3, 1),
        Column(f"{group}.worst_psnr", "worst view (dB)", 1, 1),
        Column(f"{group}.clip_image", "CLIP to the input", 1, 1),
        Column(f"{group}.clip_text", "CLIP to the name", 1, 1),
    )


TABLES: dict[str, tuple[Column, ...]] = {
    "Views of the orbit, against the true ones": _pictures("views"),
    "Splats, from new cameras": _pictures("splats"),
    "Finished mesh, from new cameras": _pictures("mesh"),
    "Surface of the mesh": (
        Column("surface.chamfer", "Chamfer distance (%)", 2, -1, 100),
        Column("surface.accuracy", "mesh → truth (%)", 2, -1, 100),
        Column("surface.completeness", "truth → mesh (%)", 2, -1, 100),
        Column("surface.fscore", "F-score at 1 %", 3, 1),
        Column("surface.normal_consistency", "normal consistency", 3, 1),
    ),
    "Agreement of odd and even views": (
        Column("consistency.psnr", "PSNR (dB)", 1, 1),
        Column("consistency.ssim", "SSIM", 3, 1),
        Column("consistency.lpips", "perceptual distance", 3, -1),
    ),
    "Agreement of odd and even views, fitted with the losses under test": (
        Column("fit_consistency.psnr", "PSNR (dB)", 1, 1),
        Column("fit_consistency.ssim", "SSIM", 3, 1),
        Column("fit_consistency.lpips", "perceptual distance", 3, -1),
    ),
    "Splats and a radiance field fitted to the same views, from new cameras (paper, Table 2)": tuple(
        Column(f"representation.{name}_{key}", f"{title}: {metric}", digits, better)
        for key, metric, digits, better in (
            ("psnr", "PSNR (dB)", 1, 1),
            ("psnr_object", "PSNR on the object (dB)", 1, 1),
            ("ssim", "SSIM", 3, 1),
            ("lpips", "perceptual distance", 3, -1),
            ("iou", "mask IoU", 3, 1),
            ("seconds", "seconds of the fit", 1, -1),
        )
        for name, title in (("splats", "splats"), ("field", "radiance field"))
    ),
    "Elevation of the orbit": (
        Column("elevation.error_deg", "error (°)", 1, -1),
        Column("elevation.confidence", "reported confidence", 2, 0),
    ),
    "The mesh as a mesh": (
        Column("mesh_stats.watertight", "watertight", 2, 1),
        Column("mesh_stats.components", "components", 1, 0),
        Column("mesh_stats.faces", "faces", 0, 0),
        Column("mesh_stats.genus", "genus", 1, 0),
    ),
    "Cost": (
        Column("timings_s.total", "seconds", 1, -1),
        Column("timings_s.fit", "fit (s)", 1, -1),
        Column("timings_s.mesh", "mesh (s)", 1, -1),
        Column("timings_s.texture", "texture (s)", 1, -1),
        Column("timings_s.export", "export (s)", 1, -1),
        Column("network_calls", "network calls", 0, -1),
        Column("peak_memory_mb", "peak memory (MB)", 0, -1),
    ),
}

# What a table of variants, and the table of single objects, show.
HEADLINE = (
    Column("mesh.psnr", "mesh PSNR (dB)", 1, 1),
    Column("mesh.psnr_object", "on the object (dB)", 1, 1),
    Column("mesh.lpips", "mesh perceptual", 3, -1),
    Column("mesh.iou", "mesh IoU", 3, 1),
    Column("splats.psnr", "splats PSNR (dB)", 1, 1),
    Column("splats.lpips", "splats perceptual", 3, -1),
    Column("representation.field_psnr", "radiance field PSNR (dB)", 1, 1),
    Column("representation.field_lpips", "radiance field perceptual", 3, -1),
    Column("surface.chamfer", "Chamfer (%)", 2, -1, 100),
    Column("surface.fscore", "F-score", 3, 1),
    Column("consistency.lpips", "odd/even perceptual", 3, -1),
    Column("fit_consistency.lpips", "same, own losses", 3, -1),
    Column("timings_s.total", "seconds", 0, -1),
)


@dataclass(frozen=True)
class Summary:
    """A column over all finished objects.

    Attributes:
        column: Which.
        mean: Arithmetic mean.
        spread: Standard deviation over the objects.
        worst: Worst value, or the largest where neither direction is better.
        worst_object: Whose.
    """

    column: Column
    mean: float
    spread: float
    worst: float
    worst_object: str


def summaries(rows: Sequence[Row], columns: Sequence[Column]) -> list[Summary]:
    """Sums up the columns for which some finished row has a number."""
    found = []
    for column in columns:
        pairs = [(v, str(row["name"])) for row in rows if (v := column.value(row)) is not None]
        if not pairs:
            continue
        values = np.array([v for v, _ in pairs])
        worst, name = (min if column.better > 0 else max)(pairs, key=lambda p: p[0])
        found.append(Summary(column, float(values.mean()), float(values.std()), worst, name))
    return found


def done(rows: Sequence[Row]) -> list[Row]:
    """The rows of objects that went through."""
    return [row for row in rows if row.get("status") == "done"]
