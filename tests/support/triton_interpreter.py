"""Run by a test in a process of its own: the Triton kernels, interpreted on the CPU, against torch and numba."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from im3d.splats.losses import (
    perceptual_numba,
    perceptual_triton,
    ssim_triton,
)
from im3d.splats.losses.image_losses import C1, C2, _similarity as similarity_of, gaussian_window, ssim_target
from im3d.splats.losses.perceptual import EPS, PACKED_UNIT, TINY, Features, Vgg16
from im3d.splats.losses.vgg16_triton import vgg16_distance
from im3d_lab.bench.fit import random_vgg16


def layer_distance(channels: int) -> dict[str, float]:
    """One layer's distance, of features one of which has no direction."""
    generator = torch.Generator().manual_seed(channels)
    targets = torch.randn(5, channels, 7, 9, generator=generator)
    packed = (targets / targets.norm(dim=1, keepdim=True) / PACKED_UNIT).round().to(torch.int16)
    rows = torch.tensor([3, 1])
    mine = torch.randn(2, channels, 7, 9, generator=generator).contiguous(memory_format=torch.channels_last)
    mine[:, :, 2, 3] = 0
    weight = torch.rand(channels, generator=generator)
    leaves = [mine.clone().requires_grad_() for _ in range(2)]
    theirs = packed.permute(0, 2, 3, 1).contiguous()
    kernel = perceptual_triton.layer_distance(leaves[0], theirs, rows, weight, PACKED_UNIT, TINY, EPS)
    reference = perceptual_numba.layer_distance(leaves[1], packed[rows], weight, PACKED_UNIT, TINY, EPS)
    return differences(3 * kernel, 3 * reference, leaves)


def vgg16(height: int, width: int) -> dict[str, float]:
    """The whole network, on sides that do not halve evenly too."""
    perceptual = random_vgg16(torch.device("cpu"))
    assert isinstance(perceptual.network, Vgg16)
    generator = torch.Generator().manual_seed(height)
    views, images = (torch.rand(count, 3, height, width, generator=generator) for count in (3, 2))
    rows = torch.tensor([2, 0])
    targets = perceptual.features(views).packed()
    leaves = [images.clone().requires_grad_() for _ in range(2)]
    kernel = vgg16_distance(
        leaves[0], perceptual.get_buffer("mean"), perceptual.get_buffer("std"), perceptual.network.convolutions,
        [layer.permute(0, 2, 3, 1).contiguous() for layer in targets.layers], rows,
        [perceptual.get_buffer(f"weight{i}") for i in range(5)], PACKED_UNIT, TINY, EPS,
    )  # fmt: skip
    reference = perceptual(leaves[1], Features([layer[rows].float() * PACKED_UNIT for layer in targets.layers]))
    return differences(3 * kernel, 3 * reference, leaves)


def similarity(luminance: bool) -> dict[str, float]:
    """One scale of MS-SSIM, in double precision by torch."""
    generator = torch.Generator().manual_seed(1)
    views, images = (torch.rand(count, 3, 37, 45, generator=generator) for count in (3, 2))
    rows = torch.tensor([2, 0])
    window = gaussian_window()
    upstream = torch.rand(2, 3, generator=generator, dtype=torch.float64)
    exact = ssim_target(views.double())
    leaves = [images.clone().requires_grad_(), images.double().requires_grad_()]
    theirs = [part[0].float().contiguous() for part in (exact.images, exact.means, exact.variances)]
    kernel = ssim_triton.similarity(leaves[0], *theirs, rows, window.float(), (C1, C2), luminance)
    of_rows = exact[rows]
    reference = similarity_of(leaves[1], of_rows.images[0], of_rows.means[0], of_rows.variances[0], luminance)
    return differences((kernel * upstream).sum(), (reference * upstream).sum(), leaves)


def differences(kernel: Tensor, reference: Tensor, leaves: list[Tensor]) -> dict[str, float]:
    """Relative differences of value and gradient."""
    kernel.backward()
    reference.backward()
    mine, theirs = (leaf.grad for leaf in leaves)
    assert mine is not None
    assert theirs is not None
    return {
        "value": float(((kernel - reference) / reference).detach().abs()),
        "gradient": float((mine - theirs).abs().max() / theirs.abs().max()),
    }


if __name__ == "__main__":
    answers = {f"layer of {c} channels": layer_distance(c) for c in (24, 64)}
    answers |= {f"VGG16, {h} by {w}": vgg16(h, w) for h, w in ((32, 48), (38, 52))}
    answers |= {"similarity": similarity(False), "similarity with luminance": similarity(True)}
    print(json.dumps(answers))
