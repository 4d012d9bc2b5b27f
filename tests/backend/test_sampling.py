"""The sampler against diffusers' own, and the restart against an oracle."""

from __future__ import annotations

import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler

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


def test_each_step_is_one_evaluation() -> None:
    seen = []
    dpm_solver_2m(lambda x, s: x * 0, torch.ones(1), karras_sigmas(7, 0.1, 10.0), lambda i, n, d: seen.append((i, n)))
    assert seen == [(i, 7) for i in range(1, 8)]


def test_guidance_extrapolates_per_view() -> None:
    scale = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(guided(torch.ones(2), torch.zeros(2), scale), scale)
