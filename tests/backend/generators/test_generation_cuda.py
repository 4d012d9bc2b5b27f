"""Drawing on an NVIDIA GPU: SV3D's and the image models' memory modes, on small random weights."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sv3d_checkpoint import small, small_checkpoints, small_subject
from tiny_models import MAKERS, SMALL, record

from im3d.core.images import FloatArray
from im3d.core.progress import silent
from im3d.models.cache import MODELS
from im3d.models.catalog import find_model
from im3d.models.memory_modes import MODES, MemoryMode
from im3d.settings import ImageSettings
from im3d.views.text_to_image import generate_picture

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def installed(name: str, memory: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], FloatArray]:
    """Installs a small image model; what is returned draws with it on the GPU."""
    monkeypatch.setenv("IM3D_HOME", str(home))
    MAKERS[name](find_model(name).folder)
    record(name)
    settings = ImageSettings(size=SMALL.size, steps=SMALL.steps, memory=memory)  # type: ignore[arg-type]
    return lambda: generate_picture("a red mug", name, settings, 0, torch.device("cuda"), silent)


def test_every_mode_of_sv3d_draws_the_same_and_keeps_the_networks_where_it_says(tmp_path: Path) -> None:
    checkpoints = small_checkpoints(tmp_path)
    drawn: list[FloatArray] = []
    for mode in MODES:
        generator = small(checkpoints, views=6)
        generator._device, generator._mode = torch.device("cuda"), mode
        views = generator.generate(small_subject(), 0, silent)
        drawn.append(generator.refine(small_subject(), views, 0.4, 2, 0, silent).rgba)
        places = {p.device.type for network in vars(generator._loaded()).values() for p in network.parameters()}
        assert places == ({"cpu"} if mode.offload else {"cuda"})
    for views_of_mode in drawn:
        assert np.isfinite(views_of_mode).all()
        # Half precision sums in another order from mode to mode.
        assert np.abs(views_of_mode - drawn[0]).mean() < 0.02


@pytest.mark.parametrize("name", list(MAKERS))
@pytest.mark.parametrize("memory", ["auto", "whole", "offload", "compressed"])
def test_every_mode_of_the_image_models_draws(
    name: str, memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = installed(name, memory, tmp_path, monkeypatch)()
    assert picture.shape == (64, 64, 4)
    assert picture[..., :3].std() > 0.01


def assert_kept_models_leave_the_gpu_and_draw_the_same(
    drawn: Callable[[], FloatArray], difference: float, tables: int = 0
) -> None:
    """Draws with a model that is read for it, and then with a kept one; on average they differ by less.

    Args:
        drawn: Draws, and frees the GPU.
        difference: On average over the values.
        tables: Bytes of the GPU that may stay taken beside the weights, once and no more with every draw.
    """
    alone = drawn()
    before = torch.cuda.memory_allocated()
    left = []
    with MODELS.keeping():
        for _ in range(3):
            assert np.abs(drawn() - alone).mean() < difference
            left.append(torch.cuda.memory_allocated() - before)
    assert left == [left[0]] * 3
    assert left[0] <= tables


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_kept_networks_of_sv3d_leave_the_gpu_and_draw_the_same(mode: MemoryMode, tmp_path: Path) -> None:
    checkpoints = small_checkpoints(tmp_path)

    def drawn() -> FloatArray:
        generator = small(checkpoints, views=6)
        generator._device, generator._mode = torch.device("cuda"), mode
        rgba = generator.generate(small_subject(), 0, silent).rgba
        generator.release()
        return rgba

    assert_kept_models_leave_the_gpu_and_draw_the_same(drawn, 1e-3)


@pytest.mark.parametrize("name", list(MAKERS))
@pytest.mark.parametrize("memory", ["whole", "offload", "compressed"])
def test_kept_image_models_leave_the_gpu_and_draw_the_same(
    name: str, memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The schedule of a draw and a table of positions are no weights; those of the small models take 1.6 MB or more.
    draw = installed(name, memory, tmp_path, monkeypatch)
    assert_kept_models_leave_the_gpu_and_draw_the_same(draw, 1e-2, tables=1 << 16)


def test_the_benchmark_runs_under_its_cap(tmp_path: Path) -> None:
    tool = Path(__file__).parents[3] / "tools" / "gpu" / "bench_sv3d.py"
    out = tmp_path / "rows.jsonl"
    command = [
        sys.executable,
        str(tool),
        "--tiny",
        "--modes",
        "8",
        "--sizes",
        "4x64",
        "--steps",
        "2",
        "--out",
        str(out),
    ]
    subprocess.run(command, check=True, timeout=200)
    row = json.loads(out.read_text())
    assert row["error"] is None
    assert row["cap_gb"] <= 7.5
    assert all(part["reserved_gb"] <= 7.5 for part in row["parts"].values() if "reserved_gb" in part)
