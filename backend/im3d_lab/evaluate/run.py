"""One object through the product and the instruments: truth → views → `im3d generate` → metrics, resumable."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from im3d.core.devices import choose_device
from im3d.core.images import OrbitViews, read_views, write_png, write_views
from im3d.core.orbit import Cameras
from im3d.core.storage import make_folder, write_json
from im3d.errors import Im3dError, InputError
from im3d.settings import Preset, parse_overrides, preset_settings
from im3d.splats.gaussians import Gaussians
from im3d.splats.losses.perceptual import Perceptual, load_perceptual
from im3d.splats.ply import load_ply
from im3d_lab.evaluate.clip import Clip, clip_similarity
from im3d_lab.evaluate.consistency import render_splats, self_consistency, with_losses_of
from im3d_lab.evaluate.cycles import RenderJob, load_surface, load_views, render_views
from im3d_lab.evaluate.metrics import compare_views
from im3d_lab.evaluate.objects import EvaluationObject, Truth, draw_elevation, render_truth
from im3d_lab.evaluate.radiance_field import fit_field, render_field
from im3d_lab.evaluate.reporting.strips import write_strip
from im3d_lab.evaluate.surface import compare_surfaces
from im3d_lab.evaluate.warp import warped

GivenViews = Literal["oracle", "warped"]
GIVEN_VIEWS: tuple[GivenViews, ...] = get_args(GivenViews)
JOB_TIMEOUT_S = 3600.0
STRIP_CAMERAS = (0, 2)
# Metrics by which splats and a radiance field are compared.
COMPARED = ("psnr", "psnr_object", "ssim", "lpips", "iou")

Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """Everything that decides the numbers of an object; a finished row is kept as long as its plan is the same.

    Attributes:
        source: "oracle" (true views), "warped" (true views made inconsistent) or a generator's name.
        views: Views in the orbit.
        size: Side of the true pictures in pixels.
        seed: Of elevations, distortions and the product.
        preset: The product's preset.
        settings: "section.name=value" texts for the product.
        withhold_elevation: Whether given views go without their elevation.
        radiance_field: Whether a radiance field is fitted to the same views too (paper, Table 2).
    """

    source: str
    views: int
    size: int
    seed: int
    preset: Preset
    settings: tuple[str, ...] = ()
    withhold_elevation: bool = False
    radiance_field: bool = False

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "settings": list(self.settings)}


@dataclass(frozen=True)
class Instruments:
    """Networks that are loaded once.

    Attributes:
        perceptual: Of the perceptual distance.
        clip: CLIP, or the reason why it is left out.
        blender: Blender executable, or None for bpy.
    """

    perceptual: Perceptual
    clip: Clip | str
    blender: Path | None = None


def evaluate_object(item: EvaluationObject, plan: Plan, folder: Path, instruments: Instruments) -> Row:
    """The row of one object; never raises for a failure of the object, which becomes the row's `error`.

    Args:
        item: The object.
        plan: How.
        folder: Holds row.json, views/, job/ and strip.png; a finished row found there is returned as it is.
        instruments: Networks.
    """
    finished = _finished_row(folder, plan)
    if finished is not None:
        return finished
    row: Row = {"id": item.id, "name": item.name, "licence": item.licence, "folder": folder.name}
    row |= {"plan": plan.to_json(), "elevation_deg": draw_elevation(item.id, plan.seed)}
    try:
        make_folder(folder)
        row |= _measured(item, plan, folder, instruments, row["elevation_deg"])
        row["status"] = "done"
    except Im3dError as error:
        row |= {"status": "failed", "error": str(error)}
    except Exception as defect:
        row |= {"status": "failed", "error": f"{type(defect).__name__}: {defect}"}
        (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
    write_json(folder / "row.json", row)
    return row


def _finished_row(folder: Path, plan: Plan) -> Row | None:
    try:
        row: Row = json.loads((folder / "row.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if row.get("plan") == plan.to_json():
        return row if row.get("status") == "done" else None
    # Another question was asked of this folder before: its job would be refused.
    shutil.rmtree(folder / "job", ignore_errors=True)
    return None


def _measured(item: EvaluationObject, plan: Plan, folder: Path, instruments: Instruments, elevation_deg: float) -> Row:
    truth = render_truth(item, elevation_deg, plan.views, plan.size, instruments.blender)
    result = run_product(source_arguments(plan, truth, folder), plan, folder, instruments.blender)
    views = last_views(Path(result["job"]))
    scale = world_scale(views, truth)
    gaussians = _scaled(load_ply(Path(result["splats"])), scale)
    splats = render_splats(gaussians, truth.novel_cameras)
    mesh, normals, surface = _mesh_renders(result, scale, truth.novel_cameras, instruments.blender)

    perceptual = instruments.perceptual
    # A generator may make fewer views; they begin with the same one and go round as far.
    same = truth.views.rgba[:: max(1, plan.views // len(views.orbit))]
    row: Row = {
        "views": compare_views(views.resized(plan.size).rgba, same, perceptual),
        "splats": compare_views(splats, truth.novel, perceptual),
        "mesh": compare_views(mesh, truth.novel, perceptual),
        "surface": compare_surfaces(surface, (truth.vertices, truth.faces)),
    }
    if len(views.orbit) >= 4:
        try:
            row["consistency"] = self_consistency(views, perceptual)
            if any(assignment.startswith("fit.") for assignment in plan.settings):
                given = plan.source in GIVEN_VIEWS
                fit = with_losses_of(parse_overrides(preset_settings(plan.preset, given), plan.settings).fit)
                row["fit_consistency"] = self_consistency(views, perceptual, settings=fit)
        except InputError as error:
            # Half of the views can be too few for an object that all of them explain.
            row["consistency_error"] = str(error)
    pictures = {"splats": splats, "mesh": mesh}
    if plan.radiance_field:
        field, seconds = _field_renders(views, plan, _scaled_cameras(truth.novel_cameras, scale))
        pictures["radiance field"] = field
        found = {"splats": row["splats"], "field": compare_views(field, truth.novel, perceptual)}
        row["representation"] = {f"{name}_{key}": found[name][key] for name in found for key in COMPARED}
        row["representation"] |= {"splats_seconds": result["timings_s"]["fit"], "field_seconds": seconds}
    if isinstance(instruments.clip, Clip):
        for name, compared in (("views", views.rgba), ("splats", splats), ("mesh", mesh)):
            row[name] |= clip_similarity(instruments.clip, compared, truth.views.rgba[0], item.name)
    row["elevation"] = {
        "error_deg": abs(result["elevation_deg"] - elevation_deg),
        "confidence": result["elevation_confidence"],
    }
    kept = ("mesh_stats", "timings_s", "network_calls", "peak_memory_mb", "perceptual", "rasterizer", "generator")
    row |= {key: result.get(key) for key in kept}
    shown = list(STRIP_CAMERAS)
    orbit_rows = [k * len(views.orbit) // 8 for k in STRIP_CAMERAS]
    write_strip(
        folder / "strip.png",
        {
            "views (orbit)": views.resized(plan.size).rgba[orbit_rows],
            "truth (new camera)": truth.novel[shown],
            **{name: rendered[shown] for name, rendered in pictures.items()},
            "normals": normals[shown],
        },
    )
    return row


def last_views(job: Path) -> OrbitViews:
    """The views that a finished job's splats were fitted to at the end: refined ones where there were rounds."""
    refined = job / "refined"
    return read_views(refined if (refined / "orbit.json").exists() else job / "views")


