"""Training of mini: augmentations, the split of the rendered orbits, exact resume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import TINY_MINI
from torch import nn

from im3d.errors import InputError
from im3d.generators.mini_model import enlarged, shrunk
from im3d.orbit import DEFAULT_FOV_DEG, Cameras, focal_length, look_at_origin
from im3d.training import render
from im3d.training.batches import OrbitBatches, mirrored, random_colour, rolled
from im3d.training.muon import ADAMW_RMS, Muon
from im3d.training.orbits import OrbitSet, orbits_per_prop
from im3d.training.train import (
    Place,
    Trainer,
    TrainSettings,
    export,
    initial_model,
    learning_rate,
    optimizers,
    train,
)
from im3d.training.validate import validate


def dots(points: np.ndarray, azimuths: np.ndarray, elevation: float, size: int = 64) -> torch.Tensor:
    """(1, K, 4, size, size): one pixel for each projected point, a colour each."""
    views = np.stack([look_at_origin(a, elevation, render.RADIUS) for a in azimuths])
    xyz = Cameras(views, focal_length(DEFAULT_FOV_DEG, size), size).project(points)
    canvas = torch.zeros(1, len(azimuths), 4, size, size)
    for k, view in enumerate(xyz):
        for i, (x, y, _) in enumerate(view):
            canvas[0, k, :, int(y), int(x)] += torch.tensor([i == 0, i == 1, i == 2, 1.0])
    return canvas


TINY = {"size": TINY_MINI["sample_size"], **{k: v for k, v in TINY_MINI.items() if k != "sample_size"}}
POINTS = np.array([[0.53, 0.21, 0.31], [-0.37, 0.44, -0.22], [0.11, -0.61, 0.07]])
AZIMUTHS = np.arange(16) * 22.5


def test_mirroring_views_is_mirroring_the_prop() -> None:
    flipped = dots(POINTS * [-1, 1, 1], AZIMUTHS, 20.0)
    torch.testing.assert_close(mirrored(dots(POINTS, AZIMUTHS, 20.0)), flipped)


def test_rolling_views_is_turning_the_ring() -> None:
    views = dots(POINTS, AZIMUTHS, 20.0)
    torch.testing.assert_close(rolled(views, torch.tensor([3])), dots(POINTS, AZIMUTHS + 3 * 22.5, 20.0))


def test_colours_change_alike_in_all_views() -> None:
    one = torch.rand(8, 1, 4, 4, 4) * 0.4
    one[:, :, 3] = 1
    views = random_colour(one.expand(-1, 16, -1, -1, -1), torch.Generator().manual_seed(0))
    torch.testing.assert_close(views, views[:, :1].expand_as(views))
    assert (views[:, 0, :3] - one[:, 0, :3]).abs().amax() > 0.01
    torch.testing.assert_close(views[:, :, 3], torch.ones_like(views[:, :, 3]))


def test_colours_never_exceed_alpha() -> None:
    views = torch.rand(16, 16, 4, 4, 4)
    views[:, :, :3] *= views[:, :, 3:]
    changed = random_colour(views, torch.Generator().manual_seed(0))
    assert (changed[:, :, :3] <= changed[:, :, 3:]).all()


def test_recipes_repeat_and_stay_in_range() -> None:
    for i in range(50):
        a, b = render.training_recipe("chair", i), render.training_recipe("chair", i)
        assert (a.elevation_deg, a.azimuth_deg, a.scale) == (b.elevation_deg, b.azimuth_deg, b.scale)
        assert 0 <= a.elevation_deg <= 45
        assert 0.8 < a.scale <= 1
        assert np.linalg.norm(a.sun_direction) == pytest.approx(1)
    assert render.held_out_recipe("chair", 0).azimuth_deg == 0
    assert len({render.training_recipe("chair", i).elevation_deg for i in range(50)}) == 50


def test_small_packs_get_more_orbits_of_each_prop() -> None:
    small, large = orbits_per_prop([700, 2700], 12)
    assert small > 12 > large
    assert (700 * small + 2700 * large) / 3400 == pytest.approx(12, rel=0.05)


def random_orbits(count: int = 12, size: int = 32) -> OrbitSet:
    rng = np.random.default_rng(0)
    views = rng.integers(0, 256, (count, 16, size, size, 4), dtype=np.uint8)
    views[..., :3] = np.minimum(views[..., :3], views[..., 3:])
    split = np.array(["train"] * (count - 2) + ["validation", "test"])
    return OrbitSet(views, rng.uniform(0, 45, count).astype(np.float32), split, np.array(["p"] * count))


def test_training_rows_hold_no_prop_of_another_split(tmp_path: Path) -> None:
    orbits = random_orbits()
    taken = set(orbits.rows("train")) & (set(orbits.rows("validation")) | set(orbits.rows("test")))
    assert not taken
    batches = OrbitBatches(orbits, orbits.rows("train"), torch.device("cpu"), 32)
    assert len(batches) == 10
    views, elevation = batches.take([9])
    np.testing.assert_allclose(views[0].movedim(1, -1).numpy() * 255, orbits.views[9], atol=1e-4)
    assert elevation.item() == orbits.elevation_deg[9]


def run(out: Path, steps: int, resume: bool = False) -> list[float]:
    settings = TrainSettings(size=32, batch=2, steps=steps, warmup=6, seed=5, muon=True)
    model, _, _ = initial_model(None, 5, **TINY)
    trainer = Trainer(model, settings, Place(torch.device("cpu")))
    if resume:
        trainer.load(out)
    losses: list[float] = []
    train(trainer, random_orbits(), out, 0.0, lambda _, loss: losses.append(loss))
    return losses


def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path) -> None:
    unbroken = run(tmp_path / "a", 8)
    # Stopped inside the warm-up, which must go on rather than begin anew.
    assert run(tmp_path / "b", 4) + run(tmp_path / "b", 8, resume=True) == unbroken


def test_export_starts_another_run(tmp_path: Path) -> None:
    run(tmp_path, 4)
    model, step, seen = initial_model(tmp_path / "model", 0, 32)
    assert (step, seen) == (4, 8)
    assert model.config["sample_size"] == 32
    with pytest.raises(InputError):
        initial_model(tmp_path / "nothing", 0, 32)


def test_weights_for_small_views_go_on_with_large_ones(tmp_path: Path) -> None:
    """The volume's share of the picture is the same before a step at twice the size."""
    small, _, _ = initial_model(None, 5, **{**TINY, "size": 16})
    for p in small.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.05)
    export(small.eval(), tmp_path, 7, 70, torch.float32)
    large, step, seen = initial_model(tmp_path, 0, 32)
    assert (step, seen, large.config["sample_size"]) == (7, 70, 32)
    with pytest.raises(ValueError, match="refined already"):
        enlarged(large)
    condition = torch.rand(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    sigma, elevation = torch.tensor([500.0]), torch.tensor([20.0])
    with torch.no_grad():
        coarse = small(torch.zeros(1, 16, 4, 16, 16), sigma, condition, elevation).coarse
        fine = large.eval()(torch.zeros(1, 16, 4, 32, 32), sigma, condition, elevation).coarse
    assert fine.shape[-1] == 2 * coarse.shape[-1]
    assert (shrunk(fine, coarse.shape[-1]) - coarse).abs().mean() < 0.1 * coarse.abs().mean()


def test_muon_steps_along_orthogonal_matrices_of_adamws_size() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(24, 8, 3, 3))
    gradient = torch.randn(24, 1) @ torch.randn(1, 72) + 0.1 * torch.randn(24, 72)
    weight.grad = gradient.view(24, 8, 3, 3)
    Muon([weight], lr=1.0, momentum=0.0).step()
    step = -weight.detach().flatten(1)
    singular = torch.linalg.svdvals(step) / (ADAMW_RMS * 72**0.5)
    assert 0.6 < singular.min() < singular.max() < 1.3
    u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
    # The same directions as the gradient's, all with one length.
    torch.testing.assert_close(u.T @ step @ vh.T, torch.diag(torch.diag(u.T @ step @ vh.T)), atol=0.05, rtol=0)
    with pytest.raises(ValueError, match="two or more dimensions"):
        Muon([nn.Parameter(torch.zeros(3))], lr=1.0)


