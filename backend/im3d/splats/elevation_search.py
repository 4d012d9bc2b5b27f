"""How well the views agree with an assumed elevation of their cameras, measured by a short fit."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch

from im3d.core.images import OrbitViews
from im3d.core.progress import Progress, silent
from im3d.errors import InputError
from im3d.settings import FitSettings
from im3d.splats.fit import SplatFit
from im3d.splats.losses.image_losses import mask_loss, rgb_loss
from im3d.splats.render import render

# At 256 pixels a quarter of a degree shifts near parts against far ones by a quarter of a pixel, which can be measured;
# at 128 the error is twice as large.
TILT_FIT = FitSettings(
    iterations=400, size=256, ramp=0.3, points=5000, max_gaussians=10000, lpips=0.0, ms_ssim=0.0, rgb=2.0,
    views_per_iteration=2,
)  # fmt: skip
# Steps before the elevation becomes trainable (those at half the size), and its learning rates, in radians.
TILT_WARM_UP, TILT_RATES = 120, (1e-3, 3e-4, 1e-4)
# Estimates from masks are never further off; a fit that moves further has not found the elevation.
LARGEST_TILT_DEG = 3.0

# Small enough for two or three seconds on one core, large enough to distinguish elevations 5° apart.
SCORE_FIT = FitSettings(
    iterations=100, size=64, points=1500, max_gaussians=2500, densify_every=40, lpips=0.0, ms_ssim=0.0, rgb=1.0
)


def photometric_score(views: OrbitViews, iterations: int = SCORE_FIT.iterations, seed: int = 0) -> float:
    """Scores the elevation of the orbit: higher is better.

    Silhouettes of a round object fit many elevations; its colours, seen from all sides, fit one. The fit runs on the
    CPU and is deterministic.

    Args:
        views: Pictures, and cameras at the elevation to be scored.
        iterations: Optimiser steps.
        seed: Of the fit.

    Returns:
        Minus the remaining error: the mean over the views of the absolute colour error on white plus the squared mask
        error. −∞ where the silhouettes have no common volume.
    """
    settings = dataclasses.replace(SCORE_FIT, iterations=iterations)
    try:
        fit = SplatFit(views, settings, seed, torch.device("cpu"), "cpu", None)
    except InputError:
        return -math.inf
    fit.run(iterations)
    with torch.no_grad():
        rendered = render(fit.gaussians(), fit.cameras, "cpu")
        white = rendered.over(1.0).permute(0, 3, 1, 2)
        return -float(rgb_loss(white, fit.losses.images[1]) + mask_loss(rendered.alpha, fit.losses.alpha))


def refined_elevation(views: OrbitViews, seed: int = 0, progress: Progress = silent) -> float:
    """The elevation in degrees that explains the pictures best, near the orbit's own.

    Masks on a coarse grid give it to half a degree, an error that costs two decibels on objects with fine outlines.
    Here the elevation is fitted together with the splats. On the CPU, deterministic.

    Args:
        views: With an elevation.
        seed: Of the fit.
        progress: Called a few times a second.

    Returns:
        Degrees; the given elevation where the fit moves more than `LARGEST_TILT_DEG` from it.
    """
    given = views.orbit.elevation_deg
    assert given is not None
    try:
        fit = SplatFit(views, TILT_FIT, seed, torch.device("cpu"), "cpu", None)
    except InputError:
        return given
    fit.run(TILT_WARM_UP)
    ends = np.linspace(TILT_WARM_UP, TILT_FIT.iterations, len(TILT_RATES) + 1).astype(int)
    fit.learn_tilt(TILT_RATES[0])
    assert fit.tilt is not None
    for rate, until in zip(TILT_RATES, ends[1:], strict=True):
        fit.set_tilt_rate(rate)
        fit.run(int(until))
        progress(int(until), TILT_FIT.iterations)
    change = math.degrees(float(fit.tilt.detach()))
    return given + change if abs(change) <= LARGEST_TILT_DEG else given
