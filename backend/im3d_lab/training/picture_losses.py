"""What views are compared by while `mini` is trained, beside their squared errors."""

from __future__ import annotations

import torch
from torch import Tensor

from im3d.splats.losses.perceptual import load_perceptual

# Both pictures lose as many rows and columns, at random sides: a network that halves its resolution sees every other
# pixel better, and a decoder would learn that pattern.
CUT = 8


def soft_iou_loss(alpha: Tensor, target: Tensor) -> Tensor:
    """1 − IoU of coverages (B, K, S, S), mean over views."""
    smaller, larger = torch.minimum(alpha, target).sum(dim=(2, 3)), torch.maximum(alpha, target).sum(dim=(2, 3))
    return (1 - smaller / larger.clamp_min(1.0)).mean()


class PictureDistance:
    """The fit's perceptual distance between views, which prefers a sharp picture to the conditional mean.

    Args:
        device: Where the views are.
    """

    def __init__(self, device: torch.device) -> None:
        self._perceptual = load_perceptual(device)

    def __call__(self, views: Tensor, target: Tensor, generator: torch.Generator) -> Tensor:
        """Mean distance of premultiplied RGBA (B, K, 4, S, S) in [0, 1] from the true views, over a random grey each.

        Args:
            views: The views.
            target: The true ones.
            generator: Of the greys and the cut, on the views' device.
        """
        size = views.shape[-1] - CUT
        top, left = torch.randint(CUT + 1, (2,), generator=generator, device=views.device).tolist()
        grey = torch.rand(views.shape[0] * views.shape[1], 1, 1, 1, generator=generator, device=views.device)

        def over_grey(rgba: Tensor) -> Tensor:
            cut = rgba[..., top : top + size, left : left + size].flatten(0, 1).float()
            return cut[:, :3] + grey * (1 - cut[:, 3:])

        with torch.autocast(views.device.type, enabled=False):
            with torch.no_grad():
                features = self._perceptual.features(over_grey(target))
            return self._perceptual(over_grey(views), features)
