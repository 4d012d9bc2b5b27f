"""The operations of depth fusion in plain torch, for a GPU; see `im3d.mesh.fusion.operations`.

Distances are exact up to a limit that the caller gives, and only known to be larger beyond it: a hull is cut a few
voxels from its surface, and an exact distance across the whole picture would take many times as long.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from im3d.core.orbit import Cameras
from im3d.mesh.fusion.silhouettes import NEAREST, SUBPIXELS, Grid, pixels_for
from im3d.mesh.fusion.volume_torch import connected_to_corner, dilated, eroded, smoothed
from im3d.splats.depth import DepthMaps
from im3d.splats.depth_torch import blending_weights, median_depth

__all__ = [
    "blending_weights", "connected_to_corner", "dilated", "eroded", "fuse", "hull_field", "median_depth",
    "signed_distances", "smoothed",
]  # fmt: skip

# Samples of silhouettes in a batch: their squared distances, read some hundred times, fit into the
# second-level cache of a large GPU. And voxels, so that memory stays below a gigabyte.
SAMPLES_AT_ONCE = 2**23
VOXELS_AT_ONCE = 2**23
# No camera is in front of the point: deep inside, as on the CPU.
UNJUDGED = -1e9


def distance_to_false(mask: Tensor, limit: int) -> Tensor:
    """`im3d.mesh.fusion.distance.distance_to_false` of each of C masks.

    Args:
        mask: (C, H, W) bool.
        limit: Samples up to which the distance is exact.

    Returns:
        (C, H, W) float32; where the distance is more than `limit`, anything more than that, at most limit + 1.
    """
    far = limit + 1
    rows = mask.transpose(0, 1)  # (H, C, W), so that the samples above and below are whole slices away
    width, index = mask.shape[2], torch.arange(mask.shape[2], dtype=torch.int32, device=mask.device)
    # Along each row: the last False sample before and the first one after.
    before = torch.where(rows, -far, index).cummax(dim=2).values
    after = torch.where(rows, width + far, index).flip(2).cummin(dim=2).values.flip(2)
    along = torch.minimum(index - before, after - index).clamp_max_(far)
    # Along each column: the least of d² + along² over the offsets d, by erosion with the odd numbers, whose sums are
    # the squares. The smaller the type, the faster.
    dtype = torch.int16 if far**2 + 2 * limit < 2**15 else torch.int32
    squares = torch.full((len(rows) + 2, *rows.shape[1:]), far**2, dtype=dtype, device=mask.device)
    above, here, below = squares[:-2], squares[1:-1], squares[2:]
    here.copy_(along * along)
    beside = torch.empty_like(here)
    for step in range(limit):
        torch.minimum(above, below, out=beside).add_(2 * step + 1)
        torch.minimum(here, beside, out=here)
    return here.transpose(0, 1).float().sqrt_()


def signed_distances(alpha: Tensor, limit: float) -> tuple[Tensor, float]:
    fine = alpha.shape[-1] * SUBPIXELS
    steps = min(int(limit * SUBPIXELS) + 2, 2 * fine)
    out = alpha.new_empty(len(alpha), fine, fine)
    group = max(1, SAMPLES_AT_ONCE // fine**2)
    for part, pictures in zip(out.split(group), alpha.split(group), strict=True):
        inside = _covered(pictures)
        distance = distance_to_false(~inside, steps) - distance_to_false(inside, steps)
        # Half a sample less: the line lies between an inner and an outer sample.
        torch.div(distance + inside.float().sub_(0.5), SUBPIXELS, out=part)
    return out, limit


def _covered(alpha: Tensor) -> Tensor:
    """Where bilinear coverage exceeds one half, at SUBPIXELS² places of every pixel."""
    size = alpha.shape[-1]
    x = ((torch.arange(size * SUBPIXELS, device=alpha.device) + 0.5) / SUBPIXELS - 0.5).clamp(0, size - 1)
    at = x.long().clamp_max(size - 2)
    share = x - at
    left, right = alpha[..., at], alpha[..., at + 1]
    rows = left + (right - left) * share
    above, below = rows[:, at], rows[:, at + 1]
    return above + (below - above) * share[:, None] > 0.5


def hull_field(distances: Tensor, cameras: Cameras, grid: Grid, cut: float) -> Tensor:
    steps = grid.step * np.arange(grid.n)
    axes = [torch.from_numpy(low + steps).float().to(distances.device) for low in grid.low]
    out = distances.new_full((grid.n, grid.n, grid.n), UNJUDGED)
    thickness = max(1, VOXELS_AT_ONCE // grid.n**2)
    for slab, x in zip(out.split(thickness), axes[0].split(thickness), strict=True):
        for image, V in zip(distances, cameras.viewmats.astype(np.float64), strict=True):
            torch.maximum(slab, _cone(image, V, cameras, x, axes[1], axes[2]), out=slab)
    return out


def _cone(image: Tensor, V: NDArray[np.float64], cameras: Cameras, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Signed distance (X, Y, Z), in world units, to the cone of one silhouette, at the points of a grid."""
    right, down, depth = (
        (float(row[0]) * x + float(row[3]))[:, None, None] + (float(row[1]) * y[:, None] + float(row[2]) * z)
        for row in V[:3]
    )
    ahead = depth.clamp_min(NEAREST)
    # Half of the picture is `size / 2 / focal` away from the axis at depth 1; grid_sample calls that 1.
    scale = 2 * cameras.focal / cameras.size
    at = torch.stack([right / ahead, down / ahead], dim=-1).mul_(scale)
    pixels = F.grid_sample(
        image[None, None], at.view(1, -1, len(z), 2), padding_mode="border", align_corners=False
    ).view(depth.shape)
    return torch.where(depth < NEAREST, UNJUDGED, pixels.mul_(depth).div_(cameras.focal))


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
    limit = math.ceil(pixels_for(truncation, cameras, grid))
    outside = (distance_to_false(maps.alpha < 0.5, limit) - 0.5).clamp_min_(0)
    values = torch.ones_like(hull)
    low = torch.from_numpy(grid.low).to(hull.device)
    for index in (hull <= truncation).nonzero().split(VOXELS_AT_ONCE):
        points = (low + grid.step * index.double()).float().T.contiguous()  # (3, P): each coordinate in one piece
        total, weight = torch.zeros_like(points[0]), torch.zeros_like(points[0])
        for k in range(len(cameras)):
            free = outside[k] if carves[k] else None
            _vote(points, maps, k, k < real, free, cameras, truncation, occlusion_vote, total, weight)
        values[tuple(index.T)] = torch.where(weight > 0, total / weight, -1.0)
    return values


