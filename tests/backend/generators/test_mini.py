"""The network of mini, and mini as a generator, on tiny random weights."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_mini
from torch import nn

from im3d.core.images import OrbitViews, premultiplied, read_views
from im3d.core.orbit import DEFAULT_FOV_DEG, Cameras, focal_length, look_at_origin
from im3d.core.progress import silent
from im3d.errors import CancelledError, InputError, ModelError
from im3d.generators.base import Subject
from im3d.generators.mini import generator as mini
from im3d.generators.mini.frustum import RADIUS, TAN, camera_axes, drawn
from im3d.generators.mini.generator import MiniGenerator, opaque_from, sample_orbit
from im3d.generators.mini.model import VolumeDenoiser, from_model, to_model
from im3d.models.catalog import verify
from im3d.views.elevation import estimate_orbit

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    tiny_mini().save_pretrained(tmp_path / "mini")
    return tmp_path / "mini"


def subject() -> Subject:
    """As large as the views, which are twice as large as the network's."""
    rgba = np.zeros((64, 64, 4), np.float32)
    rgba[8:24, 10:22] = (0.8, 0.3, 0.1, 1.0)
    return Subject(rgba)


def inputs(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(2, 16, 4, 32, 32, generator=g), torch.tensor([0.3, 5.0]), torch.rand(2, 4, 32, 32, generator=g)


def test_save_and_load_round_trip(weights: Path) -> None:
    model, again = tiny_mini(), VolumeDenoiser.from_pretrained(weights)
    with torch.no_grad():
        a, b = model(*inputs()), again.eval()(*inputs())
    torch.testing.assert_close(a, b)


def test_the_shipped_size_fits_sixty_megabytes() -> None:
    with torch.device("meta"):
        model = VolumeDenoiser()
    assert 2 * sum(p.numel() for p in model.parameters()) <= 60e6  # bytes in half precision


def test_every_view_sees_the_condition_and_its_own_noise_alone() -> None:
    model = tiny_mini()
    x, sigma, condition = inputs()

    def change(views: torch.Tensor) -> torch.Tensor:
        return (views - base).abs().amax(dim=(0, 2, 3, 4))

    with torch.no_grad():
        base = model(x, sigma, condition)
        assert (change(model(x, sigma, 1 - condition)) > 1e-6).all()
        moved = x.clone()
        moved[:, 5] += 1
        assert (change(model(moved, sigma, condition)) > 1e-6).nonzero().flatten().tolist() == [5]


def test_the_elevation_is_the_networks_own_unless_it_is_told() -> None:
    model = tiny_mini()
    x, sigma, condition = inputs()
    with torch.no_grad():
        imagined = model.imagine(condition)
        elevation = imagined.shape.elevation_deg
        own = model(x, sigma, condition)
        torch.testing.assert_close(own, model(x, sigma, condition, elevation))
        torch.testing.assert_close(own, model(x, sigma, condition, None, imagined))
        assert (own - model(x, sigma, condition, elevation + 20)).abs().max() > 1e-3


def test_some_views_of_a_ring_are_those_of_the_whole_ring() -> None:
    model = tiny_mini()
    x, sigma, condition = inputs()
    chosen = torch.tensor([[3, 9], [15, 1]])
    few = torch.stack([x[i, chosen[i]] for i in range(2)])
    with torch.no_grad():
        whole = model(x, sigma, condition)
        part = model(few, sigma, condition, views=chosen)
    torch.testing.assert_close(part, torch.stack([whole[i, chosen[i]] for i in range(2)]))


def test_high_noise_leaves_the_drawn_view_and_none_the_picture() -> None:
    model = tiny_mini()
    torch.nn.init.zeros_(model.decoder.head.weight)
    torch.nn.init.zeros_(model.decoder.head.bias)
    x, _, condition = inputs()
    with torch.no_grad():
        drawn_views = to_model(model.imagine(condition).views)
        torch.testing.assert_close(model(x, torch.full((2,), 1e4), condition), drawn_views, rtol=0, atol=1e-3)
        torch.testing.assert_close(model(x, torch.full((2,), 1e-4), condition), x, rtol=0, atol=1e-3)


def ball(center: np.ndarray, radius: float, elevation: float, size: int, depths: int) -> torch.Tensor:
    """(1, D, S, S) log odds of a ball in the world, in the volume of a camera at azimuth 0, from first principles."""
    axes = camera_axes(torch.tensor(0.0), torch.tensor(np.deg2rad(elevation))).numpy().astype(np.float64)
    z, y, x = np.meshgrid(*((np.arange(n) + 0.5) * 2 / n - 1 for n in (depths, size, size)), indexing="ij")
    points = np.stack([x * (RADIUS + z) * TAN, y * (RADIUS + z) * TAN, z], axis=-1) @ axes
    inside = np.linalg.norm(points - center, axis=-1) - radius
    return torch.from_numpy(-inside * 250).float()[None]


def test_a_ball_is_drawn_where_the_cameras_see_it() -> None:
    """The volume of azimuth 0 against the projections of `im3d.core.orbit`'s cameras."""
    center, radius, elevation = np.array([0.42, -0.25, 0.3]), 0.22, 25.0
    logits = ball(center, radius, elevation, 64, 64)
    color = torch.tensor([0.8, 0.4, 0.1]).view(1, 3, 1, 1, 1).expand(1, 3, 32, 64, 64)
    azimuths = torch.arange(16) * (2 * np.pi / 16)
    seen = drawn(logits, color, torch.deg2rad(torch.tensor([elevation])), azimuths[None].float(), 64, 96)
    alpha = seen.views[0, :, 3]
    for k in range(16):
        view = look_at_origin(22.5 * k, elevation, RADIUS)
        x, y, depth = Cameras(view[None], focal_length(DEFAULT_FOV_DEG, 64), 64).project(center[None])[0, 0]
        rows, columns = (alpha[k] > 0.5).nonzero(as_tuple=True)
        assert float(columns.float().mean()) + 0.5 == pytest.approx(x, abs=0.6), k
        assert float(rows.float().mean()) + 0.5 == pytest.approx(y, abs=0.6)
        assert len(rows) == pytest.approx(np.pi * (radius / depth / TAN * 32) ** 2, rel=0.15)
        middle = seen.views[0, k, :3, int(y), int(x)]
        torch.testing.assert_close(middle, torch.tensor([0.8, 0.4, 0.1]), atol=0.02, rtol=0)


def test_the_drawn_surface_lies_where_the_input_picture_shows_it() -> None:
    logits = ball(np.array([0.1, -0.3, 0.05]), 0.3, 10.0, 64, 64)
    azimuths = torch.tensor([[0.0, 0.4]])
    seen = drawn(logits, torch.zeros(1, 3, 32, 64, 64), torch.deg2rad(torch.tensor([10.0])), azimuths, 64, 96)
    centres = (torch.arange(64) + 0.5) / 32 - 1
    own = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), dim=-1)
    torch.testing.assert_close(seen.place[0, 0], own, atol=1e-4, rtol=0)
    inside = seen.views[0, 1, 3] > 0.9
    hit = seen.place[0, 1][inside]
    shown = torch.nn.functional.grid_sample(seen.views[:1, 0, 3:], hit[None, None], align_corners=False)
    # All that the second camera sees of the front is in the picture; what lies behind its edge falls just outside.
    assert (shown > 0.5).float().mean() > 0.85


