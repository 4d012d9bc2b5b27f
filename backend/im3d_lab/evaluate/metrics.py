"""How alike pictures are."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from im3d.core.images import over
from im3d.splats.losses.perceptual import Perceptual

FloatArray = NDArray[np.float32]

# Identical pictures; a number keeps means and plots finite.
PSNR_CEILING = 100.0


def compare_views(mine: FloatArray, truth: FloatArray, perceptual: Perceptual) -> dict[str, float]:
    """Mean over C views of every picture metric.

    Args:
        mine: (C, S, S, 4) float32, straight alpha.
        truth: The same views as they should be.
        perceptual: Network of the perceptual distance.

    Returns:
        psnr: dB, on white.
        psnr_object: dB, on white, over the pixels that either picture covers by half or more.
        ssim: Wang et al. 2004, Gaussian window of σ 1.5, on white.
        lpips: Perceptual distance on white; `perceptual.name` says by which network.
        iou: Intersection over union of the silhouettes.
        worst_psnr, worst_iou: Of the worst view.
    """
    a, b = over(mine), over(truth)
    covered = (mine[..., 3] >= 0.5) | (truth[..., 3] >= 0.5)
    psnrs = [psnr(x, y) for x, y in zip(a, b, strict=True)]
    ious = [mask_iou(x, y) for x, y in zip(mine[..., 3], truth[..., 3], strict=True)]
    return {
        "psnr": float(np.mean(psnrs)),
        "psnr_object": float(np.mean([psnr(x[m], y[m]) for x, y, m in zip(a, b, covered, strict=True) if m.any()])),
        "ssim": float(np.mean([ssim(x, y) for x, y in zip(a, b, strict=True)])),
        "lpips": float(np.mean([lpips(x, y, perceptual) for x, y in zip(a, b, strict=True)])),
        "iou": float(np.mean(ious)),
        "worst_psnr": min(psnrs),
        "worst_iou": min(ious),
    }


def psnr(a: FloatArray, b: FloatArray) -> float:
    """Peak signal-to-noise ratio in dB of values in [0, 1], at most `PSNR_CEILING`."""
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return min(PSNR_CEILING, -10 * math.log10(error)) if error > 0 else PSNR_CEILING


def ssim(a: FloatArray, b: FloatArray) -> float:
    """Structural similarity (Wang et al. 2004) of two (S, S, 3) pictures in [0, 1], with the paper's window."""
    return float(
        structural_similarity(
            a, b, data_range=1.0, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
    )


def lpips(a: FloatArray, b: FloatArray, perceptual: Perceptual) -> float:
    """Perceptual distance of two (S, S, 3) pictures in [0, 1]; 0 for identical ones."""
    device = next(perceptual.network.parameters()).device
    x, y = (torch.from_numpy(np.ascontiguousarray(i.transpose(2, 0, 1)[None])).to(device) for i in (a, b))
    with torch.no_grad():
        # Rounding can leave a negative zero for identical pictures.
        return max(0.0, float(perceptual(x, perceptual.features(y))))


def mask_iou(a: FloatArray, b: FloatArray) -> float:
    """Intersection over union of two alphas cut at one half; 1 when both are empty."""
    x, y = a >= 0.5, b >= 0.5
    union = int((x | y).sum())
    return float((x & y).sum() / union) if union else 1.0
