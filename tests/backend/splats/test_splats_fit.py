"""Whole fits of the analytic object: quality from new cameras, and going on as if never stopped."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import analytic
import numpy as np
import pytest
import torch

from im3d.core.images import OrbitViews, over
from im3d.core.orbit import Orbit
from im3d.core.progress import silent
from im3d.errors import InputError
from im3d.settings import FitSettings
from im3d.splats import elevation_search as score
from im3d.splats.elevation_search import photometric_score
from im3d.splats.fit import SplatFit, _adam_step, initial_gaussians
from im3d.splats.gaussians import Gaussians
from im3d.splats.render import blending_weights, render

CPU = torch.device("cpu")
# Cameras between those of the orbit, at its elevation and others.
NOVEL = ((11.25, 15.0), (48.0, 25.0), (85.0, 5.0), (190.0, 30.0), (300.0, 10.0))
QUICK = FitSettings(iterations=60, size=48, points=600, max_gaussians=1200, densify_every=10, lpips=0.0, rgb=2.0)


@functools.cache
def views() -> OrbitViews:
    return analytic.orbit_views(96)


def start(settings: FitSettings = QUICK, pictures: OrbitViews | None = None, seed: int = 3) -> SplatFit:
    return SplatFit(pictures or views(), settings, seed, CPU, "cpu", None)


def rgb_loss(fit: SplatFit) -> float:
    """The weighted colour loss over all views, on black."""
    rows = list(range(len(fit.cameras)))
    rendered = render(fit.gaussians(), fit.cameras, fit.rasterizer)
    return float(fit.losses(rendered.over(0.0).permute(0, 3, 1, 2), rendered.alpha, rows, 0)[1]["rgb"])


def held_out_psnr(gaussians: Gaussians, size: int) -> float:
    """Mean over cameras that the fit did not see, on white, where either picture shows the object."""
    cameras, truth = analytic.novel_views(size, NOVEL)
    drawn = render(gaussians, cameras, "cpu")
    error = (drawn.over(1.0).numpy() - over(truth)) ** 2
    inside = (drawn.alpha.numpy() > 0.5) | (truth[..., 3] > 0.5)
    return float(np.mean([-10 * np.log10(e[m].mean()) for e, m in zip(error, inside, strict=True)]))


def equal(a: Gaussians, b: Gaussians) -> bool:
    return all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


def warped(pictures: OrbitViews) -> OrbitViews:
    return OrbitViews(np.roll(pictures.rgba, 1, axis=2), pictures.orbit)


@pytest.mark.slow
@pytest.mark.parametrize(("init", "least"), [("hull", 21.0), ("ball", 19.0)])
def test_the_fit_shows_the_object_from_new_cameras(init: str, least: float) -> None:
    settings = FitSettings(
        iterations=300,
        size=96,
        points=2000,
        max_gaussians=5000,
        lpips=0.0,
        rgb=2.0,
        init=init,  # type: ignore[arg-type]
    )
    fit = start(settings)
    before = held_out_psnr(fit.gaussians(), 96)
    fit.run(300)
    after = held_out_psnr(fit.finished(), 96)
    assert before < 14
    assert after > least
    assert len(fit.gaussians()) > 2000


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    a, b, c = start(), start(), start(seed=4)
    for fit in (a, b, c):
        fit.run(25)
    assert equal(a.gaussians(), b.gaussians())
    assert not equal(a.gaussians(), c.gaussians())


def test_a_fit_that_was_killed_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """Stopped between two densifications, so that their statistics matter too; loaded over another seed's state."""
    whole = start()
    whole.run(60)
    first = start()
    first.run(34)
    first.save(tmp_path / "fit.pt")
    second = start()
    second.load(tmp_path / "fit.pt")
    assert second.iteration == 34
    second.run(60)
    assert len(second.gaussians()) != QUICK.points
    assert equal(whole.gaussians(), second.gaussians())


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut"])
def test_a_damaged_checkpoint_is_explained(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "fit.pt").write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        start().load(tmp_path / "fit.pt")


def test_new_targets_move_the_splats_on_from_where_they_are() -> None:
    """The paper's loop: fit, retarget to refined views, fit on."""
    fit = start()
    fit.run(40)
    splats, loss = fit.gaussians(), rgb_loss(fit)
    fit.retarget(warped(views()))
    assert equal(fit.gaussians(), splats)
    assert fit.iteration == 40
    fit.run(41)
    assert rgb_loss(fit) > loss
    fit.run(60)
    assert fit.iteration == 60
    assert rgb_loss(fit) < 0.1 * QUICK.rgb


def test_progress_counts_the_steps_of_the_leg_and_shows_a_picture() -> None:
    calls = []
    fit = start()
    fit.run(5, silent)
    fit.run(200, lambda step, steps, preview=None: calls.append((step, steps, preview)))
    assert [c[:2] for c in calls] == [(5, 55), (15, 55), (25, 55), (35, 55), (45, 55), (55, 55)]
    shown = [p for *_, p in calls if p is not None]
    assert [p.shape for p in shown] == [(48, 48, 3)]
    assert 0 <= shown[0].min() < shown[0].max() <= 1


def test_a_progress_that_raises_stops_the_fit() -> None:
    def stop(step: int, steps: int, preview: object = None) -> None:
        raise KeyboardInterrupt

    fit = start()
    with pytest.raises(KeyboardInterrupt):
        fit.run(60, stop)
    assert fit.iteration == 10


