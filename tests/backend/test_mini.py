"""The network of mini, and mini as a generator, on tiny random weights."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from im3d.errors import CancelledError, ModelError
from im3d.generators import mini
from im3d.generators.base import Subject
from im3d.generators.mini import MiniGenerator, sample_orbit
from im3d.generators.mini_model import MultiviewUNet, from_model, to_model
from im3d.images import OrbitViews

TINY = {"sample_size": 32, "channels": (32, 64), "blocks": (1, 1), "embedding": 32, "head_dim": 32}


def tiny_model(seed: int = 0) -> MultiviewUNet:
    """A network whose zero-initialised layers are random too, so that every path shows."""
    torch.manual_seed(seed)
    model = MultiviewUNet(**TINY)
    for p in model.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.05)
    return model.eval()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path / "mini")
    return tmp_path / "mini"


def subject() -> Subject:
    rgba = np.zeros((32, 32, 4), np.float32)
    rgba[8:24, 10:22] = (0.8, 0.3, 0.1, 1.0)
    return Subject(rgba)


def inputs(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(2, 16, 4, 32, 32, generator=g), torch.tensor([0.3, 5.0]), torch.rand(2, 4, 32, 32, generator=g)


def test_save_and_load_round_trip(weights: Path) -> None:
    model, again = tiny_model(), MultiviewUNet.from_pretrained(weights)
    with torch.no_grad():
        for a, b in zip(model(*inputs()), again.eval()(*inputs()), strict=True):
            torch.testing.assert_close(a, b)


def test_the_shipped_size_fits_sixty_megabytes() -> None:
    with torch.device("meta"):
        model = MultiviewUNet()
    assert 2 * sum(p.numel() for p in model.parameters()) <= 60e6


def test_every_view_sees_every_other_and_the_condition() -> None:
    model = tiny_model()
    x, sigma, condition = inputs()
    with torch.no_grad():
        base = model(x, sigma, condition)[0]
        moved = x.clone()
        moved[:, 5] += 1
        assert ((model(moved, sigma, condition)[0] - base).abs().amax(dim=(0, 2, 3, 4)) > 1e-6).all()
        assert ((model(x, sigma, 1 - condition)[0] - base).abs().amax(dim=(0, 2, 3, 4)) > 1e-6).all()
        hidden = [model(x, sigma, c, torch.zeros(2))[0] for c in (condition, 1 - condition)]
        torch.testing.assert_close(*hidden)


def test_a_vanishing_noise_level_returns_the_picture() -> None:
    x, _, condition = inputs()
    with torch.no_grad():
        denoised, _ = tiny_model()(x, torch.full((2,), 1e-4), condition)
    torch.testing.assert_close(denoised, x, rtol=0, atol=1e-2)


def test_picture_range_round_trip() -> None:
    rgba = torch.rand(3, 4, 8, 8)
    rgba[:, :3] *= rgba[:, 3:]
    torch.testing.assert_close(from_model(to_model(rgba)), rgba)


def test_an_oracle_makes_the_restart_return_the_renders(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    truth = torch.rand(1, 16, 4, 32, 32)
    truth[:, :, :3] *= truth[:, :, 3:]
    monkeypatch.setattr(model, "forward", lambda x, s, c, keep=None: (to_model(truth), torch.tensor([17.0])))
    views, elevation = sample_orbit(model, truth[:, 0], 4, torch.Generator().manual_seed(0), start=truth, noise=0.4)
    torch.testing.assert_close(views, truth)
    assert elevation.item() == 17


def test_generator_makes_an_orbit_and_refines_it(weights: Path) -> None:
    generator = MiniGenerator(steps=3, weights=weights)
    assert generator.orbit.elevation_deg is None
    steps: list[int] = []

    def watch(step: int, of: int, preview: np.ndarray | None = None) -> None:
        steps.append(step)
        assert preview is not None
        assert preview.shape == (32, 128, 3)

    views = generator.generate(subject(), 0, watch)
    assert views.rgba.shape == (16, 32, 32, 4)
    assert steps == [1, 2, 3]
    assert generator.network_calls == 3
    assert views.orbit.elevation_deg is not None
    np.testing.assert_array_equal(views.rgba[0], subject().rgba)
    np.testing.assert_array_equal(
        views.rgba, MiniGenerator(steps=3, weights=weights).generate(subject(), 0, watch).rgba
    )
    refined = generator.refine(subject(), views, 0.2, 2, 0, watch)
    assert generator.network_calls == 5
    assert refined.orbit == views.orbit
    wide = OrbitViews(views.rgba[:8], mini.Orbit.uniform(8, 10.0))
    with pytest.raises(ValueError, match="azimuths"):
        generator.refine(subject(), wide, 0.2, 2, 0, watch)


def test_cancelling_stops_at_the_step(weights: Path) -> None:
    def stop(step: int, steps: int, preview: np.ndarray | None = None) -> None:
        raise CancelledError("stopped")

    generator = MiniGenerator(steps=3, weights=weights)
    with pytest.raises(CancelledError):
        generator.generate(subject(), 0, stop)
    assert generator.network_calls == 1


def test_missing_weights_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IM3D_HOME", str(tmp_path))
    monkeypatch.setattr(mini, "SHIPPED_WEIGHTS", tmp_path / "none")
    with pytest.raises(ModelError, match=re.escape(str(tmp_path / "models" / "mini"))):
        MiniGenerator()
