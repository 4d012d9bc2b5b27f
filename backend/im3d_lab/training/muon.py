"""Muon (Jordan et al. 2024): momentum whose matrices are orthogonalised, for the weights inside a network's blocks.

torch's own takes matrices only; most of our weights are kernels of convolutions, which count as matrices of outputs by
all else. Steps are scaled to the size of AdamW's (Liu et al. 2025), so that both share one learning rate.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from im3d.core.devices import fast_in_half

# Coefficients of the quintic Newton–Schulz iteration: they push singular values to about 1, fast rather than exactly.
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
# Root mean square of AdamW's steps, in units of the learning rate.
ADAMW_RMS = 0.2


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, with decoupled weight decay.

    Args:
        params: Weights of two or more dimensions.
        lr: Learning rate, as AdamW's.
        momentum: Of the gradients.
        weight_decay: As AdamW's.

    Raises:
        ValueError: A parameter is no matrix.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        if any(p.ndim < 2 for group in self.param_groups for p in group["params"]):
            raise ValueError("Muon is for weights of two or more dimensions")

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step; parameters without a gradient stay."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            # Weights of one shape are orthogonalised together: many small products would wait for each other.
            for parameters in alike.values():
                self._step(parameters, group["lr"], group["momentum"], group["weight_decay"])

    def _step(self, parameters: list[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        for p in parameters:
            self.state[p].setdefault("momentum", torch.zeros_like(p))
        buffers = [self.state[p]["momentum"] for p in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, buffers, momentum)
        matrices = torch.stack([g.flatten(1) for g in ahead])
        scale = ADAMW_RMS * max(matrices.shape[1:]) ** 0.5
        updates = orthogonalised(matrices) * (-lr * scale)
        torch._foreach_mul_(parameters, 1 - lr * weight_decay)
        torch._foreach_add_(parameters, [u.view(p.shape) for u, p in zip(updates, parameters, strict=True)])


def orthogonalised(matrices: Tensor) -> Tensor:
    """(M, R, C) matrices with all singular values near 1 (between about 0.7 and 1.2), by Newton–Schulz."""
    a, b, c = QUINTIC
    x = matrices.to(torch.bfloat16 if fast_in_half(matrices.device) else matrices.dtype)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)
