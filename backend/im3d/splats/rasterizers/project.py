"""Gaussians on the image plane: EWA projection as gsplat does it, differentiable, in plain torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from im3d.core.orbit import Cameras
from im3d.splats.gaussians import Gaussians

# The constants of gsplat's rasteriser; images and gradients agree only while these do.
EPS_2D = 0.3  # pixels² added to the screen covariance: a splat is never thinner than a pixel
NEAR = 0.01  # nearest depth that is rendered
MIN_ALPHA = 1 / 255  # contributions below are skipped
MAX_ALPHA = 0.999


@dataclass(frozen=True)
class Projected:
    """N Gaussians seen by one camera; from `project_views`, all but the opacities have a leading axis of C cameras.

    Attributes:
        means2d: (N, 2) centres in pixels; pixel centres lie at +0.5.
        conics: (N, 3) inverse screen covariance: xx, xy, yy.
        depths: (N,) depth of the centres along the optical axis.
        extents: (N, 2) half width and height of the box outside which a splat's alpha is below `MIN_ALPHA`.
        visible: (N,) bool, in front of the camera and touching the image.
        opacities: (N,) as given.
    """

    means2d: Tensor
    conics: Tensor
    depths: Tensor
    extents: Tensor
    visible: Tensor
    opacities: Tensor


def rotation_matrices(quats: Tensor) -> Tensor:
    """(N, 4) wxyz quaternions of any length → (N, 3, 3) rotations."""
    w, x, y, z = F.normalize(quats, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).view(-1, 3, 3)


def project_views(gaussians: Gaussians, cameras: Cameras) -> Projected:
    """Projects the Gaussians into all C cameras at once; gradients flow to means, quats, scales and opacities.

    The Jacobian of the perspective map is taken at the centre, clamped to 1.3 times the field of view as in 3DGS.
    """
    V = torch.from_numpy(cameras.viewmats).to(gaussians.device, non_blocking=True)
    R = V[:, :3, :3]
    f, size, shape = cameras.focal, cameras.size, (len(cameras), len(gaussians))
    turned = gaussians.means @ R.reshape(-1, 3).T
    p = turned.view(shape[1], shape[0], 3).transpose(0, 1) + V[:, None, :3, 3]
    z = p[..., 2].clamp_min(NEAR)
    limit = 1.3 * 0.5 * size / f
    x = z * (p[..., 0] / z).clamp(-limit, limit)
    y = z * (p[..., 1] / z).clamp(-limit, limit)
    zero = torch.zeros_like(z)
    J = torch.stack([f / z, zero, -f * x / z**2, zero, f / z, -f * y / z**2], dim=-1)
    # All rows of a camera's Jacobians in one product: thousands of small ones take many times as long on a GPU.
    JR = (J.view(shape[0], 2 * shape[1], 3) @ R).view(*shape, 2, 3)
    A = JR @ (rotation_matrices(gaussians.quats) * gaussians.scales[:, None, :])
    C = A @ A.transpose(-1, -2)
    xx, xy, yy = C[..., 0, 0] + EPS_2D, C[..., 0, 1], C[..., 1, 1] + EPS_2D
    det = xx * yy - xy * xy
    conics = torch.stack([yy / det, -xy / det, xx / det], dim=-1)
    means2d = torch.stack([f * p[..., 0] / z + size / 2, f * p[..., 1] / z + size / 2], dim=-1)
    with torch.no_grad():
        reach = (gaussians.opacities / MIN_ALPHA).clamp_min(1.0).log().mul(2).sqrt()
        extents = torch.stack([reach * xx.sqrt(), reach * yy.sqrt()], dim=-1)
        inside = ((means2d + extents > 0) & (means2d - extents < size)).all(dim=-1)
        visible = (p[..., 2] > NEAR) & (gaussians.opacities > MIN_ALPHA) & inside & (det > 0)
    return Projected(means2d, conics, p[..., 2], extents, visible, gaussians.opacities)
