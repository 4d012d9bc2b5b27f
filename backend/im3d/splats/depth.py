"""Depth maps of Gaussians, as surface extraction wants them; `depth_numba` and `depth_torch` render them.

The median depth is where half of a pixel's light is stopped: unlike the expected depth it does not lie between a front
and a back surface. Within one flat splat the depth varies over its footprint; taking the conditional mean of z at each
pixel instead of the centre's z keeps slanted surfaces smooth.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from im3d.core.orbit import Cameras
from im3d.splats.gaussians import Gaussians
from im3d.splats.rasterizers.project import rotation_matrices

FINISHED = 1e-3  # a tile is finished when the transmittance of all of its pixels is below this


@dataclass(frozen=True)
class DepthMaps:
    """C depth maps of S × S pixels, float32, on one device.

    Attributes:
        depth: (C, S, S) median depth along the optical axis in world units; 0 where less than half of the light is
            stopped.
        alpha: (C, S, S) coverage in [0, 1].
        facing: (C, S, S) mean cosine between the view and the direction from which the splats were seen by the input
            views: below 0, this camera looks at the back of what they saw.
    """

    depth: Tensor
    alpha: Tensor
    facing: Tensor


def depth_slopes(gaussians: Gaussians, conics: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """How a splat's conditional mean depth varies over its footprint.

    Args:
        gaussians: N splats.
        conics: (C, N, 3) inverse covariances on the screen, as projected.
        cameras: C cameras.

    Returns:
        (C, N, 2) change of depth per pixel in x and y, and (C, N) two standard deviations of the depth, the most that
        it may deviate from the centre's. World units.
    """
    V = torch.from_numpy(cameras.viewmats).to(gaussians.device)
    c, n = len(cameras), len(gaussians)
    px, py, pz = ((V[:, :3, :3].reshape(-1, 3) @ gaussians.means.T).view(c, 3, n) + V[:, :3, 3, None]).unbind(1)
    # Rows of a square root of each covariance in the camera's axes; all cameras in one product.
    root = (rotation_matrices(gaussians.quats) * gaussians.scales[:, None, :]).transpose(0, 1).reshape(3, -1)
    x, y, z = (V[:, :3, :3].reshape(-1, 3) @ root).view(c, 3, n, 3).unbind(1)
    xz, yz, zz = ((a * z).sum(dim=-1) for a in (x, y, z))
    # Covariance of depth with the two pixel coordinates, through the Jacobian of the perspective map.
    depth = pz.clamp_min(1e-6)
    with_x = cameras.focal * (xz / depth - px / depth**2 * zz)
    with_y = cameras.focal * (yz / depth - py / depth**2 * zz)
    aa, ab, bb = conics.unbind(-1)
    slopes = torch.stack([aa * with_x + ab * with_y, ab * with_x + bb * with_y], dim=-1)
    return slopes, 2 * zz.clamp_min(0).sqrt()


def seen_directions(gaussians: Gaussians, cameras: Cameras, weights: Tensor) -> Tensor:
    """(N, 3) mean unit direction from each splat to the cameras, weighted by how much each sees of it.

    Args:
        gaussians: N splats.
        cameras: C cameras.
        weights: (C, N) blending weights, on the device of the splats.
    """
    centres = torch.from_numpy(cameras.centres).to(gaussians.device)
    directions = F.normalize(centres[:, None] - gaussians.means, dim=-1)
    return F.normalize((weights[..., None] * directions).sum(dim=0), dim=-1)
