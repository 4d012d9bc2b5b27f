"""Whether views agree with each other, without any truth: fit two halves apart and compare (MVGBench, Xie et al. 2025).

A generator's views are consistent when any half of them describes the same object. The odd and the even views are
fitted separately, and both results are rendered from the same new cameras.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray

from im3d.core.images import OrbitViews, over
from im3d.core.orbit import Cameras, Orbit, look_at_origin
from im3d.settings import FitSettings
from im3d.splats.fit import SplatFit
from im3d.splats.gaussians import Gaussians
from im3d.splats.losses.perceptual import Perceptual
from im3d.splats.render import best_rasterizer, render
from im3d_lab.evaluate.metrics import lpips, psnr, ssim

# Reference fit settings, which must not change with the settings under test. Colour and mask only: they measure the
# views, not a loss.
FIT = FitSettings(iterations=300, size=128, points=3000, max_gaussians=8000, lpips=0.0, ms_ssim=0.2, mask=1.0, rgb=1.0)


def with_losses_of(settings: FitSettings) -> FitSettings:
    """Reference fit settings with this job's loss weights."""
    weights = {name: getattr(settings, name) for name in ("lpips", "ms_ssim", "mask", "rgb")}
    return dataclasses.replace(FIT, **weights)


def self_consistency(
    views: OrbitViews, perceptual: Perceptual, seed: int = 0, settings: FitSettings = FIT
) -> dict[str, float]:
    """Agreement of the splats of the even views with those of the odd views, seen from between the views.

    Even true views give less than perfect numbers, because eight views do not fix an object: read them beside the
    oracle's.

    Args:
        views: K ≥ 4 views.
        perceptual: Network of the distance.
        seed: Of both fits.
        settings: Of both fits.

    Returns:
        The entries of `compare_halves`.
    """
    even, odd = (fit_half(views, start, seed, settings, perceptual) for start in (0, 1))
    return compare_halves(even, odd, cameras_between(views.orbit, FIT.size), perceptual)


def fit_half(
    views: OrbitViews, start: int, seed: int, settings: FitSettings = FIT, perceptual: Perceptual | None = None
) -> Gaussians:
    """The splats of every second view, beginning with `start`."""
    rows = slice(start, None, 2)
    orbit = dataclasses.replace(views.orbit, azimuths_deg=views.orbit.azimuths_deg[rows])
    device = torch.device("cpu")
    network = perceptual if settings.lpips else None
    fit = SplatFit(OrbitViews(views.rgba[rows], orbit), settings, seed, device, best_rasterizer(device), network)
    fit.run(settings.iterations)
    return fit.finished()


def compare_halves(a: Gaussians, b: Gaussians, cameras: Cameras, perceptual: Perceptual) -> dict[str, float]:
    """Mean over the cameras: psnr (dB), ssim, lpips between renders of `a` and of `b`; identical: 100, 1, 0."""
    pairs = list(zip(over(render_splats(a, cameras)), over(render_splats(b, cameras)), strict=True))
    return {
        "psnr": float(np.mean([psnr(x, y) for x, y in pairs])),
        "ssim": float(np.mean([ssim(x, y) for x, y in pairs])),
        "lpips": float(np.mean([lpips(x, y, perceptual) for x, y in pairs])),
    }


def cameras_between(orbit: Orbit, size: int) -> Cameras:
    """Cameras halfway between neighbours of the orbit, every second gap."""
    if orbit.elevation_deg is None:
        raise ValueError("the orbit's elevation is unknown")
    azimuths = np.unwrap(np.radians([*orbit.azimuths_deg, orbit.azimuths_deg[0]]))
    middles = np.degrees((azimuths[:-1] + azimuths[1:]) / 2)[::2]
    cameras = orbit.cameras(size)
    viewmats = np.stack([look_at_origin(float(a), orbit.elevation_deg, orbit.radius) for a in middles])
    return dataclasses.replace(cameras, viewmats=viewmats)


def render_splats(gaussians: Gaussians, cameras: Cameras) -> NDArray[np.float32]:
    """(C, S, S, 4) pictures of splats on the CPU, straight alpha."""
    with torch.no_grad():
        rendered = render(gaussians, cameras, best_rasterizer(torch.device("cpu")))
    alpha = rendered.alpha.clamp(0, 1)[..., None]
    colour = (rendered.rgb / alpha.clamp(min=1 / 255)).clamp(0, 1)
    return torch.cat([colour, alpha], dim=-1).numpy().astype(np.float32)
