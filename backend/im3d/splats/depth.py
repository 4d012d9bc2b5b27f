"""Depth maps of Gaussians, as surface extraction wants them.

The median depth is where half of a pixel's light is stopped: unlike the expected depth it does not lie between a front
and a back surface. Within one flat splat the depth varies over its footprint; taking the conditional mean of z at each
pixel instead of the centre's z keeps slanted surfaces smooth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit, prange
from numpy.typing import NDArray
from torch import Tensor

from im3d.orbit import Cameras
from im3d.splats.gaussians import Gaussians
from im3d.splats.project import camera_covariance
from im3d.splats.project_cpu import project_fused
from im3d.splats.rasterize_cpu import TILE, bin_tiles

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class DepthMaps:
    """C depth maps.

    Attributes:
        depth: (C, S, S) median depth along the optical axis; 0 where less than half of the light is stopped.
        alpha: (C, S, S) coverage.
        facing: (C, S, S) mean cosine between the view and the direction from which the splats were seen by the input
            views: below 0, this camera looks at the back of what they saw.
    """

    depth: FloatArray
    alpha: FloatArray
    facing: FloatArray


def median_depth(gaussians: Gaussians, cameras: Cameras, seen_from: Tensor) -> DepthMaps:
    """Renders depth maps on the CPU.

    Args:
        gaussians: On the CPU.
        cameras: C cameras.
        seen_from: (N, 3) mean unit direction from each splat to the input cameras that see it.
    """
    size = cameras.size
    depth, alpha, facing = (np.zeros((len(cameras), size, size), np.float32) for _ in range(3))
    centres = torch.from_numpy(cameras.centres)
    with torch.no_grad():
        for k in range(len(cameras)):
            projected = project_fused(gaussians, cameras, k)
            tiles = bin_tiles(projected, size)
            slope, thickness = _depth_slope(gaussians, projected.conics, cameras, k)
            cosine = (F.normalize(centres[k] - gaussians.means, dim=1) * seen_from).sum(dim=1)
            arrays = (
                projected.means2d, projected.conics, gaussians.opacities, projected.depths, slope, thickness, cosine,
            )  # fmt: skip
            _depth_kernel(
                *(t.contiguous().numpy() for t in arrays), tiles.offsets, tiles.splats, tiles.per_side, size,
                depth[k], alpha[k], facing[k],
            )  # fmt: skip
    return DepthMaps(depth, alpha, facing)


def _depth_slope(gaussians: Gaussians, conics: Tensor, cameras: Cameras, k: int) -> tuple[Tensor, Tensor]:
    """Change of a splat's conditional mean depth per pixel (N, 2), and two standard deviations of its depth (N,)."""
    V = torch.from_numpy(cameras.viewmats[k])
    C = camera_covariance(gaussians, V)
    p = gaussians.means @ V[:3, :3].T + V[:3, 3]
    z = p[:, 2].clamp_min(1e-6)
    # Covariance of depth with the two pixel coordinates, through the Jacobian of the perspective map.
    with_x = cameras.focal * (C[:, 0, 2] / z - p[:, 0] / z**2 * C[:, 2, 2])
    with_y = cameras.focal * (C[:, 1, 2] / z - p[:, 1] / z**2 * C[:, 2, 2])
    slope = torch.stack(
        [conics[:, 0] * with_x + conics[:, 1] * with_y, conics[:, 1] * with_x + conics[:, 2] * with_y], dim=1
    )
    return slope, 2 * C[:, 2, 2].clamp_min(0).sqrt()


@njit(parallel=True, fastmath=True, cache=True, error_model="numpy")
def _depth_kernel(  # type: ignore[no-untyped-def]
    means, conics, opacities, depths, slope, thickness, cosine, offsets, splats, per_side, size, depth, alpha, facing
):  # fmt: skip
    for t in prange(per_side * per_side):
        for py in range(t // per_side * TILE, min(size, t // per_side * TILE + TILE)):
            for px in range(t % per_side * TILE, min(size, t % per_side * TILE + TILE)):
                T = 1.0
                median = 0.0
                turned = 0.0
                for s in range(offsets[t], offsets[t + 1]):
                    g = splats[s]
                    dx = px + 0.5 - means[g, 0]
                    dy = py + 0.5 - means[g, 1]
                    sigma = 0.5 * (conics[g, 0] * dx * dx + conics[g, 2] * dy * dy) + conics[g, 1] * dx * dy
                    if sigma > 6.0:
                        continue
                    a = min(0.999, opacities[g] * math.exp(-sigma))
                    if a < 1 / 255:
                        continue
                    if T > 0.5:
                        offset = slope[g, 0] * dx + slope[g, 1] * dy
                        median = depths[g] + min(max(offset, -thickness[g]), thickness[g])
                    turned += T * a * cosine[g]
                    T *= 1.0 - a
                    if T < 1e-3:
                        break
                alpha[py, px] = 1.0 - T
                depth[py, px] = median if T <= 0.5 else 0.0
                facing[py, px] = turned / max(1.0 - T, 1e-6)


def seen_directions(gaussians: Gaussians, cameras: Cameras, weights: Tensor) -> Tensor:
    """(N, 3) mean unit direction from each splat to the cameras, weighted by how much each sees of it.

    Args:
        weights: (C, N) from `blending_weights`.
    """
    directions = F.normalize(torch.from_numpy(cameras.centres)[:, None] - gaussians.means, dim=-1)
    return F.normalize((weights[..., None] * directions).sum(dim=0), dim=-1)
