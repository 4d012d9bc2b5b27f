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

from im3d.core.orbit import Cameras
from im3d.splats.gaussians import Gaussians
from im3d.splats.rasterizers.project import camera_covariance
from im3d.splats.rasterizers.project_numba import project_fused
from im3d.splats.rasterizers.rasterize_numba import (
    CHECK_EVERY,
    MAX_ALPHA,
    MAX_EXPONENT,
    MIN_ALPHA,
    TILE,
    balanced,
    bin_tiles,
    falloff,
)

FloatArray = NDArray[np.float32]
F32 = np.float32
FINISHED = F32(1e-3)  # a tile is finished when every pixel lets less than this through


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
                projected.means2d, projected.conics, gaussians.opacities, projected.extents, projected.depths, slope,
                thickness, cosine,
            )  # fmt: skip
            _depth_kernel(
                *(t.contiguous().numpy() for t in arrays), tiles.offsets, tiles.splats, tiles.per_side,
                balanced(np.diff(tiles.offsets)), size, depth[k], alpha[k], facing[k],
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
    means, conics, opacities, extents, depths, slope, thickness, cosine, offsets, splats, per_side, order, size,
    depth, alpha, facing,
):  # fmt: skip
    """Loops over whole rows of a tile, as `rasterize_cpu._forward` does and for the same reason."""
    for tile in prange(len(order)):
        t = order[tile]
        px0 = (t % per_side) * TILE
        py0 = (t // per_side) * TILE
        T = np.ones((TILE, TILE), np.float32)
        median = np.zeros((TILE, TILE), np.float32)
        turned = np.zeros((TILE, TILE), np.float32)
        checked = 0
        for s in range(offsets[t], offsets[t + 1]):
            g = splats[s]
            mx = means[g, 0] - F32(0.5) - F32(px0)
            my = means[g, 1] - F32(0.5) - F32(py0)
            a = F32(0.5) * conics[g, 0]
            b = conics[g, 1]
            c = F32(0.5) * conics[g, 2]
            o = opacities[g]
            z = depths[g]
            reach = thickness[g]
            turn = cosine[g]
            for y in range(max(0, math.ceil(my - extents[g, 1])), min(TILE, math.floor(my + extents[g, 1]) + 1)):
                dy = F32(y) - my
                Ty = T[y]
                My = median[y]
                Fy = turned[y]
                for x in range(TILE):
                    dx = F32(np.int32(x)) - mx
                    w = min(o * falloff(min((a * dx + b * dy) * dx + c * dy * dy, MAX_EXPONENT)), MAX_ALPHA)
                    w = w if w >= MIN_ALPHA else F32(0.0)
                    here = z + min(max(slope[g, 0] * dx + slope[g, 1] * dy, -reach), reach)
                    My[x] = here if Ty[x] > F32(0.5) and w > F32(0.0) else My[x]
                    Fy[x] += Ty[x] * w * turn
                    Ty[x] -= Ty[x] * w
            checked += 1
            if checked == CHECK_EVERY:
                checked = 0
                if T.max() < FINISHED:
                    break
        for y in range(min(TILE, size - py0)):
            for x in range(min(TILE, size - px0)):
                alpha[py0 + y, px0 + x] = F32(1.0) - T[y, x]
                depth[py0 + y, px0 + x] = median[y, x] if T[y, x] <= F32(0.5) else F32(0.0)
                facing[py0 + y, px0 + x] = turned[y, x] / max(F32(1.0) - T[y, x], F32(1e-6))


def seen_directions(gaussians: Gaussians, cameras: Cameras, weights: Tensor) -> Tensor:
    """(N, 3) mean unit direction from each splat to the cameras, weighted by how much each sees of it.

    Args:
        weights: (C, N) from `blending_weights`.
    """
    centres = torch.from_numpy(cameras.centres).to(gaussians.device)
    directions = F.normalize(centres[:, None] - gaussians.means, dim=-1)
    return F.normalize((weights[..., None] * directions).sum(dim=0), dim=-1)
