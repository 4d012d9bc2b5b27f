"""Pictures of known objects from known cameras, by Cycles in a process of its own, cached by content."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from im3d.blender import find_blender
from im3d.core.orbit import GLTF_FROM_WORLD, Cameras
from im3d.errors import Im3dError, InputError
from im3d.shared.paths import cache_folder
from im3d_lab.packs import Prop

MESH_SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".fbx")
SCRIPT = Path(__file__).with_name("blender_script.py")
# A border pixel's alpha is then known to about 0.5/√32 = 9 % (standard deviation, at worst).
SAMPLES = 32
START_TIMEOUT_S = 120.0
VIEW_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class RenderJob:
    """One object from some cameras.

    Attributes:
        source: An object of a pack, or a file that Blender imports.
        cameras: Square pictures, in the world of `im3d.core.orbit`.
        orbit_from_file: (4, 4) from the file's own glTF axes to the world, as in result.json; None centres the
            bounding box and makes its longest side 1.
        shading: "albedo" (base colour, unlit) or "normals".
    """

    source: Prop | Path
    cameras: Cameras
    orbit_from_file: NDArray[np.float64] | None = None
    shading: Literal["albedo", "normals"] = "albedo"


def render_views(jobs: Sequence[RenderJob], cache: Path | None = None, blender: Path | None = None) -> list[Path]:
    """Renders what the cache does not hold yet, all in one Blender process.

    Args:
        jobs: Objects and cameras.
        cache: Folder of the renders, by default in the user's cache.
        blender: Blender executable; by default the bpy of this Python.

    Returns:
        A folder a job with view_000.png … (8 bit RGBA, sRGB, straight alpha, one a camera) and surface.npz
        (`vertices` (V, 3) float32, `faces` (F, 3) int32: the surface that was rendered, in the world).

    Raises:
        InputError: No Blender, or a file that it cannot import.
        Im3dError: Blender failed.
    """
    cache = cache or cache_folder() / "renders"
    folders = [cache / _digest(job) for job in jobs]
    missing = {folder: job for folder, job in zip(folders, jobs, strict=True) if not folder.exists()}
    if missing:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".rendering-") as work:
            tasks = [_task(job, Path(work) / folder.name) for folder, job in missing.items()]
            _run_blender(tasks, Path(work), blender)
            for folder in missing:
                _publish(Path(work) / folder.name, folder)
    return folders


def load_views(folder: Path) -> NDArray[np.float32]:
    """The pictures of a rendered folder: (C, S, S, 4) float32 in [0, 1], straight alpha."""
    paths = sorted(folder.glob("view_*.png"))
    return np.stack([np.asarray(Image.open(p).convert("RGBA"), dtype=np.float32) / 255 for p in paths])


def load_surface(folder: Path) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """The rendered surface: vertices (V, 3) in the world and faces (F, 3)."""
    with np.load(folder / "surface.npz") as arrays:
        return arrays["vertices"], arrays["faces"]


def write_parts(prop: Prop, path: Path) -> None:
    """Writes the npz that `blender_script.py` reads."""
    arrays: dict[str, NDArray[Any]] = {}
    for j, (part, vertices) in enumerate(zip(prop.parts, prop.world_vertices(), strict=True)):
        arrays[f"{j}.vertices"], arrays[f"{j}.faces"] = vertices, part.faces
        if part.texture is not None and part.uv is not None:
            arrays[f"{j}.uv"], arrays[f"{j}.texture"] = part.uv, np.frombuffer(part.texture, np.uint8)
    facts = json.dumps([{"color": p.color, "alpha": p.alpha} for p in prop.parts])
    arrays["parts_json"] = np.frombuffer(facts.encode(), np.uint8)
    np.savez(path, allow_pickle=False, **arrays)


def _task(job: RenderJob, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    if isinstance(job.source, Prop):
        scene = folder.with_suffix(".npz")
        write_parts(job.source, scene)
    else:
        scene = job.source.resolve()
    return {"scene": str(scene), "folder": str(folder), "samples": SAMPLES, **_description(job)}


def _description(job: RenderJob) -> dict[str, Any]:
    """What the script receives besides paths."""
    matrix = None
    if isinstance(job.source, Prop):
        matrix = np.eye(4)
    elif job.orbit_from_file is not None:
        # Blender's importer has already turned glTF's axes into its own.
        gltf_from_blender = np.eye(4)
        gltf_from_blender[:3, :3] = GLTF_FROM_WORLD
        matrix = job.orbit_from_file @ gltf_from_blender
    cameras = job.cameras
    return {
        "matrix": None if matrix is None else matrix.tolist(),
        "cameras": np.linalg.inv(cameras.viewmats.astype(np.float64)).round(9).tolist(),
        "fov_deg": math.degrees(2 * math.atan(0.5 * cameras.size / cameras.focal)),
        "size": cameras.size,
        "shading": job.shading,
    }


def _digest(job: RenderJob) -> str:
    """A name for the pictures: everything that they depend on, hashed."""
    digest = hashlib.sha256(SCRIPT.read_bytes())
    digest.update(json.dumps([_description(job), SAMPLES]).encode())
    if isinstance(job.source, Prop):
        for part, vertices in zip(job.source.parts, job.source.world_vertices(), strict=True):
            digest.update(vertices.tobytes() + part.faces.tobytes() + (part.texture or b""))
            digest.update(b"" if part.uv is None else part.uv.tobytes())
            digest.update(repr((part.color, part.alpha)).encode())
        return digest.hexdigest()[:32]
    if not job.source.is_file():
        raise InputError(f"There is no file {job.source}.", "Check the path.")
    digest.update(job.source.read_bytes())
    if job.source.suffix.lower() != ".glb":
        # Materials and textures lie beside the mesh.
        for other in sorted(p for p in job.source.parent.rglob("*") if p.is_file()):
            stat = other.stat()
            digest.update(f"{other.name} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:32]


def _publish(rendered: Path, folder: Path) -> None:
    try:
        os.rename(rendered, folder)
    except OSError:
        # Another process rendered the same meanwhile; its pictures are these pictures.
        if not folder.exists():
            raise
        shutil.rmtree(rendered)


def _run_blender(tasks: list[dict[str, Any]], work: Path, blender: Path | None) -> None:
    jobs = work / "jobs.json"
    jobs.write_text(json.dumps({"tasks": tasks}), encoding="utf-8")
    found = find_blender(blender)
    command = [*found.command, str(SCRIPT), *found.separator, str(jobs)]
    limit = START_TIMEOUT_S + VIEW_TIMEOUT_S * sum(len(t["cameras"]) for t in tasks)
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=limit, check=False)
    except subprocess.TimeoutExpired as error:
        raise Im3dError(f"Blender did not finish within {limit:.0f} s.", "Try fewer or smaller objects.") from error
    last = Path(tasks[-1]["folder"]) / f"view_{len(tasks[-1]['cameras']) - 1:03d}.png"
    if done.returncode != 0 or not last.exists():
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()][-6:]
        raise Im3dError(f"Blender failed to render (status {done.returncode}): {' / '.join(said)}.", "Check the file.")