def test_every_view_is_compared_once_before_any_comes_again() -> None:
    for count in (1, 3):
        fit = start(dataclasses.replace(QUICK, views_per_iteration=count))
        rows = [row for i in range(16) for row in fit._rows(i)]
        for lap in range(count):
            assert sorted(rows[16 * lap : 16 * (lap + 1)]) == list(range(16))


def test_finished_splats_are_all_seen() -> None:
    fit = start()
    fit.run(30)
    finished = fit.finished()
    assert 10 < len(finished) < len(fit.gaussians())
    assert float(blending_weights(fit.gaussians(), fit.cameras, "cpu").amax(dim=0).min()) < 0.3


def test_the_hull_start_lies_on_the_object() -> None:
    gaussians = initial_gaussians(views(), dataclasses.replace(QUICK, points=3000), seed=0)
    distance = analytic.signed_distance(gaussians.means.double().numpy())
    # The hull fills the cavity, and thin parts are as wide as its cells.
    assert np.quantile(np.abs(distance), 0.8) < 0.03
    assert np.abs(distance).max() < 0.25
    ball = initial_gaussians(views(), dataclasses.replace(QUICK, init="ball"), seed=0)
    assert len(ball) == QUICK.points
    assert float(ball.means.norm(dim=1).max()) < 0.75


def silhouettes(alpha: np.ndarray) -> OrbitViews:
    rgba = np.concatenate([np.full((*alpha.shape, 3), 0.5), alpha[..., None]], axis=-1).astype(np.float32)
    return OrbitViews(rgba, Orbit.uniform(len(alpha), 10.0))


def test_views_without_a_common_volume_end_in_a_sentence() -> None:
    empty = np.zeros((8, 48, 48))
    with pytest.raises(InputError, match="no common volume"):
        start(pictures=silhouettes(empty))
    # A flat panel seen exactly edge-on in half of the views.
    panel = empty.copy()
    panel[::2, 10:38, 10:38] = 1
    with pytest.raises(InputError, match="no common volume"):
        start(pictures=silhouettes(panel))
    # The object jumps from corner to corner.
    jumping = empty.copy()
    jumping[::2, 2:14, 2:14] = 1
    jumping[1::2, 34:46, 34:46] = 1
    with pytest.raises(InputError, match="no common volume"):
        start(pictures=silhouettes(jumping))


def test_two_views_are_enough_to_start() -> None:
    pair = OrbitViews(views().rgba[[0, 4]], dataclasses.replace(views().orbit, azimuths_deg=(0.0, 90.0)))
    fit = start(pictures=pair)
    fit.run(12)
    assert torch.isfinite(fit.gaussians().means).all()


@pytest.mark.slow
def test_short_fits_prefer_the_true_elevation() -> None:
    def score(elevation: float) -> float:
        pictures = views()
        return photometric_score(
            OrbitViews(pictures.rgba, dataclasses.replace(pictures.orbit, elevation_deg=elevation))
        )

    assert score(15.0) > max(score(5.0), score(25.0))


def test_the_elevation_is_fitted_with_the_splats(monkeypatch: pytest.MonkeyPatch) -> None:
    small = dataclasses.replace(score.TILT_FIT, size=128, iterations=260, points=2000, max_gaussians=4000)
    monkeypatch.setattr(score, "TILT_FIT", small)
    pictures = analytic.orbit_views(128)
    true = pictures.orbit.elevation_deg
    assert true is not None
    for wrong in (-1.0, 0.8):
        orbit = dataclasses.replace(pictures.orbit, elevation_deg=true + wrong)
        assert abs(score.refined_elevation(OrbitViews(pictures.rgba, orbit)) - true) < abs(wrong) - 0.25


def test_the_first_iterations_compare_pictures_of_half_the_size(tmp_path: Path) -> None:
    settings = dataclasses.replace(QUICK, iterations=10, ramp=0.4, size=192)
    pictures = analytic.orbit_views(192, count=4)

    def fit() -> SplatFit:
        return start(settings, pictures)

    sizes: list[int] = []
    whole = fit()
    for iteration in range(10):
        whole.run(iteration + 1)
        sizes.append(whole.cameras.size)
    assert sizes == [96] * 4 + [192] * 6
    # One that was saved before the change goes on as the other did.
    first, second = fit(), fit()
    first.run(3)
    first.save(tmp_path / "fit.pt")
    second.load(tmp_path / "fit.pt")
    second.run(10)
    for name, value in vars(whole.gaussians()).items():
        torch.testing.assert_close(getattr(second.gaussians(), name), value, rtol=0, atol=0)
    small = start(dataclasses.replace(settings, size=0), analytic.orbit_views(96, count=4))
    assert small.cameras.size == 96


def test_adam_steps_as_torch_steps() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(50, 3, generator=generator)
    mine, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizers = [torch.optim.Adam([p], lr=1e-2, eps=1e-15, fused=True) for p in (mine, theirs)]
    for step in range(5):
        mine.grad = torch.randn(50, 3, generator=generator)
        theirs.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)
        _adam_step(optimizers[0])
        optimizers[1].step()
        assert mine.grad is None
        assert torch.equal(mine, theirs)
