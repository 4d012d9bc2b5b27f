"""Networks that are kept from job to job: read once, put to rest, let go, and drawing the same as fresh ones."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from sv3d_checkpoint import small, small_checkpoints, small_subject
from torch import nn

from im3d.core.progress import silent
from im3d.generators.mini import generator as mini
from im3d.generators.mini.generator import MiniGenerator
from im3d.generators.sv3d import weights as sv3d_weights
from im3d.models.cache import MODELS, ModelCache

GIGABYTE = 2**30


class Network(nn.Module):
    """With a parameter and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"1" * 1000)
    return path


@pytest.fixture
def cache() -> Iterator[ModelCache]:
    cache = ModelCache()
    with cache.keeping():
        yield cache


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the computer says of its memory: 16 GB, of which 12 are available."""
    said = SimpleNamespace(total=16 * GIGABYTE, available=12 * GIGABYTE)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: said)
    return said


def test_a_model_is_read_anew_when_anything_about_it_changed(cache: ModelCache, file: Path, tmp_path: Path) -> None:
    first = cache.get("orbit", [file], "half", Network)
    assert cache.get("orbit", [file], "half", Network) is first
    other = cache.get("orbit", [file], "single", Network)
    assert other is not first
    os.utime(file, ns=(0, 0))
    changed = cache.get("orbit", [file], "single", Network)
    assert changed is not other
    assert cache.get("orbit", [tmp_path], "single", Network) is changed  # a folder stands for the files in it
    (tmp_path / "more.bin").touch()
    assert cache.get("orbit", [tmp_path], "single", Network) is not changed


def test_one_of_each_kind_is_kept_and_none_after_the_block(file: Path) -> None:
    cache = ModelCache()
    assert cache.get("orbit", [file], 0, Network) is not cache.get("orbit", [file], 0, Network)
    with cache.keeping():
        models = [weakref.ref(cache.get(kind, [file], key, Network)) for kind, key in (("a", 0), ("b", 0), ("a", 1))]
        assert [model() is None for model in models] == [True, False, False]
    assert [model() for model in models] == [None] * 3


def test_models_at_rest_have_left_the_device(cache: ModelCache, file: Path) -> None:
    model = cache.get("orbit", [file], 0, lambda: SimpleNamespace(unet=Network(), vae=Network(), name="pair"))
    before = {part: {k: v.clone() for k, v in getattr(model, part).state_dict().items()} for part in ("unet", "vae")}
    parameters = list(model.unet.parameters())
    for _ in range(2):
        model.unet.to("meta")  # stands for a GPU
        model.vae.to("meta")
        assert {weight.device.type for weight in model.unet.state_dict().values()} == {"meta"}
        cache.rest()
        for part, weights in before.items():
            after = getattr(model, part).state_dict()
            assert all(torch.equal(after[k], weights[k]) for k in weights)
    # Compiled code knows parameters by their identity.
    assert all(mine is theirs for mine, theirs in zip(parameters, model.unet.parameters(), strict=True))


def test_weights_that_were_read_in_inference_mode_can_be_moved_outside_of_it(cache: ModelCache, file: Path) -> None:
    with torch.inference_mode():
        network = cache.get("orbit", [file], 0, Network)
    assert not network.linear.weight.is_inference()
    network.linear.weight.data.add_(1)


@pytest.mark.parametrize(("available", "kept"), [(12, ["a", "b"]), (5, ["a", "b"]), (3, ["b"]), (1, [])])
def test_the_oldest_go_where_memory_is_short(
    available: int, kept: list[str], cache: ModelCache, file: Path, memory: SimpleNamespace
) -> None:
    models: dict[str, Any] = {}
    for kind in ("b", "a", "b"):  # the last use counts
        models[kind] = weakref.ref(cache.get(kind, [file], 0, Network))
    memory.available = available * GIGABYTE
    for ref in models.values():  # a model that goes gives back 2 GB
        weakref.finalize(ref(), lambda: setattr(memory, "available", memory.available + 2 * GIGABYTE))
    cache.rest()
    assert sorted(kind for kind, ref in models.items() if ref() is not None) == kept


def test_room_is_made_before_a_large_model_is_read(
    cache: ModelCache, file: Path, tmp_path: Path, memory: SimpleNamespace
) -> None:
    large = tmp_path / "large.bin"
    with open(large, "wb") as written:
        written.truncate(9 * GIGABYTE)  # sparse: 12 − 9 is under a quarter of 16
    first = weakref.ref(cache.get("a", [file], 0, Network))

    def read() -> Network:
        assert first() is None
        return Network()

    cache.get("b", [large], 0, read)


def counted(monkeypatch: pytest.MonkeyPatch, module: object, name: str) -> list[str]:
    reads: list[str] = []
    read: Callable[..., Any] = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args: reads.append(name) or read(*args))
    return reads


def test_sv3d_draws_the_same_with_kept_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = small_checkpoints(tmp_path)
    reads = counted(monkeypatch, sv3d_weights, "load_networks")
    alone = small(checkpoints).generate(small_subject(), 3, silent)
    with MODELS.keeping():
        for _ in range(2):
            generator = small(checkpoints)
            np.testing.assert_array_equal(generator.generate(small_subject(), 3, silent).rgba, alone.rgba)
            generator.release()
    assert len(reads) == 2


def test_mini_draws_the_same_with_kept_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = counted(monkeypatch, mini, "_read")
    alone = MiniGenerator(steps=1, views=4).generate(small_subject(), 3, silent)
    with MODELS.keeping():
        for _ in range(2):
            generator = MiniGenerator(steps=1, views=4)
            np.testing.assert_array_equal(generator.generate(small_subject(), 3, silent).rgba, alone.rgba)
            generator.release()
    assert len(reads) == 2
