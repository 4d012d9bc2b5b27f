"""The operations of depth fusion on the CPU, by numba and scipy; see `im3d.mesh.fusion.operations`."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit, prange
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from im3d.core.orbit import Cameras
from im3d.core.projection import project_point
from im3d.core.threads import on_all_cores
from im3d.mesh.fusion import silhouettes
from im3d.mesh.fusion.distance import distance_to_false
from im3d.mesh.fusion.silhouettes import NEAREST, Grid
from im3d.splats import render
from im3d.splats.depth import DepthMaps
from im3d.splats.depth_numba import median_depth
from im3d.splats.gaussians import Gaussians

__all__ = [
    "blending_weights", "connected_to_corner", "dilated", "eroded", "fuse", "hull_field", "median_depth",
    "signed_distances", "smoothed",
]  # fmt: skip


def blending_weights(gaussians: Gaussians, cameras: Cameras) -> Tensor:
    return render.blending_weights(gaussians, cameras, "cpu")


def signed_distances(alpha: Tensor, limit: float) -> tuple[Tensor, float]:
    return torch.from_numpy(silhouettes.all_signed_distances(alpha.numpy())), np.inf


def hull_field(distances: Tensor, cameras: Cameras, grid: Grid, cut: float) -> Tensor:
    return torch.from_numpy(silhouettes.hull_field(distances.numpy(), cameras, grid, cut))


def dilated(mask: Tensor, steps: int, corners: bool = False) -> Tensor:
    structure = ndimage.generate_binary_structure(3, 3 if corners else 1)
    return torch.from_numpy(ndimage.binary_dilation(mask.numpy(), structure, steps))


def eroded(mask: Tensor, steps: int, border: bool) -> Tensor:
    return torch.from_numpy(ndimage.binary_erosion(mask.numpy(), iterations=steps, border_value=int(border)))


def connected_to_corner(mask: Tensor) -> Tensor:
    labels, _ = ndimage.label(mask.numpy())
    return torch.from_numpy(labels == labels[0, 0, 0])


def smoothed(volume: Tensor, deviation: float) -> Tensor:
    return torch.from_numpy(ndimage.gaussian_filter(volume.numpy(), deviation))


def fuse(
    maps: DepthMaps,
    cameras: Cameras,
    real: int,
    carves: NDArray[np.bool_],
    hull: Tensor,
    grid: Grid,
    truncation: float,
    occlusion_vote: float,
) -> Tensor:
    outside = np.stack(on_all_cores(distance_to_false, maps.alpha.numpy() < 0.5)) - 0.5
    is_real = np.arange(len(cameras)) < real
    values = _fuse_kernel(
        maps.depth.numpy(), maps.alpha.numpy(), np.maximum(outside, 0).astype(np.float32), maps.facing.numpy(),
        is_real, carves, cameras.viewmats, cameras.focal, cameras.size, hull.numpy(), grid.low, grid.step, truncation,
        occlusion_vote,
    )  # fmt: skip
    return torch.from_numpy(values)


@njit(parallel=True, fastmath=True, cache=True, error_model="numpy")
def _fuse_kernel(  # type: ignore[no-untyped-def]
    depth, alpha, outside, facing, real, carves, viewmats, f, size, hull, low, step, truncation, occlusion_vote
):  # fmt: skip
    n = len(hull)
    out = np.empty((n, n, n), np.float32)
    for x in prange(n):
        for y in range(n):
            for z in range(n):
                if hull[x, y, z] > truncation:
                    out[x, y, z] = 1.0
                    continue
                p0 = low[0] + x * step
                p1 = low[1] + y * step
                p2 = low[2] + z * step
                total = 0.0
                weight = 0.0
                for v in range(len(depth)):
                    u, w, pz = project_point(viewmats[v], f, size / 2 - 0.5, p0, p1, p2)
                    if pz < NEAREST:
                        continue
                    iu = round(u)
                    iw = round(w)
                    if iu < 0 or iw < 0 or iu >= size or iw >= size:
                        continue
                    if alpha[v, iw, iu] < 0.5:
                        if carves[v]:
                            total += min(1.0, outside[v, iw, iu] * pz / f / truncation)
                            weight += 1.0
                        continue
                    if not real[v] and facing[v, iw, iu] < 0.1:
                        continue
                    d = _depth_at(depth[v], u, w, iu, iw, size, truncation)
                    if d <= 0.0:
                        continue
                    s = (d - pz) / truncation
                    if s > -1.0:
                        total += min(s, 1.0)
                        weight += 1.0
                    else:
                        total -= occlusion_vote
                        weight += occlusion_vote
                out[x, y, z] = total / weight if weight > 0 else -1.0
    return out


@njit(inline="always")
def _depth_at(depth, u, w, iu, iw, size, truncation):  # type: ignore[no-untyped-def]
    """Bilinear depth, or the nearest pixel's where the four straddle a discontinuity."""
    i = min(max(int(u), 0), size - 2)
    j = min(max(int(w), 0), size - 2)
    d00 = depth[j, i]
    d10 = depth[j, i + 1]
    d01 = depth[j + 1, i]
    d11 = depth[j + 1, i + 1]
    if max(max(d00, d10), max(d01, d11)) - min(min(d00, d10), min(d01, d11)) > truncation:
        return depth[iw, iu]
    a = u - i
    b = w - j
    return (d00 * (1 - a) + d10 * a) * (1 - b) + (d01 * (1 - a) + d11 * a) * b
