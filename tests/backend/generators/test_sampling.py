"""The sampler against diffusers' own, and the restart against an oracle."""

from __future__ import annotations

import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler
from torch import Tensor

from im3d.generators.sampling import dpm_solver_2m, guided, karras_sigmas, noised, restart_sigmas


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
@pytest.mark.parametrize("steps", [3, 10, 20])
def test_dpm_solver_equals_diffusers(steps: int, sigma_data: float) -> None:
    scheduler = EDMDPMSolverMultistepScheduler(
        sigma_min=0.01, sigma_max=80.0, sigma_data=sigma_data, prediction_type="epsilon", final_sigmas_type="zero"
    )
    scheduler.set_timesteps(steps)
    sigmas = karras_sigmas(steps, 0.01, 80.0)
    torch.testing.assert_close(scheduler.sigmas, sigmas, rtol=1e-4, atol=1e-6)

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x / (1 + sigma)) + 0.1 * torch.sin(sigma.log())

    x = noised(torch.zeros(2, 3, 4, 4), sigmas[0], torch.Generator().manual_seed(0))
    theirs = x
    for i, t in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[i]
        # The scheduler wants F with D = c_skip·x + c_out·F; ours takes D.
        skip = sigma_data**2 / (sigma**2 + sigma_data**2)
        out = sigma * sigma_data / (sigma**2 + sigma_data**2) ** 0.5
        theirs = scheduler.step((denoise(theirs, sigma) - skip * theirs) / out, t, theirs).prev_sample
    torch.testing.assert_close(dpm_solver_2m(denoise, x, sigmas), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("noise", [0.1, 0.5, 1.0])
def test_restart_with_an_oracle_returns_the_truth(noise: float) -> None:
    truth = torch.rand(16, 4, 8, 8)
    sigmas = restart_sigmas(10, noise, 0.01, 80.0)
    x = noised(truth, sigmas[0], torch.Generator().manual_seed(1))
    assert (x - truth).std() == pytest.approx(float(sigmas[0]), rel=0.05)
    torch.testing.assert_close(dpm_solver_2m(lambda x, s: truth, x, sigmas), truth)


def test_restart_ladder_is_the_top_or_a_part_of_the_full_one() -> None:
    full = karras_sigmas(21, 0.01, 80.0)
    torch.testing.assert_close(restart_sigmas(21, 1.0, 0.01, 80.0), full)
    # Half of 20 intervals: the tail that begins at the ladder's middle level.
    torch.testing.assert_close(restart_sigmas(11, 0.5, 0.01, 80.0), full[10:], rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="noise"):
        restart_sigmas(5, 0.0, 0.01, 80.0)


# SV3D's ladder with 25 levels, to three digits (Karras et al. 2022, equation 5, computed apart).
LADDER_25 = (
    700, 546, 422, 322, 244, 183, 135, 98.3, 70.5, 49.8, 34.5, 23.5, 15.6, 10.1, 6.35, 3.87, 2.27, 1.27, 0.678, 0.339,
    0.157, 0.066, 0.025, 0.008, 0.002, 0,
)  # fmt: skip


def test_the_ladder_of_sv3d() -> None:
    # The lowest levels are given to fewer digits.
    torch.testing.assert_close(karras_sigmas(25, 0.002, 700.0), torch.tensor(LADDER_25), rtol=5e-3, atol=5e-4)


def diffusers_restart(scheduler: EDMDPMSolverMultistepScheduler, begin: int, z0: Tensor, noise: Tensor) -> Tensor:
    """Renders z0 noised to level `begin` of diffusers' ladder, and denoised down the rest of it by `shrinking`."""
    scheduler.set_begin_index(begin)
    x = z0 + scheduler.sigmas[begin] * noise
    for t in scheduler.timesteps[begin:]:
        sigma = torch.exp(4 * t)
        # The scheduler of v-prediction wants F with D = x/(σ² + 1) − σ/√(σ² + 1)·F.
        v = (x / (sigma**2 + 1) - shrinking(x, sigma)) * (sigma**2 + 1).sqrt() / sigma
        scheduler.scale_model_input(x, t)
        x = scheduler.step(v, t, x).prev_sample
    return x


def shrinking(x: Tensor, sigma: Tensor) -> Tensor:
    """A denoiser that answers differently at every x and σ."""
    return torch.tanh(x / (1 + sigma)) + 0.1 * torch.sin(sigma.log())


def sv3d_scheduler(steps: int, sigma_max: float = 700.0) -> EDMDPMSolverMultistepScheduler:
    scheduler = EDMDPMSolverMultistepScheduler(
        sigma_min=0.002, sigma_max=sigma_max, sigma_data=1.0, prediction_type="v_prediction"
    )
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("noise", [0.7, 0.5, 0.375, 0.2, 0.1])
def test_a_restart_is_diffusers_on_a_ladder_of_ten_from_the_restarts_noise(noise: float) -> None:
    z0, epsilon = torch.randn(2, 16, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    sigmas = restart_sigmas(10, noise, 0.002, 700.0)
    ours = dpm_solver_2m(shrinking, z0 + sigmas[0] * epsilon, sigmas)
    theirs = diffusers_restart(sv3d_scheduler(10, float(sigmas[0])), 0, z0, epsilon)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("begin", [0, 10, 15, 18])
def test_the_tail_of_a_ladder_is_diffusers_begun_there(begin: int) -> None:
    z0, epsilon = torch.randn(2, 16, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    sigmas = karras_sigmas(20, 0.002, 700.0)[begin:]
    ours = dpm_solver_2m(shrinking, z0 + sigmas[0] * epsilon, sigmas)
    theirs = diffusers_restart(sv3d_scheduler(20), begin, z0, epsilon)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_a_restart_from_the_top_is_ordinary_sampling() -> None:
    x = 700 * torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    whole = dpm_solver_2m(shrinking, x, karras_sigmas(10, 0.002, 700.0))
    torch.testing.assert_close(dpm_solver_2m(shrinking, x, restart_sigmas(10, 1.0, 0.002, 700.0)), whole)


def test_each_step_is_one_evaluation() -> None:
    seen = []
    dpm_solver_2m(lambda x, s: x * 0, torch.ones(1), karras_sigmas(7, 0.1, 10.0), lambda i, n, d: seen.append((i, n)))
    assert seen == [(i, 7) for i in range(1, 8)]


def test_guidance_extrapolates_per_view() -> None:
    scale = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(guided(torch.ones(2), torch.zeros(2), scale), scale)
