"""SV3D's U-Net with its repeated blocks compiled: a third faster, after a wait.

Eager passes spend more than half of their time on norms, sums and copies, which a compiler fuses. Only the blocks are
compiled, those of equal shapes once: a minute and a half the first time on a machine. torch keeps the kernels on disk,
and a later process is ready in about ten seconds (docs/lab/performance.md has what was measured). Recording a pass as a
CUDA graph as well gained a hundredth, and would nail the weights to the GPU, so it is not done.
"""

from __future__ import annotations

import importlib.util

import torch
from diffusers.models.resnet import SpatioTemporalResBlock
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from torch import nn

REPEATED = (SpatioTemporalResBlock, TransformerSpatioTemporalModel)
# Blocks of one class differ in their channels and resolution, and torch would give up compiling after eight.
VARIANTS = 64


def unavailable_reason(device: torch.device) -> str:
    """Why blocks cannot be compiled for this device; "" when they can."""
    if device.type != "cuda":
        return "sv3d.compile is for NVIDIA GPUs."
    return "" if importlib.util.find_spec("triton") else "sv3d.compile needs Triton, which torch lacks here."


def compile_blocks(unet: nn.Module, backend: str = "inductor") -> int:
    """Has the repeated blocks compiled when they are next used; those that already are stay as they are.

    Args:
        unet: Any diffusers video U-Net.
        backend: Of `torch.compile`.

    Returns:
        How many blocks it has.
    """
    torch._dynamo.config.recompile_limit = max(VARIANTS, torch._dynamo.config.recompile_limit)
    blocks = [m for m in unet.modules() if isinstance(m, REPEATED)]
    for block in blocks:
        if block._compiled_call_impl is None:
            # Shapes are few and never change: general ones would compile longer and run slower.
            block.compile(dynamic=False, backend=backend)
    return len(blocks)
