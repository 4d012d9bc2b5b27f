"""Rendering Gaussians with the rasteriser that the caller names."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from im3d.core.orbit import Cameras
from im3d.errors import Im3dError, InputError
from im3d.splats.gaussians import Gaussians
from im3d.splats.rasterizers import rasterize_gsplat, rasterize_warp

Rasterizer = Literal["cuda", "warp", "cpu"]


@dataclass(frozen=True)
class Rendered:
    """C images of the Gaussians.

    Attributes:
        rgb: (C, S, S, 3) premultiplied sRGB, on black.
        alpha: (C, S, S) coverage.
        means2d: Screen positions in pixels, (N, 2) for each camera; densification reads their `.grad`.
        visible: (C, N) bool.
    """

    rgb: Tensor
    alpha: Tensor
    means2d: tuple[Tensor, ...] | Tensor
    visible: Tensor

    def over(self, background: float | Tensor = 1.0) -> Tensor:
        """(C, S, S, 3) composited over a grey value or a colour (3,)."""
        return self.rgb + (1 - self.alpha[..., None]) * background

    def screen_gradients(self) -> Tensor:
        """(C, N) length of the loss gradient with respect to each splat's screen position, after `backward`."""
        if isinstance(self.means2d, Tensor):
            assert self.means2d.grad is not None
            return self.means2d.grad.norm(dim=-1)
        gradients = [m.grad for m in self.means2d]
        return torch.stack([g.norm(dim=-1) for g in gradients if g is not None])


def rasterizers() -> dict[Rasterizer, str]:
    """Every rasteriser and why it cannot run here; "" when it can."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {"cuda": rasterize_gsplat.unavailable_reason(), "warp": rasterize_warp.unavailable_reason(device), "cpu": ""}


def best_rasterizer(device: torch.device) -> Rasterizer:
    """The rasteriser for tensors on `device`: on a GPU gsplat's, or Warp's where gsplat cannot be compiled.

    Raises:
        InputError: The device is a GPU that no rasteriser can use; the message says why.
    """
    if device.type == "cpu":
        return "cpu"
    if device.type != "cuda":
        raise InputError(
            f"The splats cannot be rendered on {device}. There is no rasteriser for it.", "Use the device cpu."
        )
    reason = rasterize_gsplat.unavailable_reason()
    if not reason:
        return "cuda"
    second_reason = rasterize_warp.unavailable_reason("cuda")  # not before: it takes half a second
    if not second_reason:
        return "warp"
    raise InputError(
        f"The splats cannot be rendered on {device}. {reason} {second_reason}",
        "Use the device cpu, which needs no compiler.",
    )


def ready_rasterizer(device: torch.device) -> Rasterizer:
    """The `best_rasterizer`, its kernels loaded: gsplat's are compiled where that was not done before (minutes), and
    Warp's take their place if the compiler fails, which cannot be known before.

    Raises:
        InputError: As `best_rasterizer`.
        Im3dError: gsplat's kernels cannot be compiled, and Warp cannot run.
    """
    best = best_rasterizer(device)
    if best != "cuda":
        return best
    try:
        rasterize_gsplat.load_kernels()
    except Im3dError as error:
        if rasterize_warp.unavailable_reason("cuda"):
            raise
        logging.getLogger(__name__).warning("%s. Warp renders the splats instead.", error.message.rstrip("."))
        return "warp"
    return "cuda"


def render(
    gaussians: Gaussians,
    cameras: Cameras,
    rasterizer: Rasterizer,
    colors: Tensor | None = None,
    tilt: Tensor | None = None,
) -> Rendered:
    """Renders the Gaussians from C cameras, differentiably. Never substitutes another rasteriser.

    Args:
        gaussians: On the rasteriser's device.
        cameras: C cameras.
        rasterizer: "cuda" (gsplat) and "warp" run on a GPU, "cpu" on the processor; "warp" does too, slowly.
        colors: (N, 3) rendered instead of the Gaussians' own colours.
        tilt: () radians by which all cameras are raised; differentiable; "cpu" only.
    """
    if tilt is not None and rasterizer != "cpu":
        raise ValueError("only the CPU rasteriser raises cameras")
    colors = gaussians.colors if colors is None else colors
    if rasterizer != "cpu":
        rasterize = rasterize_gsplat.rasterize if rasterizer == "cuda" else rasterize_warp.rasterize
        rgb, transmittance, means2d, visible = rasterize(gaussians, cameras, colors)
        return Rendered(rgb, 1 - transmittance, means2d, visible)

    from im3d.splats.rasterizers import rasterize_numba
    from im3d.splats.rasterizers.project_numba import project_fused

    images, transmittances, projections = [], [], []
    for index in range(len(cameras)):
        projected = project_fused(gaussians, cameras, index, tilt)
        if projected.means2d.requires_grad:
            projected.means2d.retain_grad()
        image, through = rasterize_numba.rasterize(projected, colors, cameras.size)
        images.append(image)
        transmittances.append(through)
        projections.append(projected)
    return Rendered(
        torch.stack(images),
        1 - torch.stack(transmittances),
        tuple(p.means2d for p in projections),
        torch.stack([p.visible for p in projections]),
    )


def blending_weights(gaussians: Gaussians, cameras: Cameras, rasterizer: Rasterizer) -> Tensor:
    """(C, N) sum of the blending weights of each splat over the pixels of each image."""
    weights = []
    for index in range(len(cameras)):
        colors = gaussians.colors.detach().clone().requires_grad_(True)
        rendered = render(gaussians.detach(), cameras[index], rasterizer, colors)
        (gradient,) = torch.autograd.grad(rendered.rgb[..., 0].sum(), colors)
        weights.append(gradient[:, 0])
    return torch.stack(weights)