def source_arguments(plan: Plan, truth: Truth, folder: Path) -> list[str]:
    """What the product is given, as its command line options; the pictures are written into `folder`."""
    if plan.source not in GIVEN_VIEWS:
        write_png(folder / "input.png", truth.views.rgba[0])
        return ["--image", str(folder / "input.png"), "--no-recenter", "--generator", plan.source]
    views = truth.views if plan.source == "oracle" else warped(truth.views, plan.seed)
    if plan.withhold_elevation:
        views = dataclasses.replace(views, orbit=dataclasses.replace(views.orbit, elevation_deg=None))
    write_views(folder / "views", views)
    return ["--views", str(folder / "views")]


def product_command(source: list[str], plan: Plan, folder: Path, blender: Path | None = None) -> list[str]:
    """The command of an object's job, which `run_product` runs."""
    command = [sys.executable, "-m", "im3d.cli", "generate", *source]
    command += ["--out", str(folder / "job"), "--preset", plan.preset, "--seed", str(plan.seed), "--json"]
    for assignment in plan.settings:
        command += ["--set", assignment]
    return command if blender is None else [*command, "--blender", str(blender)]


def run_product(source: list[str], plan: Plan, folder: Path, blender: Path | None = None) -> dict[str, Any]:
    """Runs `im3d generate` as a user would and returns what `--json` prints.

    Raises:
        Im3dError: It failed, with its own sentence, or did not end in time.
    """
    command = product_command(source, plan, folder, blender)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=JOB_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Im3dError(f"The job did not end within {JOB_TIMEOUT_S:.0f} s.") from error
    (folder / "stderr.txt").write_text(done.stderr, encoding="utf-8")
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError) as error:
        raise Im3dError(f"im3d generate ended with status {done.returncode} and no result.") from error
    if done.returncode != 0:
        raise Im3dError(str(answer.get("message", f"exit status {done.returncode}")), str(answer.get("hint", "")))
    return answer


