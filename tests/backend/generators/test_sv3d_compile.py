"""Compiled blocks of SV3D's U-Net: the same views, each shape compiled once, and what is said where it cannot be."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from sv3d_checkpoint import SMALL_P, small, small_checkpoints, small_subject

from im3d.core.progress import silent
from im3d.errors import InputError
from im3d.generators.sv3d import compile as sv3d_compile
from im3d.generators.sv3d.network import OrbitUNet
from im3d.models.cache import MODELS


def inputs(views: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = (1, views, 8, 8, 8), (1, 1, 32), (1, views, 1280)
    sample, context, vector = (torch.randn(shape, generator=generator) for shape in shapes)
    return sample, torch.tensor(0.5), context, vector


class Counting:
    """A backend of `torch.compile` that compiles nothing and counts the graphs it gets."""

    def __init__(self) -> None:
        self.graphs: list[int] = []

    def __call__(self, module: torch.fx.GraphModule, _: list[torch.Tensor]) -> torch.fx.GraphModule:
        self.graphs.append(len(module.graph.nodes))
        return module


def test_compiled_blocks_compute_the_same_and_each_variant_is_compiled_once() -> None:
    counting = Counting()
    torch.manual_seed(0)
    unet = OrbitUNet(SMALL_P).eval().requires_grad_(False)
    with torch.inference_mode():
        expected = unet(*inputs(4))
        count = sv3d_compile.compile_blocks(unet, counting)  # type: ignore[arg-type]
        torch.testing.assert_close(unet(*inputs(4)), expected)
        first = len(counting.graphs)
        assert 0 < first < count
        sv3d_compile.compile_blocks(unet, counting)  # type: ignore[arg-type]
        unet(*inputs(4))
    assert len(counting.graphs) == first


def test_where_nothing_can_be_compiled_it_is_said_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = small_checkpoints(tmp_path)
    with pytest.raises(InputError, match="NVIDIA"):
        small(checkpoints, compiled=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "Triton" in sv3d_compile.unavailable_reason(torch.device("cuda"))


def test_a_compiled_generator_draws_the_same_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints, compile_blocks = small_checkpoints(tmp_path), sv3d_compile.compile_blocks
    expected = small(checkpoints).generate(small_subject(), 0, silent)
    used: list[int] = []
    monkeypatch.setattr(sv3d_compile, "unavailable_reason", lambda device: "")
    monkeypatch.setattr(sv3d_compile, "compile_blocks", lambda unet: used.append(compile_blocks(unet, "eager")))
    found = small(checkpoints, compiled=True).generate(small_subject(), 0, silent)
    assert used
    np.testing.assert_allclose(found.rgba, expected.rgba, atol=1e-4)


def test_kept_blocks_are_not_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints, compile_blocks = small_checkpoints(tmp_path), sv3d_compile.compile_blocks
    counting = Counting()
    torch._dynamo.reset()  # what other tests compiled would do for these blocks
    monkeypatch.setattr(sv3d_compile, "unavailable_reason", lambda device: "")
    monkeypatch.setattr(sv3d_compile, "compile_blocks", lambda unet: compile_blocks(unet, counting))  # type: ignore[arg-type]
    counts, views = [], []
    with MODELS.keeping():
        for _ in range(2):
            generator = small(checkpoints, compiled=True)
            views.append(generator.generate(small_subject(), 0, silent).rgba)
            generator.release()
            counts.append(len(counting.graphs))
    assert 0 < counts[0] == counts[1]
    np.testing.assert_array_equal(*views)
