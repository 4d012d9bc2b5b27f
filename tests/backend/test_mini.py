"""The network of mini, and mini as a generator, on tiny random weights."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny_mini

from im3d.errors import CancelledError, ModelError
from im3d.generators import mini
from im3d.generators.base import Subject
from im3d.generators.mini import MiniGenerator, sample_orbit
from im3d.generators.mini_model import Denoised, VolumeDenoiser, from_model, to_model
from im3d.generators.mini_resampling import RADIUS, sample_depths
from im3d.generators.mini_volume import RayMarcher
from im3d.images import OrbitViews


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    tiny_mini().save_pretrained(tmp_path / "mini")
    return tmp_path / "mini"


def subject() -> Subject:
    rgba = np.zeros((32, 32, 4), np.float32)
    rgba[8:24, 10:22] = (0.8, 0.3, 0.1, 1.0)
    return Subject(rgba)


def inputs(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(2, 16, 4, 32, 32, generator=g), torch.tensor([0.3, 5.0]), torch.rand(2, 4, 32, 32, generator=g)


def test_save_and_load_round_trip(weights: Path) -> None:
    model, again = tiny_mini(), VolumeDenoiser.from_pretrained(weights)
    with torch.no_grad():
        a, b = model(*inputs()), again.eval()(*inputs())
    torch.testing.assert_close(a.views, b.views)
    torch.testing.assert_close(a.elevation_deg, b.elevation_deg)


def test_the_shipped_size_fits_sixty_megabytes() -> None:
    with torch.device("meta"):
        model = VolumeDenoiser()
    assert 2 * sum(p.numel() for p in model.parameters()) <= 60e6


def test_every_view_sees_every_other_and_the_condition() -> None:
    model = tiny_mini()
    x, sigma, condition = inputs()

    def change(views: torch.Tensor) -> torch.Tensor:
        return (views - base).abs().amax(dim=(0, 2, 3, 4))

    with torch.no_grad():
        base = model(x, sigma, condition).views
        moved = x.clone()
        moved[:, 5] += 1
        assert (change(model(moved, sigma, condition).views) > 1e-6).all()
        assert (change(model(x, sigma, 1 - condition).views) > 1e-6).all()
        moved = x.clone()
        moved[:, 0] += 1
        # The input view is known; its noise is not looked at.
        assert (change(model(moved, sigma, condition).views)[1:] == 0).all()


def test_the_elevation_is_the_networks_own_unless_it_is_told() -> None:
    model = tiny_mini()
    with torch.no_grad():
        own = model(*inputs())
        told = model(*inputs(), own.elevation_deg)
        other = model(*inputs(), own.elevation_deg + 10)
    torch.testing.assert_close(own.views, told.views)
    torch.testing.assert_close(own.elevation_deg, other.elevation_deg)
    assert (own.views - other.views).abs().max() > 1e-3


def test_a_vanishing_noise_level_returns_the_picture() -> None:
    x, _, condition = inputs()
    with torch.no_grad():
        denoised = tiny_mini()(x, torch.full((2,), 1e-4), condition).views
    torch.testing.assert_close(denoised, x, rtol=0, atol=1e-2)


def test_rays_end_at_the_first_dense_sample() -> None:
    samples = torch.zeros(1, 8, 8, 8, 2, 5)
    samples[..., 0] = -30
    samples[:, 3:, 2, 5, 1, 0] = 30
    samples[:, 3, 2, 5, 1, 1:] = torch.tensor([0.2, 0.4, 0.6, 0.8])
    samples[:, 4:, ..., 1:] = 9
    rays, coarse, depth = RayMarcher()(samples)
    torch.testing.assert_close(coarse[0, 1, :, 2, 5], torch.tensor([0.2, 0.4, 0.6, 1.0]))
    torch.testing.assert_close(rays[1, :5, 2, 5], torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0]))
    assert depth[0, 1, 2, 5].item() == pytest.approx(float(sample_depths(8, samples.device)[3]))
    assert coarse[0, 0].abs().max() < 1e-4
    assert (depth[0, 0] > RADIUS + 1).all()


def test_picture_range_round_trip() -> None:
    rgba = torch.rand(3, 4, 8, 8)
    rgba[:, :3] *= rgba[:, 3:]
    torch.testing.assert_close(from_model(to_model(rgba)), rgba)


def test_an_oracle_makes_the_restart_return_the_renders(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_mini()
    truth = torch.rand(1, 16, 4, 32, 32)
    truth[:, :, :3] *= truth[:, :, 3:]
    monkeypatch.setattr(
        model, "forward", lambda x, s, c, e=None: Denoised(to_model(truth), torch.tensor([17.0]), truth)
    )
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