def _vote(
    points: Tensor,
    maps: DepthMaps,
    k: int,
    real: bool,
    outside: Tensor | None,
    cameras: Cameras,
    truncation: float,
    occlusion_vote: float,
    total: Tensor,
    weight: Tensor,
) -> None:
    """Adds the weighted vote of camera k about the points to `total` and its weight to `weight`, both (P,).

    Args:
        points: (3, P) world positions.
        real: Whether it is an input view, which votes also where it sees back sides.
        outside: (S, S) pixels to its silhouette, if the camera may carve.
    """
    size, f, V = cameras.size, cameras.focal, cameras.viewmats[k].astype(np.float64)
    right, down, depth = (
        (points[0] * row[0]).add_(points[1], alpha=row[1]).add_(points[2], alpha=row[2]).add_(row[3])
        for row in V[:3].tolist()
    )
    ahead = depth.clamp_min(NEAREST)
    u = (right / ahead).mul_(f).add_(size / 2 - 0.5)
    w = (down / ahead).mul_(f).add_(size / 2 - 0.5)
    column, row = u.round(), w.round()
    judged = (depth >= NEAREST) & (column >= 0) & (row >= 0) & (column < size) & (row < size)
    pixel = (row.clamp(0, size - 1) * size + column.clamp(0, size - 1)).long()

    covered = maps.alpha[k].flatten()[pixel] >= 0.5
    d = _depth_at(maps.depth[k].flatten(), u, w, pixel, size, truncation)
    counted = judged & covered & (d > 0)
    if not real:
        counted &= maps.facing[k].flatten()[pixel] >= 0.1
    signed = (d - depth).div_(truncation)
    near = signed > -1
    vote = torch.where(near, signed.clamp_max(1.0), -occlusion_vote)
    confidence = torch.where(near, 1.0, occlusion_vote)
    if outside is not None:
        empty = judged & ~covered
        distance = outside.flatten()[pixel].mul_(depth).mul_(1 / (f * truncation))
        vote, confidence = torch.where(empty, distance.clamp_max_(1.0), vote), torch.where(empty, 1.0, confidence)
        counted |= empty
    total.add_(vote.masked_fill_(~counted, 0.0))
    weight.add_(confidence.masked_fill_(~counted, 0.0))


def _depth_at(image: Tensor, u: Tensor, w: Tensor, pixel: Tensor, size: int, truncation: float) -> Tensor:
    """Bilinear depth, or the nearest pixel's where the four straddle a discontinuity.

    Args:
        image: (S²,) depths.
        u, w: (P,) column and row, 0 at the centre of the first pixel; beyond the last centre depth is extrapolated.
        pixel: (P,) index of the nearest pixel.
    """
    i, j = u.trunc().clamp_(0, size - 2), w.trunc().clamp_(0, size - 2)
    corner = (j * size + i).long()
    d00, d10 = image[corner], image[1:][corner]
    d01, d11 = image[size:][corner], image[size + 1 :][corner]
    highest = torch.maximum(torch.maximum(d00, d10), torch.maximum(d01, d11))
    lowest = torch.minimum(torch.minimum(d00, d10), torch.minimum(d01, d11))
    a, b = u - i, w - j
    smooth = torch.lerp(torch.lerp(d00, d10, a), torch.lerp(d01, d11, a), b)
    return torch.where(highest - lowest > truncation, image[pixel], smooth)
