"""Run by a test in a process of its own: the Triton kernel on the CPU, by Triton's interpreter, against numba's."""

from __future__ import annotations

import json

import torch

from im3d.splats import perceptual_cpu, perceptual_cuda
from im3d.splats.perceptual import EPS, PACKED_UNIT, TINY


def value_and_gradient(channels: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(channels)
    targets = torch.randn(5, channels, 7, 9, generator=generator)
    packed = (targets / targets.norm(dim=1, keepdim=True) / PACKED_UNIT).round().to(torch.int16)
    rows = torch.tensor([3, 1])
    mine = torch.randn(2, channels, 7, 9, generator=generator).contiguous(memory_format=torch.channels_last)
    mine[:, :, 2, 3] = 0  # a feature without direction
    weight = torch.rand(channels, generator=generator)
    leaves = [mine.clone().requires_grad_() for _ in range(2)]
    theirs = packed.permute(0, 2, 3, 1).contiguous()
    kernel = perceptual_cuda.layer_distance(leaves[0], theirs, rows, weight, PACKED_UNIT, TINY, EPS)
    reference = perceptual_cpu.layer_distance(leaves[1], packed[rows], weight, PACKED_UNIT, TINY, EPS)
    (3 * kernel).backward()
    (3 * reference).backward()
    difference = (leaves[0].grad - leaves[1].grad).abs().max() / leaves[1].grad.abs().max()
    return {"value": float((kernel - reference).abs() / reference), "gradient": float(difference)}


if __name__ == "__main__":
    print(json.dumps([value_and_gradient(channels) for channels in (24, 64)]))
