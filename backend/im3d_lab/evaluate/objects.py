"""What is evaluated: objects of packs or mesh files, and the cameras that see their true views."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from im3d.core.images import OrbitViews
from im3d.core.orbit import DEFAULT_FOV_DEG, Cameras, Orbit, focal_length, framing_radius, look_at_origin
from im3d.errors import InputError
from im3d.shared.paths import home_folder
from im3d_lab.evaluate.cycles import MESH_SUFFIXES, RenderJob, load_surface, load_views, render_views
from im3d_lab.packs import Pack, Prop, Split

# The paper's orbits lie in [0°, 45°] (3.2); people hold cameras and make pictures in the lower part.
ELEVATIONS_DEG = (0.0, 30.0)
# New cameras: (azimuth in steps of the 16-view orbit, elevation or None for the orbit's own).
NOVEL_VIEWS: tuple[tuple[float, float | None], ...] = (
    (0.5, None),
    (3.5, 5.0),
    (4.5, 35.0),
    (6.5, 45.0),
    (8.5, None),
    (10.5, 5.0),
    (12.5, 35.0),
    (14.5, 20.0),
)


@dataclass(frozen=True)
class EvaluationObject:
    """An object with known surface and colours.

    Attributes:
        id: Unique in the evaluation: "pack/object" or the file's path.
        name: In words, for tables and for CLIP.
        licence: As the source states it, or "".
        source: What is rendered.
    """

    id: str
    name: str
    licence: str
    source: Prop | Path

    @property
    def folder_name(self) -> str:
        """A name for a folder: readable, and unique by a piece of the id's hash."""
        words = re.sub(r"[^A-Za-z0-9]+", "-", Path(self.id).stem).strip("-")[:40]
        return f"{words}-{hashlib.sha256(self.id.encode()).hexdigest()[:6]}"


@dataclass(frozen=True)
class Truth:
    """The true views and surface of an object.

    Attributes:
        views: The orbit, as a perfect generator would make it.
        novel: (C, S, S, 4) float32 pictures from cameras that are not in the orbit, straight alpha.
        novel_cameras: Their cameras.
        vertices: (V, 3) float32 in the world.
        faces: (F, 3) int32.
    """

    views: OrbitViews
    novel: NDArray[np.float32]
    novel_cameras: Cameras
    vertices: NDArray[np.float32]
    faces: NDArray[np.int32]


def find_objects(
    sources: Sequence[Path], ids: Sequence[str], sample: int | None, seed: int, split: Split | None
) -> list[EvaluationObject]:
    """The objects an evaluation runs on.

    Args:
        sources: Packs (.npz, .npz.xz) and folders of mesh files; none: the packs in the user's `packs` folder.
        ids: Only these, by the source's own ids; empty: all.
        sample: Draw so many; spread evenly over the sources.
        seed: Of the random sample.
        split: Of packs, only this part; None: all of it. Not applied to `ids`.

    Raises:
        InputError: Nothing is there, or an id is unknown.
    """
    sources = list(sources) or sorted((home_folder() / "packs").glob("*.npz*"))
    if not sources:
        raise InputError(
            f"There are no objects: no --objects, and no pack in {home_folder() / 'packs'}.",
            "Give --objects PACK_OR_FOLDER.",
        )
    available = [_Source(path, split, bool(ids)) for path in sources]
    if ids:
        return [_first_with(available, wanted) for wanted in ids]
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(source.keys)) for source in available]
    chosen: list[tuple[int, int]] = []
    for position in range(max(len(order) for order in orders)):
        chosen += [(s, int(order[position])) for s, order in enumerate(orders) if position < len(order)]
    return [available[s].object(available[s].keys[i]) for s, i in sorted(chosen[:sample])]


class _Source:
    """A pack or a folder, seen as keys."""

    def __init__(self, path: Path, split: Split | None, everything: bool) -> None:
        self.path = path
        self.pack: Pack | None = None
        if path.is_dir():
            files = [p for p in path.rglob("*") if p.suffix.lower() in MESH_SUFFIXES]
            self.keys = sorted(p.relative_to(path).as_posix() for p in files)
        else:
            self.pack = Pack.open(path)
            self.keys = self.pack.ids if everything or split is None else self.pack.ids_of(split)
        if not self.keys:
            raise InputError(f"{path} holds no object.", f"Use a pack, or files of {', '.join(MESH_SUFFIXES)}.")

    def object(self, key: str) -> EvaluationObject:
        if self.pack is not None:
            prop = self.pack[key]
            pack_name = self.path.name.split(".")[0]
            return EvaluationObject(f"{pack_name}/{key}", prop.name, prop.licence, prop)
        return EvaluationObject(key, Path(key).stem.replace("_", " "), "", self.path / key)


def _first_with(sources: Sequence[_Source], key: str) -> EvaluationObject:
    for source in sources:
        # The report's own ids begin with the pack's name.
        bare = key.removeprefix(source.path.name.split(".")[0] + "/") if source.pack else key
        for known in (key, bare):
            if known in source.keys:
                return source.object(known)
    raise InputError(f"There is no object {key}.", "Give the ids as their pack or folder has them.")


def draw_elevation(object_id: str, seed: int) -> float:
    """The elevation of an object's orbit in degrees: by its id, so that a larger sample repeats the smaller one."""
    digest = hashlib.sha256(f"{seed}/{object_id}".encode()).digest()
    low, high = ELEVATIONS_DEG
    return round(float(np.random.default_rng(int.from_bytes(digest[:8], "big")).uniform(low, high)), 1)


def render_truth(
    item: EvaluationObject,
    elevation_deg: float,
    views: int,
    size: int,
    blender: Path | None = None,
) -> Truth:
    """Renders the orbit and the new views, framed as every generator here is trained and asked: the default angle of
    view, and the bounding sphere about the world's origin just fills the picture.

    Args:
        item: The object.
        elevation_deg: Of the orbit.
        views: Number of views in the orbit.
        size: Side of the pictures in pixels.
        blender: Blender executable, or None for bpy.

    Raises:
        Im3dError: Blender is missing or failed on the object.
    """
    sphere = _bounding_sphere(item.source, blender)
    radius = framing_radius(DEFAULT_FOV_DEG, sphere)
    orbit = Orbit.uniform(views, elevation_deg, DEFAULT_FOV_DEG, radius)
    poses = [(22.5 * step, elevation_deg if e is None else e) for step, e in NOVEL_VIEWS]
    viewmats = np.stack([look_at_origin(a, e, radius) for a, e in poses])
    novel_cameras = Cameras(viewmats, focal_length(DEFAULT_FOV_DEG, size), size)
    jobs = [RenderJob(item.source, orbit.cameras(size)), RenderJob(item.source, novel_cameras)]
    seen, novel = render_views(jobs, blender=blender)
    vertices, faces = load_surface(seen)
    return Truth(OrbitViews(load_views(seen), orbit), load_views(novel), novel_cameras, vertices, faces)


def _bounding_sphere(source: Prop | Path, blender: Path | None) -> float:
    """Radius of the sphere about the world's origin that holds the object."""
    if isinstance(source, Prop):
        return max(float(np.linalg.norm(v, axis=1).max()) for v in source.world_vertices())
    # Only Blender knows how it imports a file: ask it for the surface with one small picture.
    glance = Orbit.uniform(2, 0.0).cameras(16)[0]
    vertices, _ = load_surface(render_views([RenderJob(source, glance)], blender=blender)[0])
    return float(np.linalg.norm(vertices, axis=1).max())
