"""What mini's volume should hold for an input view: the prop's grid of distances seen from that view's camera."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from im3d.core.orbit import DEFAULT_VIEWS
from im3d.generators.mini.frustum import RADIUS, TAN, camera_axes, camera_points, centres
from im3d_lab.packs import Pack
from im3d_lab.training.data.batches import Changes
from im3d_lab.training.data.grids import AT_SURFACE, DISTANCE_STEP, GridSet
from im3d_lab.training.data.helpers import Stop, helpers
from im3d_lab.training.data.opengl import recipe_of
from im3d_lab.training.data.orbits import OrbitSet

DEPTH_SAMPLES = 2
_CHUNK = 128


@dataclass(frozen=True)
class VolumeTargets:
    """The volumes of B input views.

    Attributes:
        occupancy: (B, D, S, S) in [0, 1], by depth, row and column: 1/2 where the surface passes through the centre of
            a cell, 0 and 1 from half a cell away.
        color: (B, 3, D/2, S, S) in [0, 1], averaged over two depths.
        weight: (B, 1, D/2, S, S) how much of each pair is occupied.
    """

    occupancy: Tensor
    color: Tensor
    weight: Tensor


class OrbitVolumes:
    """Targets for the views of rendered orbits.

    Args:
        grids: Of the packs that the orbits were rendered from.
        orbits: The orbits.
        packs: The pack files.
        device: Where the grids are kept and targets are made.
        workers: Processes that look the props up.
    """

    def __init__(
        self, grids: GridSet, orbits: OrbitSet, packs: Sequence[Path], device: torch.device, workers: int = 1
    ) -> None:
        row = {name: i for i, name in enumerate(grids.prop.tolist())}
        self._cells = torch.from_numpy(np.asarray(grids.cells)).to(device)
        self._grid = torch.tensor([row[name] for name in orbits.prop.tolist()], device=device)
        self._half = torch.from_numpy(grids.half_size).to(device)
        self._elevation = torch.from_numpy(orbits.elevation_deg).to(device)
        self._show(*frames(orbits, packs, workers))

    def redrawn(self, orbits: OrbitSet, azimuth: NDArray[np.float32], to_prop: NDArray[np.float32]) -> None:
        """From now on the targets are those of another draw of the same props; see `frames`."""
        self._elevation.copy_(torch.from_numpy(orbits.elevation_deg))
        self._show(azimuth, to_prop)

    def _show(self, azimuth: NDArray[np.float32], to_prop: NDArray[np.float32]) -> None:
        device = self._grid.device
        self._azimuth = torch.from_numpy(azimuth).to(device)
        self._to_prop = torch.from_numpy(to_prop).to(device)
        # A prop's distances grow with it; by how much on average is near enough within half a cell of its surface.
        linear = to_prop[:, :3, :3] / to_prop[:, 3:, 3:]
        self._scale = torch.from_numpy(np.abs(np.linalg.det(linear)) ** (-1 / 3)).float().to(device)

    def at(self, changes: Changes, size: int, depths: int) -> VolumeTargets:
        """The targets of augmented orbits.

        Args:
            changes: Which orbits, and how they are augmented.
            size: Side S in cells.
            depths: D.
        """
        # Cells are longer than wide: they are looked at in several depths, and as occupied as the fullest of those.
        samples = DEPTH_SAMPLES * depths
        rows = changes.rows
        device = rows.device
        camera = camera_points(size, samples, device)
        place, scale = self._in_grids(changes, camera.flatten(1))
        # Most of a camera's cells lie outside the box and need no look-up.
        inside = (place.abs().amax(dim=1) < scale[:, 0]).flatten().nonzero().squeeze(1)
        orbit, point = inside // place.shape[2], inside % place.shape[2]
        where = place[orbit, :, point] / scale[orbit, :, point]
        grid = self._grid[rows][orbit]
        distance = -self._depth_inside(grid, where) * self._scale[rows][orbit]
        cell = ((RADIUS + centres(samples, device)) * (TAN * 2 / size)).repeat_interleave(size * size)
        filled = torch.zeros(len(rows) * place.shape[2], device=device)
        filled[inside] = (0.5 - distance / cell[point]).clamp(0, 1)
        found = torch.zeros(len(filled), 3, dtype=torch.uint8, device=device)
        found[inside] = self._cells.view(-1, 4)[self._nearest(grid, where)][:, :3]
        filled = filled.view(len(rows), depths // 2, 2 * DEPTH_SAMPLES, size, size)
        occupancy = filled.unflatten(2, (2, -1)).amax(dim=3).flatten(1, 2)
        weight = filled.sum(dim=2)[:, None]
        colours = found.view(*filled.shape, 3).movedim(-1, 1).float()
        pairs = (colours * filled[:, None]).sum(dim=3) / (255 * weight.clamp_min(1e-3))
        return VolumeTargets(occupancy, changes.recolored(pairs).clamp(0, 1), weight / (2 * DEPTH_SAMPLES))

    def _in_grids(self, changes: Changes, camera: Tensor) -> tuple[Tensor, Tensor]:
        """Points (3, P) of the input views' cameras in their grids' boxes [−1, 1]³, homogeneous: (B, 3, P), (B, 1, P).

        Camera → world → the prop before it was deformed → its grid's box.
        """
        rows = changes.rows
        azimuth = self._azimuth[rows] + changes.start * (360 / DEFAULT_VIEWS)
        axes = camera_axes(torch.deg2rad(azimuth), torch.deg2rad(self._elevation[rows]))
        to_grid = torch.cat([self._to_prop[rows][:, :, :3] @ axes.mT, self._to_prop[rows][:, :, 3:]], dim=2)
        to_grid[:, :3] /= self._half[self._grid[rows]][:, :, None]
        mirrored = changes.mirrored[:, None]
        to_grid[:, :, 0] = torch.where(mirrored, -to_grid[:, :, 0], to_grid[:, :, 0])
        place = torch.matmul(to_grid[:, :, :3], camera) + to_grid[:, :, 3:]
        return place[:, :3], place[:, 3:]

    def _nearest(self, grid: Tensor, where: Tensor) -> Tensor:
        """(P,) the cells of grids (P,) at places (P, 3) in their boxes, in the flattened array."""
        n = self._cells.shape[1]
        index = ((where + 1) * (n / 2)).long().clamp(0, n - 1)
        return ((grid * n + index[:, 2]) * n + index[:, 1]) * n + index[:, 0]

    def _depth_inside(self, grid: Tensor, where: Tensor) -> Tensor:
        """(P,) how far inside the places are, in units of the prop's unit sphere, linear between the cells' centres."""
        n = self._cells.shape[1]
        place = ((where + 1) * (n / 2) - 0.5).clamp(0, n - 1.001)
        low = place.long()
        share = place - low
        first = ((grid * n + low[:, 2]) * n + low[:, 1]) * n + low[:, 0]
        stored = self._cells.view(-1, 4)[:, 3]
        total = torch.zeros_like(share[:, 0])
        for x, y, z in itertools.product((0, 1), repeat=3):
            weight = torch.ones_like(total)
            for axis, step in enumerate((x, y, z)):
                weight = weight * (share[:, axis] if step else 1 - share[:, axis])
            total += weight * stored[first + (z * n + y) * n + x].float()
        return (total - AT_SURFACE) * DISTANCE_STEP


def frames(
    orbits: OrbitSet, packs: Sequence[Path], workers: int = 1, stop: Stop | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """For every orbit the azimuth of its first view (N,) in degrees, and (N, 4, 4) from the world to the prop.

    `stop` ends the processes that look the props up.
    """
    runs = _runs(orbits.prop.tolist())
    paths = {path.name: path for path in packs}
    chunks = [(paths, orbits.draw, runs[i : i + _CHUNK]) for i in range(0, len(runs), _CHUNK)]
    if workers == 1:
        made = [_frames_of(chunk) for chunk in chunks]
    else:
        with helpers(workers, stop=stop) as pool:
            made = list(pool.map(_frames_of, chunks))
    return np.concatenate([m[0] for m in made]), np.concatenate([m[1] for m in made])


def _frames_of(
    chunk: tuple[dict[str, Path], int, list[tuple[str, int]]],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    paths, draw, runs = chunk
    opened = {name: Pack.open(paths[name]) for name in {run[0].split("/", 1)[0] for run in runs}}
    azimuth, to_prop = [], []
    for name, count in runs:
        pack, prop_id = name.split("/", 1)
        prop = opened[pack][prop_id]
        points = np.concatenate(prop.world_vertices())
        for i in range(count):
            recipe = recipe_of(prop_id, prop.split, i, draw)
            azimuth.append(recipe.azimuth_deg)
            to_prop.append(np.linalg.inv(recipe.applied(points)))
    return np.array(azimuth, np.float32), np.array(to_prop, np.float32)


def _runs(names: Sequence[str]) -> list[tuple[str, int]]:
    """Equal neighbours with their number."""
    runs: list[tuple[str, int]] = []
    for name in names:
        if runs and runs[-1][0] == name:
            runs[-1] = (name, runs[-1][1] + 1)
        else:
            runs.append((name, 1))
    return runs
