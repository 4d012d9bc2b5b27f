"""The image losses of the fit other than the perceptual one (paper 3.3): MS-SSIM, masks, colours.

Targets do not change during a fit, so everything about them that a loss needs is computed once (`SsimTarget`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Wang et al. 2003: exponents of the scales, fine to coarse; window and constants of Wang et al. 2004.
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2
# Below this contrast similarity the product of scales would lose its gradient; see `_positive`.
KNEE = 0.02


@dataclass(frozen=True)
class Box:
    """Rows and columns of a picture, in pixels."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def area(self) -> int:
        return (self.bottom - self.top) * (self.right - self.left)


@dataclass(frozen=True)
class SsimTarget:
    """B target images and their local statistics at every scale.

    Attributes:
        images: Per scale (B, 3, H, W).
        means: Per scale, Gaussian-weighted local means.
        variances: Per scale, local variances.
    """

    images: list[Tensor]
    means: list[Tensor]
    variances: list[Tensor]

    def __getitem__(self, rows: Tensor | list[int] | slice) -> SsimTarget:
        return SsimTarget(*([t[rows] for t in part] for part in (self.images, self.means, self.variances)))


def scales_for(size: int) -> int:
    """How many of the five scales fit images of `size` pixels (all from 161 on): the coarsest must hold the window."""
    return max(1, min(len(SCALE_WEIGHTS), int(torch.tensor((size - 1) / (WINDOW - 1)).log2().item()) + 1))


def ssim_target(images: Tensor) -> SsimTarget:
    """Statistics of (B, 3, S, S) target images in [0, 1]."""
    pyramid = [images]
    for _ in range(scales_for(images.shape[-1]) - 1):
        pyramid.append(_downsampled(pyramid[-1]))
    means = [_blurred(x) for x in pyramid]
    variances = [_blurred(x * x) - m * m for x, m in zip(pyramid, means, strict=True)]
    return SsimTarget(pyramid, means, variances)


def ms_ssim(images: Tensor, target: SsimTarget, box: Box | None = None) -> Tensor:
    """Multi-scale structural similarity, mean over images and channels: 1 for equal images.

    Equal to `pytorch_msssim.ms_ssim(images, target, data_range=1)` wherever every scale's contrast similarity exceeds
    `KNEE`. Below, that one clamps to zero and its gradient vanishes (an inverted image cannot improve); here the
    similarity continues smoothly and stays positive. Images under 161 pixels use fewer scales, their exponents
    rescaled to the same sum.

    Args:
        images: (B, 3, S, S) in [0, 1].
        target: Of the same images' targets.
        box: Outside it images and targets are equal, and equal also in the ten pixels inside its border: the
            finest scale, which costs most, is computed only inside. At least 11 pixels wide.
    """

    def of_scale(scale: int, x: Tensor, last: bool) -> Tensor:
        y, mean_y, var_y = target.images[scale], target.means[scale], target.variances[scale]
        if box is not None and scale == 0:
            return _similarity_within(box, x, y, mean_y, var_y, luminance=last)
        return _similarity(x, y, mean_y, var_y, luminance=last)

    return ms_ssim_of(images, len(target.images), of_scale)


def ms_ssim_of(images: Tensor, scales: int, similarity: Callable[[int, Tensor, bool], Tensor]) -> Tensor:
    """MS-SSIM by a given similarity of one scale.

    Args:
        images: (B, 3, S, S) in [0, 1].
        scales: How many.
        similarity: Of a scale's number, the images at that scale, and whether it is the last, which adds the luminance
            term: (B, 3) mean similarity of each plane.
    """
    weights = [w / sum(SCALE_WEIGHTS[:scales]) * sum(SCALE_WEIGHTS) for w in SCALE_WEIGHTS[:scales]]
    product: Tensor | None = None
    x = images
    for scale in range(scales):
        if scale:
            x = _downsampled(x)
        factor = _positive(similarity(scale, x, scale == scales - 1)) ** weights[scale]
        product = factor if product is None else product * factor
    assert product is not None
    return product.mean()


def _similarity(x: Tensor, y: Tensor, mean_y: Tensor, var_y: Tensor, luminance: bool) -> Tensor:
    """(B, C) mean over each plane of the contrast-structure term, with `luminance` times the luminance term."""
    if x.device.type == "cpu" and x.dtype == torch.float32:
        from im3d.splats.losses import ssim_numba

        return ssim_numba.similarity(x, y, mean_y, var_y, gaussian_window().float(), luminance)
    # One filter call for the three maps that depend on x.
    mean_x, square, cross = _blurred(torch.cat([x, x * x, x * y], dim=1)).chunk(3, dim=1)
    value = (2 * (cross - mean_x * mean_y) + C2) / (square - mean_x * mean_x + var_y + C2)
    if luminance:
        value = value * (2 * mean_x * mean_y + C1) / (mean_x * mean_x + mean_y * mean_y + C1)
    return value.mean(dim=(2, 3))


def _similarity_within(box: Box, x: Tensor, y: Tensor, mean_y: Tensor, var_y: Tensor, luminance: bool) -> Tensor:
    """`_similarity` of pictures that are equal outside a box, where it is 1."""
    rows, columns = box.slices
    inner = slice(box.top, box.bottom - WINDOW + 1), slice(box.left, box.right - WINDOW + 1)
    x, y = x[:, :, rows, columns], y[:, :, rows, columns]
    value = _similarity(x, y, mean_y[:, :, *inner], var_y[:, :, *inner], luminance)
    share = (inner[0].stop - inner[0].start) * (inner[1].stop - inner[1].start) / mean_y[0, 0].numel()
    return 1 - share * (1 - value)


def mask_loss(alpha: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of coverages, any equal shapes."""
    return F.mse_loss(alpha, target)


def rgb_loss(images: Tensor, target: Tensor) -> Tensor:
    """Mean absolute colour difference, any equal shapes; the paper uses it only in its ablation (Table 2)."""
    return F.l1_loss(images, target)


def _positive(x: Tensor) -> Tensor:
    """x above `KNEE`; below, KNEE²/(2·KNEE − x): the same value and slope at the knee, positive, never flat."""
    return torch.where(x > KNEE, x, KNEE**2 / (2 * KNEE - x.clamp_max(KNEE)))


def _downsampled(x: Tensor) -> Tensor:
    """2 × 2 means; odd sides are padded as pytorch-msssim does."""
    return F.avg_pool2d(x, 2, padding=(x.shape[2] % 2, x.shape[3] % 2))


def _blurred(x: Tensor) -> Tensor:
    """Gaussian window over the inside of (B, C, H, W), as two products with a banded matrix: faster than a depthwise
    convolution on CPUs and GPUs alike at these sizes."""
    rows = _window_matrix(x.shape[2], x.device, x.dtype)
    columns = _window_matrix(x.shape[3], x.device, x.dtype)
    return rows @ (x @ columns.T)


@functools.lru_cache(maxsize=32)
def _window_matrix(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(size − WINDOW + 1, size): row i holds the window at i."""
    window = gaussian_window()
    matrix = torch.zeros(size - WINDOW + 1, size, dtype=torch.float64)
    for i in range(len(matrix)):
        matrix[i, i : i + WINDOW] = window
    return matrix.to(device, dtype)


def gaussian_window() -> Tensor:
    """(WINDOW,) float64 Gaussian of unit sum."""
    x = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    window = torch.exp(-(x**2) / (2 * SIGMA**2))
    return window / window.sum()