def test_picture_range_round_trip() -> None:
    rgba = torch.rand(3, 4, 8, 8)
    rgba[:, :3] *= rgba[:, 3:]
    torch.testing.assert_close(from_model(to_model(rgba)), rgba)


def test_less_than_half_covered_counts_as_covered() -> None:
    views = torch.rand(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    views[:, :, 3, 0] = torch.tensor([0.0, 1.0, 0.4, 0.1, 0.2, 0.3, 0.6, 0.9])
    views[:, :, :3] *= views[:, :, 3:]
    found = opaque_from(views, 0.4)
    assert torch.equal(found[:, 0], views[:, 0])
    before, after = views[:, 1:, 3], found[:, 1:, 3]
    torch.testing.assert_close(after[:, :, 0, :3], torch.tensor([0.0, 1.0, 0.5]).expand(2, 2, 3))
    order = before.flatten().argsort()
    assert (after.flatten()[order].diff() >= 0).all()
    assert (after >= before - 1e-6).all()
    seen = before > 0
    straight = [(v[:, 1:, :3] / v[:, 1:, 3:].clamp_min(1e-6)).movedim(2, -1)[seen] for v in (views, found)]
    torch.testing.assert_close(straight[0], straight[1], rtol=1e-4, atol=1e-4)


def test_an_oracle_makes_the_restart_return_the_renders(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_mini()
    truth = torch.rand(1, 16, 4, 32, 32)
    truth[:, :, :3] *= truth[:, :, 3:]
    monkeypatch.setattr(model, "forward", lambda *inputs: to_model(truth))
    views, elevation = sample_orbit(model, truth[:, 0], 4, torch.Generator().manual_seed(0), start=truth, noise=0.4)
    torch.testing.assert_close(views, truth)
    with torch.no_grad():
        torch.testing.assert_close(elevation, model.shape(to_model(truth[:, 0])).elevation_deg)


def test_restarts_of_renders_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A denoiser that leaves a tenth of the noise: one restart shows its grain, the mean of many has lost it."""
    model = tiny_mini()
    truth = torch.full((1, 16, 4, 32, 32), 0.5)
    truth[:, :, 3] = 0.9
    seen: list[float] = []

    def forward(x: torch.Tensor, sigma: torch.Tensor, *_: object) -> torch.Tensor:
        seen.append(float(sigma[0]))
        return to_model(truth) + 0.1 * (x - to_model(truth))

    monkeypatch.setattr(model, "forward", forward)

    def grain(steps: int) -> float:
        generator = torch.Generator().manual_seed(0)
        views, _ = sample_orbit(model, truth[:, 0], steps, generator, start=truth, noise=0.3)
        torch.testing.assert_close(views[:, 0], truth[:, 0])  # the input view is given
        return float((views - truth)[:, 1:].std())

    one, sixteen = grain(1), grain(16)
    assert one > 0.01
    assert sixteen == pytest.approx(one / 4, rel=0.1)
    assert len(set(seen)) == 1


class OfEachPixel(nn.Module):
    """A decoder that looks at one pixel at a time."""

    def forward(self, pixels: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        return pixels[:, :4] * pixels[:, 4:8]


def test_what_the_decoder_sees_moved_is_moved_back() -> None:
    model = tiny_mini()
    x, sigma, condition = inputs()
    model.decoder = OfEachPixel()  # type: ignore[assignment]
    with torch.no_grad():
        still = model(x, sigma, condition)
        for shift in ((0, 2), (3, 0), (7, 5)):
            torch.testing.assert_close(model(x, sigma, condition, shift=shift), still)


@pytest.mark.parametrize("restarts", [0, 4])
def test_a_pattern_that_keeps_to_the_decoders_pixels_vanishes(restarts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_mini()
    truth = torch.full((1, 16, 4, 32, 32), 0.5)
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    pattern = torch.sin(rows * np.pi / 2) + torch.sin(columns * np.pi / 2) + torch.cos(rows * np.pi)

    def forward(*given: Any) -> torch.Tensor:
        return to_model(truth) + 0.05 * pattern.roll([-n for n in given[-1]], dims=(0, 1))

    monkeypatch.setattr(model, "forward", forward)
    start = truth if restarts else None
    generator = torch.Generator().manual_seed(0)
    views, _ = sample_orbit(model, truth[:, 0], restarts or 1, generator, start=start, noise=0.3 if restarts else 1.0)
    # Of a first orbit's coverages another level counts as the object, the same everywhere.
    assert float(views[:, 1:, 3].std()) < 1e-5


def test_generator_makes_an_orbit_and_refines_it(weights: Path) -> None:
    generator = MiniGenerator(steps=3, weights=weights)
    assert generator.orbit.elevation_deg is None
    steps: list[int] = []

    def watch(step: int, of: int, preview: np.ndarray | None = None) -> None:
        steps.append(step)
        assert preview is not None
        assert preview.shape == (32, 128, 3)

    views = generator.generate(subject(), 0, watch)
    assert views.rgba.shape == (16, 64, 64, 4)
    assert steps == [1, 2, 3]
    assert generator.network_calls == 3 * len(mini.SHIFTS)
    assert views.orbit.elevation_deg is not None
    np.testing.assert_array_equal(views.rgba[0], subject().rgba)
    np.testing.assert_array_equal(
        views.rgba, MiniGenerator(steps=3, weights=weights).generate(subject(), 0, watch).rgba
    )
    refined = generator.refine(subject(), views, 0.2, 2, 0, watch)
    assert generator.network_calls == 3 * len(mini.SHIFTS) + 2
    assert refined.orbit == views.orbit
    wide = OrbitViews(views.rgba[:8], mini.Orbit.uniform(8, 10.0))
    with pytest.raises(ValueError, match="azimuths"):
        generator.refine(subject(), wide, 0.2, 2, 0, watch)


@pytest.mark.parametrize("count", [8, 4])
def test_fewer_views_are_some_of_the_ring(weights: Path, count: int) -> None:
    generator = MiniGenerator(steps=1, views=count, weights=weights)
    assert generator.orbit == mini.Orbit.uniform(count, None, generator.orbit.fov_deg, generator.orbit.radius)
    model = generator._loaded()
    given = to_model(torch.rand(1, 4, 32, 32))
    chosen = torch.arange(0, 16, 16 // count)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            model.imagine(given, None, chosen).views, model.imagine(given).views[:, :: 16 // count]
        )
    views = generator.generate(subject(), 0, silent)
    assert len(views.rgba) == count
    assert generator.refine(subject(), views, 0.2, 2, 0, silent).orbit == views.orbit


def test_settings_out_of_range_are_refused(weights: Path) -> None:
    with pytest.raises(InputError, match=r"mini\.views cannot be 5"):
        MiniGenerator(views=5, weights=weights)
    with pytest.raises(InputError, match=r"mini\.steps cannot be 0"):
        MiniGenerator(steps=0, weights=weights)


def test_cancelling_stops_at_the_step(weights: Path) -> None:
    def stop(step: int, steps: int, preview: np.ndarray | None = None) -> None:
        raise CancelledError("stopped")

    generator = MiniGenerator(steps=3, weights=weights)
    with pytest.raises(CancelledError):
        generator.generate(subject(), 0, stop)
    assert generator.network_calls == len(mini.SHIFTS)


def test_missing_weights_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IM3D_HOME", str(tmp_path))
    monkeypatch.setattr(mini, "SHIPPED_WEIGHTS", tmp_path / "none")
    with pytest.raises(ModelError, match=re.escape(str(tmp_path / "models" / "mini"))):
        MiniGenerator()


def test_the_shipped_weights_turn_a_prop_that_they_never_saw() -> None:
    """A prop of the test split; copying the input view to all others reaches 12.7 dB and 0.66."""
    assert verify("mini") == []
    truth = read_views(EXAMPLES / "football_table").resized(128)
    views = MiniGenerator().generate(Subject(truth.rgba[0]), 0, silent)
    drawn, seen = (premultiplied(v.resized(128).rgba[1:]) for v in (views, truth))
    error = np.square(drawn[..., :3] - drawn[..., 3:] - (seen[..., :3] - seen[..., 3:])).mean()
    assert -10 * np.log10(error) > 16.5
    a, b = drawn[..., 3] > 0.5, seen[..., 3] > 0.5
    assert ((a & b).sum(axis=(1, 2)) / (a | b).sum(axis=(1, 2))).mean() > 0.78
    assert views.orbit.elevation_deg == pytest.approx(25, abs=6)


def test_the_views_are_drawn_at_the_elevation_that_is_told() -> None:
    """By what their outlines say of it, which know nothing of the network."""
    picture = read_views(EXAMPLES / "football_table").rgba[0]
    for told in (10.0, 40.0):
        views = MiniGenerator(elevation_deg=told).generate(Subject(picture), 0, silent)
        assert views.orbit.elevation_deg == told
        seen = OrbitViews(views.rgba, replace(views.orbit, elevation_deg=None))
        assert estimate_orbit(seen, False, True).orbit.elevation_deg == pytest.approx(told, abs=5)
