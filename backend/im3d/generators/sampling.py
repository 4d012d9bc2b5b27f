"""Sampling with EDM noise levels: ladders, DPM-Solver++ (2M), renoising, and the restart of the paper's section 3.4.

Pictures carry noise as x = z + σ·ε (Karras et al. 2022); a denoiser D(x, σ) predicts z.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]
OnStep = Callable[[int, int, Tensor], None]

RHO = 7.0


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """The ladder from σ_max down to σ_min in `steps` levels, and a last one of 0: (steps + 1,) float32.

    Equation 5 of Karras et al. 2022 with ρ = 7.
    """
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / RHO), sigma_max ** (1 / RHO)
    return torch.cat([(high + ramp * (low - high)) ** RHO, torch.zeros(1, dtype=torch.float64)]).float()


def restart_sigmas(steps: int, noise: float, sigma_min: float, sigma_max: float) -> Tensor:
    """The ladder of a restart, from σ_r down: (steps + 1,) float32, the last 0.

    Args:
        steps: Network evaluations.
        noise: How far up the ladder σ_r lies, in (0, 1]: equal steps of σ^(1/ρ), as the ladder itself takes.
        sigma_min: Lowest level of the full ladder.
        sigma_max: Its highest.

    Raises:
        ValueError: `noise` is out of range.
    """
    if not 0 < noise <= 1:
        raise ValueError(f"noise must lie in (0, 1], not {noise}")
    low, high = sigma_min ** (1 / RHO), sigma_max ** (1 / RHO)
    return karras_sigmas(steps, sigma_min, (low + noise * (high - low)) ** RHO)


def noised(z: Tensor, sigma: float | Tensor, generator: torch.Generator | None = None) -> Tensor:
    """z + σ·ε: where a restart begins (paper 3.4). With z = 0, where an orbit from nothing begins."""
    noise = torch.randn(
        z.shape, generator=generator, dtype=torch.float32, device=generator.device if generator else z.device
    )
    return z + sigma * noise.to(z.device, z.dtype)


def guided(conditional: Tensor, unconditional: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance; `scale` may differ from view to view (SV3D's triangle)."""
    return unconditional + scale * (conditional - unconditional)


def dpm_solver_2m(denoise: Denoiser, x: Tensor, sigmas: Tensor, on_step: OnStep | None = None) -> Tensor:
    """DPM-Solver++ (2M), midpoint form, in the x = z + σ·ε parametrisation (Lu et al. 2022, algorithm 2).

    The first step and the step to σ = 0 are of first order, as in diffusers' EDMDPMSolverMultistepScheduler.

    Args:
        denoise: D(x, σ) with σ a scalar tensor.
        x: Pictures at noise level sigmas[0].
        sigmas: (N + 1,) falling levels; the last may be 0.
        on_step: Called with (steps done, N, denoised) after each evaluation.

    Returns:
        The pictures at sigmas[-1].
    """
    steps = len(sigmas) - 1
    previous: Tensor | None = None
    for i in range(steps):
        now, then = sigmas[i], sigmas[i + 1]
        denoised = denoise(x, now)
        direction = denoised
        if previous is not None and then > 0:
            # h = step in λ = −ln σ; the midpoint rule extrapolates D from the last two evaluations.
            ratio = torch.log(sigmas[i - 1] / now) / torch.log(now / then)
            direction = denoised + (denoised - previous) / (2 * ratio)
        shrink = then / now  # e^(−h)
        x = shrink * x + (1 - shrink) * direction
        previous = denoised
        if on_step is not None:
            on_step(i + 1, steps, denoised)
    return x


def renoised(
    denoise: Denoiser, x: Tensor, sigmas: Tensor, generator: torch.Generator | None, on_step: OnStep | None = None
) -> Tensor:
    """Each denoised picture gets fresh noise of the next level (Song et al. 2023, algorithm 1): few, coarse steps.

    A solver carries the errors of every step on; here the next step may correct them. The last step's denoised picture
    is the result.

    Args:
        denoise: D(x, σ) with σ a scalar tensor.
        x: Pictures at noise level sigmas[0].
        sigmas: (N + 1,) falling levels, the last 0.
        generator: Of the noise.
        on_step: Called with (steps done, N, denoised) after each evaluation.
    """
    steps = len(sigmas) - 1
    for i in range(steps):
        denoised = denoise(x, sigmas[i])
        if on_step is not None:
            on_step(i + 1, steps, denoised)
        if i + 1 < steps:
            x = noised(denoised, sigmas[i + 1], generator)
    return denoised
