"""How well the views agree with the cameras they are said to have, told by a short fit."""

from __future__ import annotations

import dataclasses
import math

import torch

from im3d.errors import InputError
from im3d.images import OrbitViews
from im3d.settings import FitSettings
from im3d.splats.fit import SplatFit
from im3d.splats.losses import mask_loss, rgb_loss
from im3d.splats.render import render

# Small enough for two or three seconds on one core, large enough to tell elevations 5° apart.
SCORE_FIT = FitSettings(
    iterations=100, size=64, points=1500, max_gaussians=2500, refine_every=40, lpips=0.0, ms_ssim=0.0, rgb=1.0
)


def photometric_score(views: OrbitViews, iterations: int = SCORE_FIT.iterations, seed: int = 0) -> float:
    """Scores the elevation that the orbit claims: higher is better.

    Silhouettes of a round object fit many elevations; its colours, seen to turn, fit one. The fit runs on the CPU and
    is deterministic.

    Args:
        views: Pictures and the hypothesis about their cameras.
        iterations: Optimiser steps.
        seed: Of the fit.

    Returns:
        Minus what the fit leaves unexplained: the mean over the views of the absolute colour error on white plus the
        squared mask error. Minus infinity where the silhouettes have no common volume.
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
        return -float(rgb_loss(white, fit.targets.images[1]) + mask_loss(rendered.alpha, fit.targets.alpha))
