"""The props of packs as grids of signed distances and colours: what mini's volumes are compared with while it trains.

A grid spans its prop's bounding box, so that flat and thin props keep their detail. Inside is what the surface
encloses: a closed prop's inside, and that of one that is open only below, where no camera looks. A surface that
encloses nothing (a leaf, a cloth) is given a thickness, or it would fall between the cells that look it up. Distances,
unlike occupied cells, can be resampled by any camera without holes and steps. Every cell has the colour of the nearest
surface, so that a resampled grid is clean at its rim.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.spatial import cKDTree

from im3d.errors import InputError
from im3d_lab.packs import Pack, Part, Prop
from im3d_lab.training.data.helpers import Stop, helpers

CELLS = 64
# Points sampled on a prop's surface: about thirty in each cell of a face as large as the grid's own.
POINTS = 120_000
# Distances are kept in steps of this, as a byte that is `AT_SURFACE` at the surface and more inside.
DISTANCE_STEP, AT_SURFACE = 1 / 512, 128
# Surfaces are moved outwards: of solids a little, by what the volume's cells blur away; sheets by more, or views that
# see them from their edge would lose them. In units of the unit sphere that holds a prop; a cell of `mini`'s volume has
# 1/32. Chosen by how well true volumes, rendered as the network's are, match masks of held-out props (training log).
SOLID_SWELL, SHEET_SWELL = 0.004, 0.011
# So far about the surface distances are measured; further away only the side counts. Longer than a cell of the volume.
NEAR = 0.04
_CHUNK = 32


@dataclass(frozen=True)
class GridSet:
    """Grids of props.

    Attributes:
        cells: (N, CELLS, CELLS, CELLS, 4) uint8 by z, y, x of `im3d.core.orbit`'s world: colour, and how far inside a
            cell's centre lies, in steps of `DISTANCE_STEP` above `AT_SURFACE`.
        half_size: (N, 3) float32 half sides of the spanned box in x, y, z; the longest is 1/2 and a margin.
        prop: (N,) "pack name/prop id", as in `OrbitSet`.
    """

    cells: NDArray[np.uint8]
    half_size: NDArray[np.float32]
    prop: NDArray[np.str_]


def distance_grid(prop: Prop, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """(CELLS, CELLS, CELLS, 4) uint8 grid of a prop and the (3,) half sides of its box; see `GridSet`."""
    vertices = prop.world_vertices()
    # A margin, also about a sheet: a resampled grid has to end in empty cells.
    half = np.abs(np.concatenate(vertices)).max(axis=0) + NEAR
    points, colours = _surface(prop, vertices, np.random.default_rng(seed))
    index = ((points / half + 1) * (CELLS / 2)).astype(np.int64).clip(0, CELLS - 1)
    flat = (index[:, 2] * CELLS + index[:, 1]) * CELLS + index[:, 0]
    count = np.bincount(flat, minlength=CELLS**3)
    sums = np.stack([np.bincount(flat, colours[:, c], minlength=CELLS**3) for c in range(3)], axis=-1)
    shell = (count > 0).reshape(CELLS, CELLS, CELLS)
    colour = (sums / np.maximum(count, 1)[:, None]).reshape(CELLS, CELLS, CELLS, 3)
    away, nearest = ndimage.distance_transform_edt(~shell, sampling=half[::-1] * (2 / CELLS), return_indices=True)
    grid = np.empty((CELLS, CELLS, CELLS, 4), np.uint8)
    grid[..., :3] = (colour[tuple(nearest)] * 255).round()
    inside = _signed(shell, away < NEAR, points, half)
    grid[..., 3] = (AT_SURFACE + inside / DISTANCE_STEP).round().clip(0, 255)
    return grid, half.astype(np.float32)


def _signed(
    shell: NDArray[np.bool_], near: NDArray[np.bool_], points: NDArray[np.float64], half: NDArray[np.float64]
) -> NDArray[np.float32]:
    """How far inside each cell's centre is; exact near the surface, and 1 or −1 elsewhere.

    Args:
        shell: (CELLS, CELLS, CELLS), cells that the surface crosses.
        near: The same, cells where distances are measured.
        points: (P, 3) on the surface.
        half: (3,) half sides of the box.
    """
    cube = np.ones((3, 3, 3), bool)
    # Of the cells that the surface crosses nobody knows which side their centres lie on: they count as outside.
    core = _filled(shell) & ~shell
    inside = np.where(core, np.float32(1), np.float32(-1))
    cells = np.argwhere(near)
    centres = ((cells[:, ::-1] + 0.5) * (2 / CELLS) - 1) * half
    distance, _ = cKDTree(points, balanced_tree=False, compact_nodes=False).query(centres)
    swell = np.where(ndimage.binary_dilation(core, cube, iterations=2)[near], SOLID_SWELL, SHEET_SWELL)
    inside[near] = np.where(core[near], distance, -distance) + swell
    return inside


def _surface(
    prop: Prop, vertices: Sequence[NDArray[np.float32]], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points spread evenly over all parts (P, 3) and their colours (P, 3) in [0, 1], without what alpha cuts out."""
    areas = [_areas(part, v) for part, v in zip(prop.parts, vertices, strict=True)]
    total = sum(float(a.sum()) for a in areas)
    points, colours = [], []
    for part, v, area in zip(prop.parts, vertices, areas, strict=True):
        # At least one point for each face: faces far smaller than a cell still make a surface.
        share = POINTS * area / max(total, 1e-12)
        counts = np.floor(share + rng.random(len(share))).astype(np.int64).clip(min=1)
        face = np.repeat(np.arange(len(area)), counts)
        root, along = np.sqrt(rng.random(len(face))), rng.random(len(face))
        weights = np.stack([1 - root, root * (1 - along), root * along], axis=1)
        corners = part.faces[face]
        place = np.einsum("pk,pkc->pc", weights, v[corners].astype(np.float64))
        colour = np.tile(np.array([*part.color, 1.0]).clip(0, 1), (len(face), 1))
        if part.texture is not None and part.uv is not None:
            colour = _texels(part.texture, np.einsum("pk,pkc->pc", weights, part.uv[corners].astype(np.float64)))
        solid = colour[:, 3] >= 0.5 if part.alpha else np.ones(len(face), bool)
        points.append(place[solid])
        colours.append(colour[solid, :3])
    return np.concatenate(points), np.concatenate(colours)


