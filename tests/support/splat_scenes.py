"""Scenes and a dense reference renderer for the tests of the splats."""

from __future__ import annotations

import torch
from torch import Tensor

from im3d.core.orbit import Cameras
from im3d.splats.gaussians import Gaussians
from im3d.splats.rasterizers.project import MAX_ALPHA, MIN_ALPHA, Projected, project_views


def random_gaussians(count: int, spread: float, seed: int) -> Gaussians:
    """Random Gaussians in a ball of radius 0.5, sizes about `spread`; every tensor asks for its gradient."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    means = 0.5 * directions * torch.rand(count, 1, generator=generator) ** (1 / 3)
    tensors = (
        means,
        torch.randn(count, 4, generator=generator),
        spread * torch.exp(0.5 * torch.randn(count, 3, generator=generator)),
        0.05 + 0.9 * torch.rand(count, generator=generator),
        torch.rand(count, 3, generator=generator),
    )
    return Gaussians(*(t.requires_grad_() for t in tensors))


def project(gaussians: Gaussians, cameras: Cameras, index: int = 0) -> Projected:
    """The Gaussians as one camera sees them."""
    views = project_views(gaussians, cameras[index])
    return Projected(
        views.means2d[0], views.conics[0], views.depths[0], views.extents[0], views.visible[0], views.opacities
    )


def dense_render(gaussians: Gaussians, camera: Cameras) -> tuple[Tensor, Tensor]:
    """Every splat at every pixel in torch: premultiplied colour (S, S, 3) and coverage (S, S) of the first camera."""
    size = camera.size
    projected = project(gaussians, camera)
    order = torch.argsort(projected.depths, stable=True)
    order = order[projected.visible[order]]
    centres = torch.arange(size, device=gaussians.device) + 0.5
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    dx = x.reshape(1, -1) - projected.means2d[order, 0:1]
    dy = y.reshape(1, -1) - projected.means2d[order, 1:2]
    a, b, c = (projected.conics[order, k : k + 1] for k in range(3))
    alpha = gaussians.opacities[order, None] * torch.exp(-(0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy))
    alpha = alpha.clamp_max(MAX_ALPHA)
    alpha = torch.where(alpha >= MIN_ALPHA, alpha, torch.zeros_like(alpha))
    through = torch.cumprod(1 - alpha, dim=0)
    weights = alpha * torch.cat([torch.ones_like(through[:1]), through[:-1]])
    return (weights.T @ gaussians.colors[order]).view(size, size, 3), 1 - through[-1].view(size, size)
