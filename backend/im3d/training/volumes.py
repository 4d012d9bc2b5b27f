"""What mini's volume should hold for an input view: the prop's occupancy grid seen from that view's camera."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from im3d.generators.mini_frustum import camera_axes, camera_points
from im3d.orbit import DEFAULT_VIEWS
from im3d.packs import Pack
from im3d.training.batches import Changes
from im3d.training.grids import GridSet
from im3d.training.orbits import OrbitSet
from im3d.training.render import recipe_of

DEPTH_SAMPLES = 2
_CHUNK = 128


@dataclass(frozen=True)
class VolumeTargets:
    """The volumes of B input views.

    Attributes:
        occupancy: (B, D, S, S) in {0, 1}, by depth, row and column.
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
        azimuth, to_prop = _frames(orbits, packs, workers)
        self._azimuth = torch.from_numpy(azimuth).to(device)
        self._to_prop = torch.from_numpy(to_prop).to(device)
        self._elevation = torch.from_numpy(orbits.elevation_deg).to(device)

    def at(self, changes: Changes, size: int, depths: int, generator: torch.Generator) -> VolumeTargets:
        """The targets of augmented orbits.

        Args:
            changes: Which orbits, and how they are augmented.
            size: Side S in cells.
            depths: D.
            generator: Of the places within the cells that are looked up: rims become as soft as the cells are coarse,
                on average.
        """
        # Cells are looked at in several depths and occupied if one of them is: a sheet must not end up half opaque.
        samples = DEPTH_SAMPLES * depths
        rows, mirrored = changes.rows, changes.mirrored
        device = rows.device
        jitter = torch.rand(3, samples, size, size, generator=generator, device=device)
        camera = camera_points(size, samples, device, jitter)
        azimuth = self._azimuth[rows] + changes.start * (360 / DEFAULT_VIEWS)
        axes = camera_axes(torch.deg2rad(azimuth), torch.deg2rad(self._elevation[rows]))
        grid = self._grid[rows]
        # Camera → world → the prop before it was deformed → its grid's box, in homogeneous coordinates.
        to_grid = torch.cat([self._to_prop[rows][:, :, :3] @ axes.mT, self._to_prop[rows][:, :, 3:]], dim=2)
        to_grid[:, :3] /= self._half[grid][:, :, None]
        to_grid[:, :, 0] = torch.where(mirrored[:, None], -to_grid[:, :, 0], to_grid[:, :, 0])
        n = self._cells.shape[1]
        place = torch.matmul(to_grid[:, :, :3], camera.flatten(1)) + to_grid[:, :, 3:]
        place, scale = place[:, :3], place[:, 3:]
        # Most of a camera's cells lie outside the box and need no look-up.
        inside = (place.abs().amax(dim=1) < scale[:, 0]).flatten().nonzero().squeeze(1)
        orbit, point = inside // place.shape[2], inside % place.shape[2]
        index = ((place[orbit, :, point] / scale[orbit, :, point] + 1) * (n / 2)).long().clamp_max(n - 1)
        flat = ((grid[orbit] * n + index[:, 2]) * n + index[:, 1]) * n + index[:, 0]
        found = torch.zeros(len(rows) * place.shape[2], 4, dtype=torch.uint8, device=device)
        found[inside] = self._cells.view(-1, 4)[flat]
        found = found.view(len(rows), depths // 2, 2 * DEPTH_SAMPLES, size, size, 4)
        occupied = found[..., 3:] > 127
        occupancy = occupied[..., 0].unflatten(2, (2, -1)).any(dim=3).flatten(1, 2).float()
        weight = occupied.sum(dim=2).float()
        pairs = (found[..., :3].float() * occupied).sum(dim=2) / 255
        color = changes.recolored((pairs / weight.clamp_min(1)).permute(0, 4, 1, 2, 3)).clamp(0, 1)
        return VolumeTargets(occupancy, color, weight.permute(0, 4, 1, 2, 3) / (2 * DEPTH_SAMPLES))


def _frames(
    orbits: OrbitSet, packs: Sequence[Path], workers: int = 1
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """For every orbit the azimuth of its first view (N,) in degrees, and (N, 4, 4) from the world to the prop."""
    runs = _runs(orbits.prop.tolist())
    paths = {path.name: path for path in packs}
    chunks = [(paths, orbits.draw, runs[i : i + _CHUNK]) for i in range(0, len(runs), _CHUNK)]
    if workers == 1:
        made = [_frames_of(chunk) for chunk in chunks]
    else:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
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
