"""Sheets that a view sees edge-on: leaves, cloth, flags.

Edge-on a sheet is thinner than a pixel and missing from that view's mask, so the visual hull, the intersection of all
masks, loses it whole. The splats keep it: edge-on they add next to no error to that view. Where opaque splats lie
clearly outside the hull but inside the masks of all but a few views, the splats themselves give the shape.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import njit, prange
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from im3d.core.orbit import Cameras
from im3d.core.projection import project_point
from im3d.mesh.fusion.silhouettes import NEAREST, Grid
from im3d.splats.gaussians import Gaussians
from im3d.splats.rasterizers.project import rotation_matrices

FloatArray = NDArray[np.float32]
# Share of the views that may see a sheet edge-on: of 16, two, front and back, if it is flat.
EDGE_ON_VIEWS = 2 / 16
# A splat belongs to a sheet when it lies farther than this outside the hull; at ordinary outlines splats stay nearer.
OUTSIDE_PX = 0.75
OPACITY = 0.5
# Half of a sheet's thickness in voxels: about the least that marching cubes and simplification keep; not a distance
# between voxels, which would put the surface on them.
HALF_THICKNESS = 1.25
# Fewer splats than this are noise.
FEWEST = 20


def sheet_splats(gaussians: Gaussians, distances: FloatArray, cameras: Cameras) -> Gaussians:
    """The opaque splats that lie outside the masks of a few views and inside all others; often none.

    Args:
        gaussians: On the CPU.
        distances: (C, n, n) signed distances to the masks' outlines, in pixels.
        cameras: The C cameras.
    """
    ordered = _largest(distances, cameras, gaussians.means.numpy().astype(np.float64), _spare(cameras))
    denied, agreed = torch.from_numpy(ordered[:, 0] > OUTSIDE_PX), torch.from_numpy(ordered[:, -1] <= 0)
    chosen = gaussians[denied & agreed & (gaussians.opacities > OPACITY)]
    return chosen if len(chosen) >= FEWEST else gaussians[:0]


def sheet_field(sheets: Gaussians, distances: FloatArray, cameras: Cameras, grid: Grid, cut: float) -> FloatArray:
    """Signed distance, in world units, to the sheets, (n, n, n), positive outside and at most `cut`."""
    held = _occupied(sheets, grid)
    field = (distance_transform_edt(~held) - HALF_THICKNESS) * grid.step
    near = np.argwhere(field < cut)
    points = grid.low + near * grid.step
    allowed = _largest(distances, cameras, points, _spare(cameras))[:, -1]
    pixel = float(np.linalg.norm(cameras.centres[0])) / cameras.focal
    out = np.full(field.shape, cut, np.float32)
    index = tuple(near.T)
    out[index] = np.minimum(np.maximum(field[index], allowed * pixel), cut)
    return out


def _spare(cameras: Cameras) -> int:
    return math.floor(len(cameras) * EDGE_ON_VIEWS)


def _occupied(sheets: Gaussians, grid: Grid) -> NDArray[np.bool_]:
    """Voxels that the flat discs of the splats touch."""
    axes = rotation_matrices(sheets.quats) * sheets.scales[:, None, :]
    order = sheets.scales.argsort(dim=1, descending=True)[:, None, :2].expand(-1, 3, -1)
    broad = axes.gather(2, order)  # (N, 3, 2)
    steps = torch.linspace(-1.5, 1.5, 9)
    disc = torch.cartesian_prod(steps, steps)
    disc = disc[disc.norm(dim=1) <= 1.5]
    points = sheets.means[:, None] + torch.einsum("nck,mk->nmc", broad, disc)
    index = np.round((points.reshape(-1, 3).numpy() - grid.low) / grid.step).astype(int)
    index = index[((index >= 0) & (index < grid.n)).all(axis=1)]
    held = np.zeros((grid.n,) * 3, bool)
    held[tuple(index.T)] = True
    return held


def _largest(distances: FloatArray, cameras: Cameras, points: NDArray[np.float64], spare: int) -> FloatArray:
    """(P, spare + 1) the largest distances in pixels of each point to the outlines, the very largest first."""
    return _largest_kernel(distances, cameras.viewmats, cameras.focal, cameras.size, points, spare + 1)


@njit(parallel=True, cache=True, error_model="numpy")
def _largest_kernel(distances, viewmats, f, size, points, count):  # type: ignore[no-untyped-def]
    out = np.full((len(points), count), -np.inf, np.float32)
    fine = distances.shape[1]
    sub = fine / size
    for p in prange(len(points)):
        for v in range(len(distances)):
            u, w, depth = project_point(viewmats[v], f, size / 2, points[p, 0], points[p, 1], points[p, 2])
            if depth < NEAREST:
                continue
            i = min(max(int(u * sub), 0), fine - 1)
            j = min(max(int(w * sub), 0), fine - 1)
            value = distances[v, j, i]
            for k in range(count):
                if value > out[p, k]:
                    value, out[p, k] = out[p, k], value
    return out
