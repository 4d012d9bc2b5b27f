"""The losses of the fit (paper 3.3): renders against the views, with everything about the views computed once.

On a CPU the costly losses look only at the box about each object: outside it, render and view are the same background
(the mask loss sees to that everywhere), which the perceptual distance and MS-SSIM count as zero difference. Their means
are taken over the whole picture all the same. A GPU compares whole pictures, several at a time.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from im3d.settings import FitSettings
from im3d.splats.losses.image_losses import Box, SsimTarget, mask_loss, ms_ssim, rgb_loss, ssim_target
from im3d.splats.losses.perceptual import Features, Perceptual

# Both backgrounds must be explained, or a white object on white could stay transparent. Two, so that the features of
# the targets over each can be computed once.
BACKGROUNDS = (0.0, 1.0)
# Pixels of background kept about an object: no window of MS-SSIM that touches it is left out.
MARGIN = 16
# Sides of a box are multiples of this, so that the networks halve them without a remainder.
STEP = 16


class ViewLosses:
    """Weighted losses against the views of an orbit.

    Args:
        rgba: (K, S, S, 4) premultiplied views, on the device of the fit.
        settings: Their weights.
        perceptual: None when its weight is 0.

    Attributes:
        alpha: (K, S, S).
        images: (K, 3, S, S) over each of `BACKGROUNDS`.
    """

    def __init__(self, rgba: Tensor, settings: FitSettings, perceptual: Perceptual | None) -> None:
        self.settings = settings
        self.perceptual = perceptual
        self.alpha = rgba[..., 3]
        uncovered = 1 - self.alpha[..., None]
        self.images = [(rgba[..., :3] + uncovered * b).permute(0, 3, 1, 2).contiguous() for b in BACKGROUNDS]
        self.boxes = object_boxes(self.alpha) if rgba.device.type == "cpu" else None
        self._ssim: list[SsimTarget] = [ssim_target(i) for i in self.images] if settings.ms_ssim > 0 else []
        self._features = [self._features_of(i, perceptual) for i in self.images] if perceptual is not None else []

    def __call__(
        self, images: Tensor, alpha: Tensor, rows: list[int], background: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the weighted losses, and each of them by name without its gradient.

        Args:
            images: (V, 3, S, S) renders over the background.
            alpha: (V, S, S) their coverage.
            rows: Which views they show.
            background: Index into `BACKGROUNDS`.
        """
        weights = self.settings
        parts = {"mask": weights.mask * mask_loss(alpha, self.alpha[rows])}
        if weights.rgb > 0:
            parts["rgb"] = weights.rgb * rgb_loss(images, self.images[background][rows])
        if self._ssim:
            parts["ms_ssim"] = weights.ms_ssim * (1 - self.ms_ssim(images, rows, background))
        if self._features:
            parts["lpips"] = weights.lpips * self.distance(images, rows, background)
        return summed(parts)

    def ms_ssim(self, images: Tensor, rows: list[int], background: int) -> Tensor:
        """MS-SSIM of (V, 3, S, S) renders, mean over views."""
        target = self._ssim[background]
        if self.boxes is None:
            return ms_ssim(images, target[rows])
        values = [ms_ssim(images[i : i + 1], target[k : k + 1], self.boxes[k]) for i, k in enumerate(rows)]
        return torch.stack(values).mean()

    def distance(self, images: Tensor, rows: list[int], background: int) -> Tensor:
        """Perceptual distance of (V, 3, S, S) renders, mean over views."""
        assert self.perceptual is not None
        targets = self._features[background]
        if self.boxes is None:
            layers = zip(*(targets[k].layers for k in rows), strict=True)
            return self.perceptual(self._shrunk(images), Features([torch.cat(layer) for layer in layers]))
        parts = []
        for i, k in enumerate(rows):
            box = self.boxes[k]
            distance = self.perceptual(self._shrunk(images[i : i + 1, :, *box.slices]), targets[k])
            parts.append(distance * (box.area / self.alpha[0].numel()))
        return torch.stack(parts).mean()

    def _features_of(self, images: Tensor, perceptual: Perceptual) -> list[Features]:
        """Of each view; one at a time, because the activations of four of 512² would need a gigabyte."""
        found = []
        with torch.no_grad():
            for k in range(len(images)):
                shown = images[k : k + 1]
                if self.boxes is not None:
                    shown = shown[:, :, *self.boxes[k].slices]
                found.append(perceptual.features(self._shrunk(shown)).packed())
        return found

    def _shrunk(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) as the perceptual loss sees them."""
        factor = self.settings.lpips_shrink
        return F.avg_pool2d(images, factor) if factor > 1 else images


def summed(parts: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of losses, and each of them detached: as a number it would make the program wait for a GPU."""
    return torch.stack(list(parts.values())).sum(), {name: value.detach() for name, value in parts.items()}


def object_boxes(alpha: Tensor) -> list[Box]:
    """The box about the object in each of (K, S, S) coverages, with `MARGIN`; the whole picture where it is empty."""
    size = alpha.shape[-1]
    boxes = []
    for mask in (alpha > 0).numpy():
        sides = []
        for axis in (1, 0):
            (filled,) = np.nonzero(mask.any(axis=axis))
            first, last = (int(filled[0]), int(filled[-1])) if len(filled) else (0, size)
            low = max(0, first - MARGIN) // STEP * STEP
            high = min(size, -(-(last + 1 + MARGIN) // STEP) * STEP)
            sides += [low, high]
        boxes.append(Box(*sides))
    return boxes