@pytest.mark.parametrize("muon", [False, True])
def test_every_weight_is_trained_once(muon: bool) -> None:
    model, _, _ = initial_model(None, 0, **TINY)
    made = optimizers(model, TrainSettings(size=32, muon=muon), torch.device("cpu"))
    assert len(made) == 1 + muon
    trained = [id(p) for optimizer in made for group in optimizer.param_groups for p in group["params"]]
    assert len(trained) == len(set(trained))
    assert set(trained) == {id(p) for p in model.parameters() if p.requires_grad}
    frozen = {name.split(".")[1] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"recognition"}


def test_learning_rate_rises_and_falls() -> None:
    settings = TrainSettings(size=32, batch=2, steps=100, warmup=10, decay=0.5, learning_rate=1.0)
    model, _, _ = initial_model(None, 0, **TINY)
    trainer = Trainer(model, settings, Place(torch.device("cpu")))
    rates = []
    for trainer.step in range(100):
        rates.append(learning_rate(trainer, 0.0))
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:50] == [1.0] * 40
    assert rates[75] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.02)


def test_training_lowers_the_loss() -> None:
    settings = TrainSettings(size=32, batch=2, steps=24, warmup=5, learning_rate=2e-3)
    model, _, _ = initial_model(None, 0, **TINY)
    trainer = Trainer(model, settings, Place(torch.device("cpu")))
    views = torch.zeros(2, 16, 4, 32, 32)
    views[..., 8:24, 10:22] = 0.8
    elevation = torch.full((2,), 30.0)
    losses = []
    for step in range(24):
        generator = torch.Generator().manual_seed(step)
        losses.append(trainer.train_step(views, elevation, generator, 2e-3)[0].item())
    assert np.mean(losses[-8:]) < 0.7 * np.mean(losses[:8])


def test_scores_of_a_perfect_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    orbits = random_orbits()
    batches = OrbitBatches(orbits, np.array([3]), torch.device("cpu"), 32)
    truth, elevation = batches.take([0])
    monkeypatch.setattr("im3d.training.validate.sample_orbit", lambda *a, **k: (truth, elevation + 2))
    model, _, _ = initial_model(None, 0, **TINY)
    scores = validate(model, batches)
    assert scores.psnr > 90
    assert scores.iou == 1
    assert scores.elevation_error_deg == pytest.approx(2, abs=1e-4)
    assert scores.copy_psnr < 30