def _areas(part: Part, vertices: NDArray[np.float32]) -> NDArray[np.float64]:
    a, b, c = (vertices[part.faces[:, k]].astype(np.float64) for k in range(3))
    return np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2


def _texels(texture: bytes, uv: NDArray[np.float64]) -> NDArray[np.float64]:
    """(P, 4) nearest texels in [0, 1] at (P, 2) coordinates with the origin at the bottom left, repeating."""
    pixels = np.asarray(Image.open(io.BytesIO(texture)).convert("RGBA"))
    height, width = pixels.shape[:2]
    column = np.floor(uv[:, 0] % 1 * width).astype(np.int64).clip(0, width - 1)
    row = np.floor((1 - uv[:, 1] % 1) * height).astype(np.int64).clip(0, height - 1)
    return pixels[row, column] / 255


def _filled(shell: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The shell and all that cannot be reached from above and the sides; ways in of two cells' width do not count."""
    cube = np.ones((3, 3, 3), bool)
    lowest = int(shell.any(axis=(1, 2)).argmax())
    # The shell has holes where chance put no point: it is thickened to find what it encloses, and thinned again.
    thick = ndimage.binary_dilation(np.pad(shell[lowest:], ((0, 2), (2, 2), (2, 2))), cube)
    label, _ = ndimage.label(~thick)
    sides = [label[-1], label[:, 0], label[:, -1], label[:, :, 0], label[:, :, -1]]
    reached = np.isin(label, np.setdiff1d(np.concatenate([side.ravel() for side in sides]), [0]))
    solid = shell.copy()
    solid[lowest:] |= ndimage.binary_erosion(~reached, cube, border_value=1)[:-2, 2:-2, 2:-2]
    return solid


def pack_grids(packs: Sequence[Path], folder: Path, workers: int, stop: Stop | None = None) -> GridSet:
    """The grids of every prop of the packs, made once and then mapped from disk (1 MB a prop).

    `stop` ends the processes that make them.

    Raises:
        InputError: A pack cannot be read.
    """
    request = [(p.name, os.path.getsize(p), CELLS, POINTS, NEAR, SOLID_SWELL, SHEET_SWELL) for p in packs]
    digest = hashlib.sha256(repr(request).encode()).hexdigest()[:12]
    data, index = folder / f"grids-{digest}.u8", folder / f"grids-{digest}.npz"
    if not index.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _make(packs, workers, data, index, stop)
    try:
        with np.load(index, allow_pickle=False) as table:
            half, prop = table["half_size"], table["prop"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{index} is damaged.", "Delete it; it will be made again.") from error
    return GridSet(np.memmap(data, np.uint8, "c", shape=(len(prop), CELLS, CELLS, CELLS, 4)), half, prop)


def _make(packs: Sequence[Path], workers: int, data: Path, index: Path, stop: Stop | None) -> None:
    names, halves = [], []
    with (
        open(data.with_suffix(".part"), "wb") as file,
        helpers(workers, stop=stop) as pool,
    ):
        for grids, half, prop in pool.map(_make_chunk, list(_chunks(packs))):
            file.write(grids.tobytes())
            halves.append(half)
            names += prop
    os.replace(data.with_suffix(".part"), data)
    partial = index.with_suffix(".part.npz")
    np.savez(partial, half_size=np.concatenate(halves), prop=np.array(names))
    os.replace(partial, index)


def _chunks(packs: Sequence[Path]) -> Iterator[tuple[Path, int, int]]:
    for path in packs:
        count = len(Pack.open(path))
        for first in range(0, count, _CHUNK):
            yield path, first, min(count, first + _CHUNK)


def _make_chunk(chunk: tuple[Path, int, int]) -> tuple[NDArray[np.uint8], NDArray[np.float32], list[str]]:
    path, first, last = chunk
    pack = Pack.open(path)
    made = [distance_grid(pack[i]) for i in range(first, last)]
    names = [f"{path.name}/{i}" for i in pack.ids[first:last]]
    return np.stack([m[0] for m in made]), np.stack([m[1] for m in made]), names
