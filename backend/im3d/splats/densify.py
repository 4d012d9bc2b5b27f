"""Densification and pruning (Kerbl et al. 2023) under a fixed budget, on gsplat's operations.

gsplat's own DefaultStrategy is not used: in 1.5.3 it never resets opacities, prunes large splats only after 3000
iterations and empties the CUDA cache at every pass. Its `strategy.ops` are plain torch, keep Adam's state in step with
the tensors, and run on any device.

Which splats grow is decided by rank, not by a gradient threshold: a threshold would have to be tuned again for every
mix of losses (LPIPS times 10 changes all gradients), and the time of a fit could not be predicted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DensifyPolicy:
    """When and how splats are added and removed.

    Attributes:
        start, stop: Passes take place between these shares of all iterations.
        growth: Splats that one pass adds at most, as a share of those present.
        max_gaussians: Hard cap.
        split_above: World size (largest standard deviation) above which a growing splat is split instead of cloned.
        min_opacity: Splats of lower opacity, in (0, 1), are removed.
        max_scale: Splats with a larger standard deviation, in world units, are removed.
        min_relative_gradient: Only splats whose view-space gradient exceeds this multiple of the mean grow.
        reset_every: Iterations between resets of all opacities, a multiple of those between passes; 0: never.
    """

    start: float = 0.08
    stop: float = 0.8
    growth: float = 0.15
    max_gaussians: int = 40000
    split_above: float = 0.01
    min_opacity: float = 0.01
    max_scale: float = 0.15
    min_relative_gradient: float = 1.0
    reset_every: int = 0


Parameters = dict[str, torch.nn.Parameter]
Optimizers = dict[str, torch.optim.Optimizer]


def new_statistics(count: int, device: torch.device) -> dict[str, Tensor]:
    """Accumulators of `count` splats, (N,) each: sum of view-space gradients, and how many views saw the splat."""
    return {"gradient": torch.zeros(count, device=device), "seen": torch.zeros(count, device=device)}


def densify_and_prune(
    parameters: Parameters, optimizers: Optimizers, statistics: dict[str, Tensor], policy: DensifyPolicy, seed: int
) -> dict[str, Tensor]:
    """One pass (Kerbl et al. 2023, 5.2): clones or splits the splats with the largest view-space gradients and removes
    faint and oversized ones. In place.

    Args:
        parameters: means, scales (log), quats, opacities (logit) and any other per-splat tensors.
        optimizers: One Adam for each parameter; its moments follow their splats, new splats start with zeros.
        statistics: From `new_statistics`, filled since the last pass.
        policy: The budget and the limits.
        seed: Of the positions of split splats.

    Returns:
        Fresh statistics.
    """
    from gsplat.strategy.ops import duplicate, remove, split

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        gradient = statistics["gradient"] / statistics["seen"].clamp_min(1)
        grow = _growing(gradient, policy)
        large = parameters["scales"].exp().amax(dim=1) > policy.split_above
        state: dict[str, Tensor] = {}
        # Clones are appended at the end, so the mask of the splits only has to be made longer.
        clone = grow & ~large
        if clone.any():
            duplicate(params=parameters, optimizers=optimizers, state=state, mask=clone)
        divide = torch.cat([grow & large, grow.new_zeros(int(clone.sum()))])
        if divide.any():
            split(params=parameters, optimizers=optimizers, state=state, mask=divide)
        useless = torch.sigmoid(parameters["opacities"]) < policy.min_opacity
        useless |= parameters["scales"].exp().amax(dim=1) > policy.max_scale
        if useless.any() and not useless.all():
            remove(params=parameters, optimizers=optimizers, state=state, mask=useless)
    means = parameters["means"]
    return new_statistics(len(means), means.device)


def _growing(gradient: Tensor, policy: DensifyPolicy) -> Tensor:
    """(N,) mask of the splats that may grow: those with the largest gradients (N,), within the budget."""
    room = min(int(len(gradient) * policy.growth), policy.max_gaussians - len(gradient))
    mask = torch.zeros_like(gradient, dtype=torch.bool)
    if room > 0:
        mask[gradient.topk(room).indices] = True
    return mask & (gradient > policy.min_relative_gradient * gradient.mean())


def reset_opacities(parameters: Parameters, optimizers: Optimizers, ceiling: float) -> None:
    """Lowers all opacities to at most `ceiling`, in (0, 1), and clears their moments (Kerbl et al. 2023, 5.2).

    Splats that the views do not need stay faint and are removed by the next pass.
    """
    from gsplat.strategy.ops import reset_opa

    reset_opa(params=parameters, optimizers=optimizers, state={}, value=ceiling)
