"""The depth maps of `im3d.splats.depth` on the CPU, tile by tile, as its rasteriser works."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit, prange
from torch import Tensor

from im3d.core.orbit import Cameras
from im3d.splats import depth
from im3d.splats.depth import DepthMaps, depth_slopes
from im3d.splats.gaussians import Gaussians
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

F32 = np.float32
FINISHED = F32(depth.FINISHED)


def median_depth(gaussians: Gaussians, cameras: Cameras, seen_from: Tensor) -> DepthMaps:
    """Renders depth maps.

    Args:
        gaussians: N splats, on the CPU.
        cameras: C cameras.
        seen_from: (N, 3) mean unit direction from each splat to the input cameras that see it.
    """
    size = cameras.size
    maps = torch.zeros(3, len(cameras), size, size)
    centres = torch.from_numpy(cameras.centres)
    with torch.no_grad():
        for k in range(len(cameras)):
            projected = project_fused(gaussians, cameras, k)
            tiles = bin_tiles(projected, size)
            slope, deviation = depth_slopes(gaussians, projected.conics[None], cameras[k])
            cosine = (F.normalize(centres[k] - gaussians.means, dim=1) * seen_from).sum(dim=1)
            arrays = (
                projected.means2d, projected.conics, gaussians.opacities, projected.extents, projected.depths,
                slope[0], deviation[0], cosine,
            )  # fmt: skip
            _depth_kernel(
                *(t.contiguous().numpy() for t in arrays), tiles.offsets, tiles.splats, tiles.per_side,
                balanced(np.diff(tiles.offsets)), size, *maps[:, k].numpy(),
            )  # fmt: skip
    return DepthMaps(*maps)


@njit(parallel=True, fastmath=True, cache=True, error_model="numpy")
def _depth_kernel(  # type: ignore[no-untyped-def]
    means, conics, opacities, extents, depths, slope, deviation, cosine, offsets, splats, per_side, order, size,
    depth, alpha, facing,
):  # fmt: skip
    """Loops over whole rows of a tile, as `rasterize_numba._forward` does and for the same reason."""
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
            reach = deviation[g]
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
