"""What noise hides, on signals whose spectrum is known."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

TOOL = Path(__file__).parents[3] / "tools" / "restart_noise.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("restart_noise", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["restart_noise"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_of_white_noise_every_frequency_keeps_the_same(tool: ModuleType) -> None:
    rng = np.random.default_rng(0)
    truth, error = rng.standard_normal((2, 16, 72, 72, 3))
    for ring in tool.survey(truth, truth + 0.5 * error)[3:]:  # the rings within hold few frequencies
        assert ring.wrong == pytest.approx(0.25, rel=0.1)
        for sigma, kept in zip(tool.SIGMAS, ring.kept, strict=True):
            assert kept == pytest.approx(1 / (1 + sigma**2), rel=0.1)


def test_a_wave_that_all_views_share_stands_far_above_the_noise(tool: ModuleType) -> None:
    x = np.arange(72) / 72
    wave = np.sqrt(2) * np.sin(2 * np.pi * 7.5 * x)  # leaks a little; most of it lies from 6 to 9 cycles
    truth = np.broadcast_to(wave[None, None, :, None], (16, 72, 72, 3))
    rings = tool.survey(truth, truth)
    assert [r.wrong for r in rings] == [0.0] * len(rings)
    # The same wave in one view only has a sixteenth of the energy in each frequency along the orbit.
    single = np.zeros((16, 72, 72, 3))
    single[0] = truth[0]
    alone = tool.survey(single, single)
    assert rings[3].kept[-1] > 2 * alone[3].kept[-1]


def test_latents_are_block_means_on_the_truths_scale(tool: ModuleType) -> None:
    rng = np.random.default_rng(1)
    pictures = rng.random((2, 72, 72, 3)).astype(np.float32).repeat(8, 1).repeat(8, 2)
    z = tool.latents(pictures)
    assert z.shape == (2, 72, 72, 3)
    assert (z.mean(), z.std()) == pytest.approx((0, 1), abs=1e-6)
    small, mean, deviation = pictures[:, ::8, ::8], pictures.mean(), pictures.std()
    np.testing.assert_allclose(z, (small - mean) / deviation, atol=1e-4)
    np.testing.assert_allclose(tool.latents(pictures / 2, pictures), (small / 2 - mean) / deviation, atol=1e-4)


def test_the_table_has_a_row_for_each_ring(tool: ModuleType) -> None:
    rng = np.random.default_rng(2)
    survey = tool.survey(*rng.standard_normal((2, 4, 72, 72, 3)))
    lines = tool.table([survey, survey]).splitlines()
    assert len(lines) == 2 + len(tool.RINGS)
    assert len({line.count("|") for line in lines}) == 1
