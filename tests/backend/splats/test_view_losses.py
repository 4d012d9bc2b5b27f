"""The fit's losses with targets computed once: packed features, and boxes about the objects."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import analytic
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from im3d.core.images import premultiplied
from im3d.models import efficientnet
from im3d.settings import FitSettings
from im3d.splats.losses import perceptual, perceptual_numba, view_losses
from im3d.splats.losses.image_losses import Box, ms_ssim, ssim_target
from im3d.splats.losses.view_losses import BACKGROUNDS, ViewLosses, object_boxes
from im3d.splats.losses.view_losses_graph import CudaViewLosses
from im3d_lab.bench.fit import random_vgg16

SIZE = 192


def small_object(shift: int = 0) -> Tensor:
    """(1, S, S, 4) premultiplied: a striped disc at the upper left of an empty picture."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    inside = ((x - 70 - shift) ** 2 + (y - 60) ** 2 < 24**2).float()
    stripes = torch.stack([(x // 4 % 2).float(), (y // 6 % 2).float(), ((x + y) // 9 % 2).float()], dim=-1)
    return torch.cat([stripes * 0.6 + 0.2, torch.ones(SIZE, SIZE, 1)], dim=-1)[None] * inside[None, ..., None]


def over(rgba: Tensor, background: float) -> Tensor:
    return (rgba[..., :3] + (1 - rgba[..., 3:]) * background).permute(0, 3, 1, 2).contiguous()


def value_and_gradient(value: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return value.detach(), torch.autograd.grad(value, x)[0]


def test_a_layers_distance_equals_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    mine, theirs = (torch.rand(2, 24, 7, 9, generator=generator) for _ in range(2))
    mine[0, :, 2, 3] = 0  # no direction there, so no gradient
    weight = torch.rand(24, generator=generator)
    unit = theirs / theirs.norm(dim=1, keepdim=True)
    packed = perceptual.Features([unit]).packed().layers[0]
    constants = (perceptual.PACKED_UNIT, perceptual.TINY, perceptual.EPS)
    mine.requires_grad_()
    value, gradient = value_and_gradient(perceptual_numba.layer_distance(mine, packed, weight, *constants), mine)

    x = mine.detach().double().requires_grad_()
    length = x.square().sum(dim=1, keepdim=True).clamp_min(perceptual.TINY).sqrt() + perceptual.EPS
    difference = x / length - packed.double() * perceptual.PACKED_UNIT
    expected = (weight.double()[:, None, None] * difference.square()).sum(dim=1).mean()
    value64, gradient64 = value_and_gradient(expected, x)
    assert float(value) == pytest.approx(float(value64), rel=1e-5)
    known = torch.ones(2, 1, 7, 9, dtype=torch.bool)
    known[0, :, 2, 3] = False
    torch.testing.assert_close(gradient.double() * known, gradient64 * known, rtol=1e-4, atol=1e-7)


def test_packed_features_give_the_same_loss() -> None:
    network = perceptual.load_perceptual(torch.device("cpu"))
    y, x = over(small_object(), 1.0), over(small_object(3), 1.0).requires_grad_()
    target = network.features(y)
    value, gradient = value_and_gradient(network(x, target.packed()), x)
    expected, expected_gradient = value_and_gradient(network(x, target), x)
    assert float(value) == pytest.approx(float(expected), rel=1e-4)
    assert (gradient - expected_gradient).norm() / expected_gradient.norm() < 1e-3


@pytest.mark.parametrize("size", [32, 33])
@pytest.mark.parametrize("kernel", [3, 5])
def test_a_convolution_pads_as_tensorflow_does(kernel: int, size: int) -> None:
    layer = efficientnet._SameConv(4, 6, kernel, 2)
    x = torch.rand(1, 4, size, size)
    total = (-(-size // 2) - 1) * 2 + kernel - size
    padded = F.pad(x, (total // 2, total - total // 2) * 2)
    torch.testing.assert_close(layer(x), F.conv2d(padded, layer.weight, layer.bias, stride=2), rtol=1e-5, atol=1e-5)


def test_a_box_holds_its_object_with_room() -> None:
    rgba = small_object()
    (box,) = object_boxes(rgba[..., 3])
    assert (box.top, box.bottom, box.left, box.right) == (16, 112, 16, 112)
    assert object_boxes(torch.zeros(1, SIZE, SIZE)) == [Box(0, SIZE, 0, SIZE)]


def test_ms_ssim_within_the_box_is_that_of_the_picture() -> None:
    y, x = over(small_object(), 1.0), over(small_object(2), 1.0).requires_grad_()
    (box,) = object_boxes(small_object()[..., 3])
    value, gradient = value_and_gradient(ms_ssim(x, ssim_target(y), box), x)
    expected, expected_gradient = value_and_gradient(ms_ssim(x, ssim_target(y)), x)
    assert float(expected) < 0.99
    assert float(value) == pytest.approx(float(expected), abs=5e-6)
    # Outside the box the whole picture's loss has a small gradient too; the mask loss speaks there.
    inside = np.s_[:, :, box.top + 5 : box.bottom - 5, box.left + 5 : box.right - 5]
    torch.testing.assert_close(gradient[inside], expected_gradient[inside], rtol=1e-3, atol=1e-7)


def test_the_perceptual_distance_within_the_box_is_that_of_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view_losses, "MARGIN", 48)  # more than the features look around; 16 is nearly as good
    network = perceptual.load_perceptual(torch.device("cpu"))
    losses = ViewLosses(small_object(), FitSettings(ms_ssim=0.0), network)
    for background, shade in enumerate(BACKGROUNDS):
        x, y = over(small_object(2), shade), over(small_object(), shade)
        expected = float(network(x, network.features(y)))
        assert float(losses.distance(x, [0], background)) == pytest.approx(expected, rel=1e-3)


def test_every_loss_is_taken_against_the_views_named() -> None:
    views = analytic.orbit_views(64, count=4)
    rgba = torch.from_numpy(premultiplied(views.rgba))
    losses = ViewLosses(rgba, FitSettings(rgb=1.0), perceptual.load_perceptual(torch.device("cpu")))
    rows = [3, 1]
    total, right = losses(over(rgba, 1.0)[rows], rgba[rows][..., 3], rows, 1)
    _, wrong = losses(over(rgba, 1.0)[[1, 3]], rgba[[1, 3]][..., 3], rows, 1)
    assert set(right) == {"mask", "rgb", "ms_ssim", "lpips"}
    torch.testing.assert_close(total, sum(right.values()))
    for name, value in right.items():
        assert float(value) < 1e-4
        assert float(wrong[name]) > 1e-3


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="Triton is not installed")
def test_the_triton_kernels_compute_what_torch_and_numba_do() -> None:
    script = Path(__file__).parents[2] / "support" / "triton_interpreter.py"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 6
    for name, differences in found.items():
        assert differences["value"] < 1e-5, name
        assert differences["gradient"] < 1e-5, name


def test_the_losses_of_a_gpu_are_those_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here on the processor and launched one by one; tests/backend/splats/test_splats_cuda.py records them."""
    monkeypatch.setattr(view_losses, "object_boxes", lambda alpha: None)
    views = analytic.orbit_views(64, count=4)
    rgba = torch.from_numpy(premultiplied(views.rgba))
    settings, rows = FitSettings(rgb=1.0), [3, 1]
    plain = ViewLosses(rgba, settings, random_vgg16(torch.device("cpu")))
    fast = CudaViewLosses(rgba, settings, random_vgg16(torch.device("cpu")), recorded=False)
    answers = []
    for losses in (plain, fast):
        image = over(rgba, 1.0)[[0, 2]].requires_grad_()
        alpha = rgba[[0, 2]][..., 3].clone().requires_grad_()
        total, parts = losses(image, alpha, rows, 1)
        total.backward()
        answers.append((parts, image.grad, alpha.grad))
    (expected, image_gradient, alpha_gradient), (found, image_found, alpha_found) = answers
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(float(value), rel=2e-2), name
    torch.testing.assert_close(alpha_found, alpha_gradient)
    assert torch.nn.functional.cosine_similarity(image_found.flatten(), image_gradient.flatten(), dim=0) > 0.98
