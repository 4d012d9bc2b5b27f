"""Training of mini: augmentations, the split of the rendered orbits, exact resume."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import TINY_MINI, tiny_mini
from torch import nn

from im3d.cli.main import main
from im3d.core.orbit import DEFAULT_FOV_DEG, Cameras, focal_length, look_at_origin
from im3d.errors import InputError
from im3d_lab.packs import Pack
from im3d_lab.training.data import opengl
from im3d_lab.training.data.batches import FRONT_SHARE, Batch, Changes, OrbitBatches
from im3d_lab.training.data.orbits import OrbitSet, balanced_shares, orbits_per_prop
from im3d_lab.training.data.volumes import VolumeTargets
from im3d_lab.training.muon import ADAMW_RMS, Muon
from im3d_lab.training.picture_losses import PictureDistance, soft_iou_loss
from im3d_lab.training.train import (
    LOSSES,
    DistributedContext,
    Trainer,
    export,
    initial_model,
    learning_rate,
    optimizers,
    train,
)
from im3d_lab.training.train_settings import TrainSettings
from im3d_lab.training.validate import validate


def dots(points: np.ndarray, azimuths: np.ndarray, elevation: float, size: int = 64) -> torch.Tensor:
    """(1, K, 4, size, size): one pixel for each projected point, a colour each."""
    views = np.stack([look_at_origin(a, elevation, opengl.RADIUS) for a in azimuths])
    xyz = Cameras(views, focal_length(DEFAULT_FOV_DEG, size), size).project(points)
    canvas = torch.zeros(1, len(azimuths), 4, size, size)
    for k, view in enumerate(xyz):
        for i, (x, y, _) in enumerate(view):
            canvas[0, k, :, int(y), int(x)] += torch.tensor([i == 0, i == 1, i == 2, 1.0])
    return canvas


POINTS = np.array([[0.53, 0.21, 0.31], [-0.37, 0.44, -0.22], [0.11, -0.61, 0.07]])
AZIMUTHS = np.arange(16) * 22.5


def dotted(points: np.ndarray = POINTS) -> OrbitSet:
    """One orbit of dots, at an elevation of 20°."""
    views = (dots(points, AZIMUTHS, 20.0) * 255).byte().movedim(2, -1).numpy()
    return OrbitSet(views, np.array([20], np.float32), np.array(["train"]), np.array(["p"]))


def plain_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Changes, "recolored", lambda self, rgb: rgb)


@pytest.mark.parametrize("seed", range(6))
def test_training_orbits_are_rings_of_the_turned_and_mirrored_prop(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_colours(monkeypatch)
    batches = OrbitBatches(dotted(), np.array([0]), torch.device("cpu"), 64)
    batch = batches.draw(1, torch.Generator().manual_seed(seed))
    turn = np.deg2rad(-22.5 * batch.changes.start.item())
    points = POINTS @ np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]).T
    if batch.changes.mirrored.item():
        points = points * [-1, 1, 1]
    assert batch.index.tolist() == [list(range(16))]
    expected = dots(points, AZIMUTHS, 20.0)
    # A dot on the border of two pixels may fall into either.
    assert (batch.views - expected).abs().sum() <= 0.05 * expected.sum()


def test_augmentations_differ() -> None:
    batches = OrbitBatches(dotted(), np.array([0]), torch.device("cpu"), 64)
    changes = batches.draw(400, torch.Generator().manual_seed(0), 0).changes
    assert changes.mirrored.float().mean() == pytest.approx(0.5, abs=0.1)
    assert (changes.start == 0).float().mean() == pytest.approx(FRONT_SHARE + (1 - FRONT_SHARE) / 16, abs=0.1)
    # What becomes of white: brightness and tint, whatever saturation and the channels' order are.
    sums = changes.mix.sum(dim=2)
    assert len(sums[:, 0].unique()) > 390
    assert (sums.max(dim=1).values / sums.min(dim=1).values).max() <= 1.15 / 0.85 + 1e-5


def test_a_few_views_are_those_of_the_whole_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_colours(monkeypatch)
    batches = OrbitBatches(random_orbits(), np.arange(10), torch.device("cpu"), 32)
    batch = batches.draw(4, torch.Generator().manual_seed(1), 3)
    assert batch.views.shape == (4, 4, 4, 32, 32)
    stored, _ = batches.take(batch.changes.rows)
    for i in range(4):
        assert batch.index[i, 0] == 0
        assert len(set(batch.index[i].tolist())) == 4
        for view, step in zip(batch.views[i], batch.index[i].tolist(), strict=True):
            mirrored = bool(batch.changes.mirrored[i])
            found = stored[i, (int(batch.changes.start[i]) + (-step if mirrored else step)) % 16]
            torch.testing.assert_close(view, found.flip(-1) if mirrored else found)


def test_colours_change_alike_in_all_views_and_never_exceed_alpha() -> None:
    orbits = random_orbits(20)
    orbits.views[:] = orbits.views[:, :1]
    batch = OrbitBatches(orbits, np.arange(10), torch.device("cpu"), 32).draw(8, torch.Generator().manual_seed(0))
    torch.testing.assert_close(batch.views, batch.views[:, :1].expand_as(batch.views))
    assert (batch.views[:, :, :3] <= batch.views[:, :, 3:]).all()
    stored = torch.from_numpy(orbits.views[batch.changes.rows.numpy(), 0]).permute(0, 3, 1, 2) / 255
    given = torch.where(batch.changes.mirrored.view(-1, 1, 1, 1), stored.flip(-1), stored)
    torch.testing.assert_close(batch.views[:, 0, 3], given[:, 3])
    expected = torch.minimum(batch.changes.recolored(given[:, :3]).clamp_min(0), given[:, 3:])
    torch.testing.assert_close(batch.views[:, 0, :3], expected)
    assert (batch.views[:, 0, :3] - given[:, :3]).abs().amax() > 0.01


def test_recipes_repeat_and_stay_in_range() -> None:
    for i in range(50):
        a, b = opengl.training_recipe("chair", i), opengl.training_recipe("chair", i)
        assert (a.elevation_deg, a.azimuth_deg, a.scale) == (b.elevation_deg, b.azimuth_deg, b.scale)
        assert 0 <= a.elevation_deg <= 45
        assert 0.7 <= a.scale <= 1.12
        assert max(map(abs, a.offset)) <= 0.1
        assert np.linalg.norm(a.sun_direction) == pytest.approx(1)
    placed = [
        (r.scale, r.offset) == (1.0, (0.0, 0.0, 0.0)) for r in (opengl.training_recipe("c", i) for i in range(400))
    ]
    assert sum(placed) / 400 == pytest.approx(opengl.EXACT_SHARE, abs=0.08)
    deformed = [opengl.training_recipe("c", i).deformation is not None for i in range(400)]
    assert sum(deformed) / 400 == pytest.approx(opengl.DEFORMED_SHARE, abs=0.08)
    assert opengl.held_out_recipe("chair", 0).azimuth_deg == 0
    assert len({opengl.training_recipe("chair", i).elevation_deg for i in range(50)}) == 50


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


class AnyVolumes:
    """Random targets, for tests that do not look at them."""

    def at(self, changes: Changes, size: int, depths: int) -> VolumeTargets:
        generator = torch.Generator().manual_seed(int(changes.rows.sum()))
        shape = (len(changes.rows), depths, size, size)
        occupancy = (torch.rand(shape, generator=generator) > 0.8).float()
        weight = torch.ones(shape[0], 1, depths // 2, size, size)
        return VolumeTargets(occupancy, torch.rand(weight.expand(-1, 3, -1, -1, -1).shape, generator=generator), weight)


def new_trainer(**settings: Any) -> Trainer:
    chosen = TrainSettings(**{"batch": 2, "warmup": 6, "seed": 5, "rendered_views": 2, **settings})
    model, _, _ = initial_model(None, 5, **TINY_MINI)
    return Trainer(model, chosen, DistributedContext(torch.device("cpu")))


def run(out: Path, steps: int, resume: bool = False, **settings: Any) -> list[float]:
    trainer = new_trainer(steps=steps, muon=True, **settings)
    if resume:
        trainer.load(out)
    losses: list[float] = []
    train(trainer, random_orbits(), AnyVolumes(), out, 0.0, lambda _, loss: losses.append(loss))  # type: ignore[arg-type]
    return losses


@pytest.mark.parametrize(("rendered_views", "perceptual"), [(0, 0.0), (2, 0.0), (2, 1.0)])
def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path, rendered_views: int, perceptual: float) -> None:
    settings: dict[str, Any] = {"rendered_views": rendered_views, "perceptual_weight": perceptual}
    unbroken = run(tmp_path / "a", 8, **settings)
    # Stopped inside the warm-up, which must go on rather than begin anew.
    first = run(tmp_path / "b", 4, **settings)
    assert first + run(tmp_path / "b", 8, resume=True, **settings) == unbroken


def test_export_starts_another_run(tmp_path: Path) -> None:
    run(tmp_path, 4)
    model, step, seen = initial_model(tmp_path / "model", 0)
    assert (step, seen) == (4, 8)
    assert model.config["sample_size"] == 32
    with pytest.raises(InputError):
        initial_model(tmp_path / "nothing", 0)


def test_a_network_of_more_depths_starts_with_the_views_of_fewer(tmp_path: Path) -> None:
    """Opacities within what finer cells change; another size is refused."""
    model = tiny_mini()
    with torch.no_grad():
        # A slab with a soft front, as a network imagines one: the tiny one's own noise has no depth to interpolate.
        depths = torch.arange(8.0)
        model.shape.head.weight[:8] *= 0.2
        model.shape.head.bias[:8] = 2 - 2 * (depths - 4).abs()
    export(model, tmp_path / "model", 3, 6, torch.float32)
    deeper, step, seen = initial_model(tmp_path / "model", 0, depths=16, samples=16)
    assert (step, seen) == (3, 6)
    assert deeper.config["depths"] == 16
    picture = torch.rand(2, 4, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.inference_mode():
        before, after = (m.eval().imagine(picture, torch.tensor([20.0, 5.0])).views for m in (model, deeper))
    assert before[:, :, 3].max() > 0.9
    assert (before - after).abs().mean() < 0.02
    assert (before - after.flip(1)).abs().mean() > 0.04  # what unequal views would give
    for wrong in ({"depths": 12}, {"widths": (8, 8, 8, 8)}):
        with pytest.raises(InputError):
            initial_model(tmp_path / "model", 0, **wrong)


def one_batch(views: int = 2) -> tuple[Batch, VolumeTargets]:
    batches = OrbitBatches(random_orbits(), np.arange(10), torch.device("cpu"), 32)
    generator = torch.Generator().manual_seed(0)
    batch = batches.draw(2, generator, views)
    return batch, AnyVolumes().at(batch.changes, 16, 8)


def test_each_loss_reaches_its_part_of_the_network() -> None:
    trainer = new_trainer()
    batch, targets = one_batch()
    for part, names in (
        (0, {"shape"}),
        (1, {"shape"}),
        (2, {"shape"}),
        (3, {"shape", "opacity"}),
        (4, {"shape", "opacity", "decoder", "condition_embedding"}),
        (5, {"shape", "opacity", "decoder", "condition_embedding"}),
    ):
        for module in trainer.model.modules():  # what starts at zero would hide what lies before it
            for p in module.parameters(recurse=False):
                if p.requires_grad and not p.any():
                    torch.nn.init.normal_(p, std=0.05)
        trainer.model.zero_grad()
        trainer.losses(batch, targets, torch.Generator().manual_seed(0))[part].backward()
        reached = {n.split(".")[0] for n, p in trainer.model.named_parameters() if p.grad is not None and p.grad.any()}
        assert reached == names


def test_the_soft_iou_loss_is_one_minus_the_overlap() -> None:
    target = torch.zeros(1, 2, 8, 8)
    target[0, 0, :4], target[0, 1, :, :2] = 1, 1
    moved = torch.zeros_like(target)
    moved[0, 0, 2:6], moved[0, 1, :, :2] = 1, 1
    assert soft_iou_loss(target, target) == 0
    # A third of the first view's union is shared; the second is equal.
    assert float(soft_iou_loss(moved, target)) == pytest.approx((2 / 3 + 0) / 2)
    # What is undecided costs: half coverage of the right place is as bad as covering half of it.
    assert float(soft_iou_loss(0.5 * target, target)) == pytest.approx(0.5)
    assert soft_iou_loss(torch.zeros_like(target), torch.zeros_like(target)) <= 1  # empty views are no error


def test_the_first_part_of_a_leg_trains_the_volume_alone(tmp_path: Path) -> None:
    trainer = new_trainer(steps=4, volume_first=0.5)
    asked: list[int] = []
    losses = trainer.losses

    def watched(batch: Batch, targets: VolumeTargets, generator: torch.Generator) -> torch.Tensor:
        asked.append(batch.views.shape[1] - 1)
        return losses(batch, targets, generator)

    trainer.losses = watched  # type: ignore[method-assign]
    train(trainer, random_orbits(), AnyVolumes(), tmp_path, 0.0)  # type: ignore[arg-type]
    assert asked == [0, 0, 2, 2]


def test_the_perceptual_distance_prefers_a_sharp_guess_to_the_mean() -> None:
    """Of stripes whose place is not known the squared error is least for plain grey."""
    rows = torch.arange(64)

    def stripes(offset: int) -> torch.Tensor:
        rgb = ((rows + offset) // 4 % 2).float().view(1, 1, 1, 64, 1).expand(1, 2, 3, 64, 64)
        return torch.cat([rgb, torch.ones(1, 2, 1, 64, 64)], dim=2)

    truth, moved, mean = stripes(0), stripes(2), (stripes(0) + stripes(4)) / 2
    assert (moved - truth).square().mean() > (mean - truth).square().mean()
    distance = PictureDistance(torch.device("cpu"))

    def of(views: torch.Tensor) -> float:
        return float(distance(views, truth, torch.Generator().manual_seed(0)))

    assert of(truth) == pytest.approx(0, abs=1e-6)
    assert of(moved) < 0.7 * of(mean)
    # What is see-through shows the grey behind it, so that coverages count.
    assert of(truth * 0.5) > 0.01


def test_a_frozen_shape_stays() -> None:
    trainer = new_trainer(frozen_shape=True)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    for step in range(3):
        trainer.train_step(one_batch()[0], None, torch.Generator().manual_seed(step), 1e-3)
    changed = {k.split(".")[0] for k, v in trainer.model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"decoder", "condition_embedding"}


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
    model = new_trainer().model
    made = optimizers(model, TrainSettings(muon=muon), torch.device("cpu"))
    assert len(made) == 1 + muon
    trained = [id(p) for optimizer in made for group in optimizer.param_groups for p in group["params"]]
    assert len(trained) == len(set(trained))
    assert set(trained) == {id(p) for p in model.parameters() if p.requires_grad}
    frozen = {name.split(".")[1] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"recognition"}


def test_learning_rate_rises_and_falls() -> None:
    trainer = new_trainer(steps=100, warmup=10, decay=0.5, learning_rate=1.0)
    rates = []
    for trainer.step in range(100):
        rates.append(learning_rate(trainer, 0.0))
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:50] == [1.0] * 40
    assert rates[75] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.02)


@pytest.mark.parametrize("muon", [False, True])
def test_training_lowers_every_loss(muon: bool) -> None:
    trainer = new_trainer(muon=muon, perceptual_weight=1.0)
    batch, _ = one_batch()
    occupancy = torch.zeros(2, 8, 16, 16)
    occupancy[:, 2:5, 4:12, 5:11] = 1
    weight = occupancy.unflatten(1, (4, 2)).mean(dim=2)[:, None]
    targets = VolumeTargets(occupancy, torch.tensor([0.9, 0.2, 0.1]).view(1, 3, 1, 1, 1) * weight.sign(), weight)
    views = torch.zeros_like(batch.views)
    views[..., 8:24, 10:22] = 0.8
    batch = dataclasses.replace(batch, views=views, elevation=torch.full((2,), 40.0))
    losses = torch.stack(
        [trainer.train_step(batch, targets, torch.Generator().manual_seed(i), 3e-3) for i in range(40)]
    )
    ratios = losses[-8:].mean(dim=0) / losses[:8].mean(dim=0)
    assert (ratios < 0.8).all(), dict(zip(LOSSES, ratios.tolist(), strict=True))


def test_scores_of_a_perfect_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    orbits = random_orbits()
    batches = OrbitBatches(orbits, np.array([3]), torch.device("cpu"), 32)
    truth, elevation = batches.take([0])
    monkeypatch.setattr("im3d_lab.training.validate.sample_orbit", lambda *a, **k: (truth, elevation + 2))
    scores = validate(new_trainer().model, batches)
    assert scores.psnr > 90
    assert scores.iou == 1
    assert scores.elevation_error_deg == pytest.approx(2, abs=1e-4)
    assert scores.copy_psnr < 30


def write_grouped_pack(path: Path, groups: list[str]) -> Path:
    """A pack of nothing but an index."""
    index = [{"id": f"prop{i}", "group": group, "parts": []} for i, group in enumerate(groups)]
    np.savez(path, index_json=np.frombuffer(json.dumps(index).encode(), np.uint8))
    return path


def test_variants_of_one_model_are_drawn_as_often_as_one_prop(tmp_path: Path) -> None:
    wall = write_grouped_pack(tmp_path / "a.npz", ["wall"] * 30 + [f"chair{i}" for i in range(100)])
    other = write_grouped_pack(tmp_path / "b.npz", [f"lamp{i}" for i in range(60)])
    names = [f"a.npz/{i}" for i in Pack.open(wall).ids] + [f"b.npz/{i}" for i in Pack.open(other).ids]
    splits = np.array(Pack.open(wall).splits + Pack.open(other).splits)
    orbits = OrbitSet(np.zeros((190, 16, 8, 8, 4), np.uint8), np.zeros(190, np.float32), splits, np.array(names))
    shares = balanced_shares(orbits, [wall, other])
    assert shares[:30].sum() == pytest.approx(1)
    assert set(shares[30:]) == {1}
    assert {pack: len(rows) for pack, rows in orbits.rows_by_pack("test").items()} == {"a.npz": 40, "b.npz": 40}


def test_a_group_that_tests_in_another_pack_is_never_drawn(tmp_path: Path) -> None:
    first = write_grouped_pack(tmp_path / "a.npz", [f"chair{i}" for i in range(100)])
    tested = Pack.open(first).ids_of("test")
    second = write_grouped_pack(tmp_path / "b.npz", ["chair" + tested[0].removeprefix("prop")] * 3 + ["lamp"] * 3)
    assert Pack.open(second).splits == ["train"] * 6
    names = np.array([f"b.npz/{i}" for i in Pack.open(second).ids])
    orbits = OrbitSet(
        np.zeros((6, 16, 8, 8, 4), np.uint8), np.arange(6, dtype=np.float32), np.array(["train"] * 6), names
    )
    shares = balanced_shares(orbits, [first, second])
    np.testing.assert_allclose(shares, [0, 0, 0, 1 / 3, 1 / 3, 1 / 3])
    batches = OrbitBatches(orbits, np.arange(6), torch.device("cpu"), 8, shares)
    drawn = batches.draw(600, torch.Generator().manual_seed(0), 0).elevation.int()
    assert torch.bincount(drawn, minlength=6)[:3].sum() == 0
    assert torch.bincount(drawn, minlength=6)[3:].min() > 150


def test_weights_are_scored_pack_by_pack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    random = random_orbits(8)
    split = np.array(["validation", "test"] * 4)
    prop = np.array(["a.npz/1", "a.npz/1", "b.npz/1", "b.npz/1"] * 2)
    orbits = dataclasses.replace(random, split=split, prop=prop)
    asked: list[Any] = []
    monkeypatch.setattr("im3d_lab.training.data.orbits.render_packs", lambda *a: asked.append(a) or orbits)
    run(tmp_path, 1)
    weights = str(tmp_path / "model")
    assert main(["train", "score", "--pack", "x", "--cache", str(tmp_path), "--weights", weights]) == 0
    rows = [
        [c.strip() for c in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines() if "npz" in line
    ]
    assert [row[1:4] for row in rows] == [
        ["validation", "a.npz", "2"],
        ["validation", "b.npz", "2"],
        ["test", "a.npz", "2"],
        ["test", "b.npz", "2"],
    ]
    assert all(float(row[4]) > 0 and float(row[8]) > 0 for row in rows)
    assert asked[0][3] == 0  # nothing of the training props is rendered
    assert orbits_per_prop([5, 3], 0) == [0, 0]