def world_scale(views: OrbitViews, truth: Truth) -> float:
    """Size of the truth's world over that of the product's.

    A generator has cameras of its own; its first view is the input, so both worlds show the same size in it when the
    distances are brought together.

    Raises:
        InputError: The generator's angle of view differs from the truth's, so that no scale makes them agree.
    """
    if abs(views.orbit.fov_deg - truth.views.orbit.fov_deg) > 0.5:
        raise InputError(
            f"The generator sees {views.orbit.fov_deg:g}°, the true pictures {truth.views.orbit.fov_deg:g}°.",
            "Only generators with the default angle of view can be compared.",
        )
    return truth.views.orbit.radius / views.orbit.radius


def _scaled(gaussians: Gaussians, scale: float) -> Gaussians:
    return dataclasses.replace(gaussians, means=gaussians.means * scale, scales=gaussians.scales * scale)


def _scaled_cameras(cameras: Cameras, scale: float) -> Cameras:
    """The truth's cameras in the product's world, which is smaller by `scale`."""
    viewmats = cameras.viewmats.copy()
    viewmats[:, :3, 3] /= scale
    return dataclasses.replace(cameras, viewmats=viewmats)


def _field_renders(views: OrbitViews, plan: Plan, cameras: Cameras) -> tuple[NDArray[np.float32], float]:
    """What a radiance field shows that was fitted to the views as the splats were, and the seconds of its fit."""
    fit = parse_overrides(preset_settings(plan.preset, plan.source in GIVEN_VIEWS), plan.settings).fit
    device = choose_device("auto")
    perceptual = load_perceptual(device) if fit.lpips else None
    start = time.monotonic()
    field = fit_field(views, fit, plan.seed, device, perceptual)
    return render_field(field, cameras), round(time.monotonic() - start, 1)


def _mesh_renders(
    result: dict[str, Any], scale: float, cameras: Cameras, blender: Path | None
) -> tuple[NDArray[np.float32], NDArray[np.float32], tuple[NDArray[np.float32], NDArray[np.int32]]]:
    """Pictures of the finished GLB, as an artist's Blender shows its base colour; its normals; its surface."""
    matrix: NDArray[np.float64] = np.array(result["orbit_from_glb"], dtype=np.float64)
    matrix[:3] *= scale
    mesh = Path(result["mesh"])
    jobs = [RenderJob(mesh, cameras, matrix), RenderJob(mesh, cameras[list(STRIP_CAMERAS)], matrix, "normals")]
    albedo, normals = render_views(jobs, blender=blender)
    padded = np.zeros((len(cameras), cameras.size, cameras.size, 4), dtype=np.float32)
    padded[list(STRIP_CAMERAS)] = load_views(normals)
    return load_views(albedo), padded, load_surface(albedo)
