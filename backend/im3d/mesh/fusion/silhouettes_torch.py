"""Distances to silhouettes and the visual hull, as `im3d.mesh.fusion.silhouettes` defines them, in torch for a GPU.

Distances are exact up to a limit that the caller gives, and only known to be larger beyond it: a hull is cut a few
voxels from its surface, and an exact distance across the whole picture would take many times as long.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from im3d.core.orbit import Cameras
from im3d.mesh.fusion.silhouettes import SUBPIXELS, Grid

# Samples of silhouettes that are worked on at once: their squared distances, gone over some hundred times, fit into the
# second-level cache of a large GPU. And voxels, so that memory stays below a gigabyte.
SAMPLES_AT_ONCE = 2**23
VOXELS_AT_ONCE = 2**23
NEAR = 1e-3  # points nearer to a camera than this are not judged by it
# No camera has judged the point: deep inside, as the CPU says.
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


def signed_distances(alpha: Tensor, limit: float) -> Tensor:
    """`im3d.mesh.fusion.silhouettes.signed_distances` of C pictures.

    Args:
        alpha: (C, S, S) float32 coverage in [0, 1].
        limit: Pixels up to which the distance is exact on either side; beyond it is more than that.

    Returns:
        (C, SUBPIXELS·S, SUBPIXELS·S) pixels, positive outside.
    """
    fine = alpha.shape[-1] * SUBPIXELS
    steps = min(int(limit * SUBPIXELS) + 2, 2 * fine)
    out = alpha.new_empty(len(alpha), fine, fine)
    group = max(1, SAMPLES_AT_ONCE // fine**2)
    for part, pictures in zip(out.split(group), alpha.split(group), strict=True):
        inside = _covered(pictures)
        distance = distance_to_false(~inside, steps) - distance_to_false(inside, steps)
        # Half a sample less: the line lies between an inner and an outer sample.
        torch.div(distance + inside.float().sub_(0.5), SUBPIXELS, out=part)
    return out


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


def pixels_for(cut: float, cameras: Cameras, grid: Grid) -> float:
    """Pixels that `cut` world units measure at most, seen from any camera anywhere in the grid.

    Where a camera stands in the grid, more than a picture's diagonal.
    """
    low, side = grid.low, grid.step * (grid.n - 1)
    corners = np.array([low + side * np.array(c) for c in itertools.product((0, 1), repeat=3)])
    nearest = float(cameras.project(corners)[..., 2].min())
    everything = 1.5 * cameras.size
    # One more, because between the samples distances are interpolated.
    return min(cut * cameras.focal / nearest + 1, everything) if nearest > NEAR else everything


def hull_field(distances: Tensor, cameras: Cameras, grid: Grid) -> Tensor:
    """`im3d.mesh.fusion.silhouettes.hull_field`, exact as far as the distances are.

    Args:
        distances: (C, n, n) from `signed_distances`, in pixels.
        cameras: The C cameras.
        grid: Where to sample.

    Returns:
        (n, n, n) float32 world units, positive outside, indexed x, y, z.
    """
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
    ahead = depth.clamp_min(NEAR)
    # Half of the picture is `size / 2 / focal` away from the axis at depth 1; grid_sample calls that 1.
    scale = 2 * cameras.focal / cameras.size
    at = torch.stack([right / ahead, down / ahead], dim=-1).mul_(scale)
    pixels = F.grid_sample(
        image[None, None], at.view(1, -1, len(z), 2), padding_mode="border", align_corners=False
    ).view(depth.shape)
    return torch.where(depth < NEAR, UNJUDGED, pixels.mul_(depth).div_(cameras.focal))
