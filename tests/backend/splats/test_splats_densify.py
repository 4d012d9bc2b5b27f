"""Growing and pruning: what happens to the splats and to Adam's moments."""

from __future__ import annotations

import math

import pytest
import torch
from splat_scenes import random_gaussians
from torch import Tensor

from im3d.splats.densify import (
    DensifyPolicy,
    Optimizers,
    Parameters,
    densify_and_prune,
    new_statistics,
    reset_opacities,
)

COUNT = 40
SMALL, LARGE = 0.005, 0.02
POLICY = DensifyPolicy(growth=0.1, min_relative_gradient=0.0)


def trained() -> tuple[Parameters, Optimizers]:
    """Splats after three optimiser steps with different gradients, all small, opacities 0.5."""
    g = random_gaussians(COUNT, 0.05, seed=0).detach()
    values = {
        "means": g.means,
        "scales": torch.full((COUNT, 3), math.log(SMALL)),
        "quats": g.quats,
        "opacities": torch.zeros(COUNT),
        "colors": g.colors,
    }
    parameters = {k: torch.nn.Parameter(v.clone()) for k, v in values.items()}
    optimizers: Optimizers = {k: torch.optim.Adam([p], lr=1e-6, fused=True) for k, p in parameters.items()}
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for name, parameter in parameters.items():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizers[name].step()
    return parameters, optimizers


def statistics(hardest: list[int]) -> dict[str, Tensor]:
    result = new_statistics(COUNT, torch.device("cpu"))
    result["seen"] += 2
    result["gradient"] += 0.1
    result["gradient"][hardest] = 10.0
    return result


def moments(optimizers: Optimizers, parameters: Parameters, name: str) -> tuple[Tensor, Tensor]:
    state = optimizers[name].state[parameters[name]]
    return state["exp_avg"], state["exp_avg_sq"]


def rows_of(parameters: Parameters, means: Tensor) -> Tensor:
    """For each of `means`, the row that holds exactly this position."""
    equal = (parameters["means"].detach()[None] == means[:, None]).all(dim=2)
    return equal.float().argmax(dim=1)


def test_small_splats_are_cloned_and_moments_follow_their_splats() -> None:
    parameters, optimizers = trained()
    before = {k: p.detach().clone() for k, p in parameters.items()}
    old = {k: [m.clone() for m in moments(optimizers, parameters, k)] for k in parameters}
    parameters["opacities"].data[7] = -10.0  # to be removed, so that rows shift
    densify_and_prune(parameters, optimizers, statistics([3, 11, 20, 39]), POLICY, seed=0)
    assert len(parameters["means"]) == COUNT + 4 - 1
    kept = torch.tensor([i for i in range(COUNT) if i != 7])
    new_rows = rows_of(parameters, before["means"][kept])
    for name in parameters:
        assert optimizers[name].param_groups[0]["params"][0] is parameters[name]
        for mine, theirs in zip(moments(optimizers, parameters, name), old[name], strict=True):
            assert len(mine) == len(parameters["means"])
            torch.testing.assert_close(mine[new_rows], theirs[kept], rtol=0, atol=0)
            fresh = torch.ones(len(mine), dtype=torch.bool)
            fresh[new_rows] = False
            assert not mine[fresh].any()
    clones = parameters["means"].detach()[-4:]
    torch.testing.assert_close(clones, before["means"][[3, 11, 20, 39]], rtol=0, atol=0)


def test_large_splats_are_split_into_two_smaller_ones_inside_them() -> None:
    parameters, optimizers = trained()
    parameters["scales"].data[5] = math.log(LARGE)
    parent = parameters["means"].detach()[5].clone()
    densify_and_prune(parameters, optimizers, statistics([5]), POLICY, seed=0)
    assert not (parameters["means"].detach() == parent).all(dim=1).any()
    near = (parameters["means"].detach() - parent).norm(dim=1) < 5 * LARGE
    shrunk = (parameters["scales"].detach() - math.log(LARGE / 1.6)).abs().amax(dim=1) < 1e-5
    assert int((near & shrunk).sum()) == 2


def test_growth_is_bounded_by_rank_and_by_the_cap() -> None:
    parameters, optimizers = trained()
    densify_and_prune(parameters, optimizers, statistics(list(range(30))), POLICY, seed=0)
    assert len(parameters["means"]) == COUNT + 4  # a tenth, although 30 pull hard
    parameters, optimizers = trained()
    capped = DensifyPolicy(growth=0.5, min_relative_gradient=0.0, max_gaussians=COUNT + 2)
    densify_and_prune(parameters, optimizers, statistics(list(range(30))), capped, seed=0)
    assert len(parameters["means"]) == COUNT + 2


def test_the_gradient_is_the_mean_over_the_views_that_saw_a_splat() -> None:
    parameters, optimizers = trained()
    seen = statistics([4])
    seen["gradient"][9], seen["seen"][9] = 6.0, 1  # 6 a view, against 5 for splat 4
    position = parameters["means"].detach()[9].clone()
    densify_and_prune(parameters, optimizers, seen, DensifyPolicy(growth=1 / COUNT, min_relative_gradient=0.0), seed=0)
    torch.testing.assert_close(parameters["means"].detach()[-1], position, rtol=0, atol=0)


def test_faint_and_oversized_splats_are_removed_but_never_all() -> None:
    parameters, optimizers = trained()
    parameters["scales"].data[2] = math.log(0.5)
    parameters["opacities"].data[8] = torch.logit(torch.tensor(0.005))
    doomed = parameters["means"].detach()[[2, 8]].clone()
    densify_and_prune(parameters, optimizers, statistics([]), DensifyPolicy(growth=0.0), seed=0)
    assert len(parameters["means"]) == COUNT - 2
    assert not (parameters["means"].detach()[:, None] == doomed).all(dim=2).any()
    parameters["opacities"].data.fill_(-20.0)
    densify_and_prune(
        parameters, optimizers, new_statistics(COUNT - 2, torch.device("cpu")), DensifyPolicy(growth=0.0), seed=0
    )
    assert len(parameters["means"]) == COUNT - 2


def test_a_pass_depends_on_its_seed_alone() -> None:
    results = []
    for seed, disturbance in ((1, 0), (1, 5), (2, 0)):
        parameters, optimizers = trained()
        parameters["scales"].data[5] = math.log(LARGE)
        torch.manual_seed(disturbance)
        state = torch.get_rng_state()
        densify_and_prune(parameters, optimizers, statistics([5]), POLICY, seed)
        assert torch.equal(torch.get_rng_state(), state)
        results.append(parameters["means"].detach())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_resetting_opacities_lowers_them_and_forgets_their_moments() -> None:
    parameters, optimizers = trained()
    parameters["opacities"].data[0] = -6.0
    reset_opacities(parameters, optimizers, ceiling=0.02)
    opacities = torch.sigmoid(parameters["opacities"].detach())
    assert float(opacities[0]) == pytest.approx(1 / (1 + math.exp(6)), rel=1e-4)
    torch.testing.assert_close(opacities[1:], torch.full((COUNT - 1,), 0.02))
    assert not any(m.any() for m in moments(optimizers, parameters, "opacities"))
    assert moments(optimizers, parameters, "means")[0].any()
    parameters["opacities"].grad = torch.ones(COUNT)
    optimizers["opacities"].step()
    assert (parameters["opacities"].detach() != torch.logit(opacities)).all()  # the optimiser drives the new tensor
