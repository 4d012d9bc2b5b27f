"""The evaluation's figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot as plt

from im3d_lab.evaluate.reporting.tables import HEADLINE, Column, Row, done

SPREAD_COLUMNS = tuple(c for c in HEADLINE if c.path in {"mesh.psnr", "mesh.iou", "mesh.lpips", "surface.chamfer"})


def plot_objects(path: Path, groups: Sequence[tuple[str, Sequence[Row]]]) -> None:
    """One panel a number: every object a dot, every variant a row of dots, its mean a bar.

    Args:
        path: PNG to write.
        groups: (title, rows) of every variant.
    """
    figure, panels = plt.subplots(1, len(SPREAD_COLUMNS), figsize=(11, 1.2 + 0.5 * len(groups)), sharey=True)
    for panel, column in zip(panels, SPREAD_COLUMNS, strict=True):
        for place, (_, rows) in enumerate(groups):
            values = [v for row in done(rows) if (v := column.value(row)) is not None]
            panel.plot(values, [place] * len(values), "o", color="#3b6ea5", alpha=0.55, markersize=5)
            if values:
                panel.plot([sum(values) / len(values)], [place], "|", color="black", markersize=18, markeredgewidth=2)
        panel.set_title(_titled(column), fontsize=9)
        panel.tick_params(labelsize=8)
        panel.locator_params(axis="x", nbins=4)
        panel.grid(axis="x", color="#dddddd")
        panel.set_axisbelow(True)
    panels[0].set_yticks(range(len(groups)), [title for title, _ in groups])
    panels[0].set_ylim(len(groups) - 0.5, -0.5)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_times(path: Path, rows: Sequence[Row]) -> None:
    """Seconds of each stage, one bar an object.

    Args:
        path: PNG to write.
        rows: Finished rows.
    """
    stages = [s for s in dict.fromkeys(stage for row in rows for stage in row["timings_s"]) if s != "total"]
    figure, axes = plt.subplots(figsize=(11, 1.2 + 0.28 * len(rows)))
    names = [str(row["name"]) for row in rows]
    left = [0.0] * len(rows)
    for number, stage in enumerate(stages):
        values = [float(row["timings_s"].get(stage) or 0) for row in rows]
        axes.barh(range(len(rows)), values, left=left, label=stage, color=f"C{number % 10}")
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("seconds", fontsize=9)
    axes.legend(fontsize=8, ncol=len(stages), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _titled(column: Column) -> str:
    return f"{column.title} {'→' if column.better > 0 else '←'}"
