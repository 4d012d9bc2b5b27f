"""Fine-tuning by the paper's recipe, on a small SV3D with random weights."""

from __future__ import annotations

import gzip
import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sv3d_checkpoint import GOLDEN, SMALL_P, SMALL_U, small_checkpoints

from im3d.cli.main import main
from im3d.core.images import OrbitViews
from im3d.core.orbit import Orbit
from im3d.core.progress import silent
from im3d.errors import InputError, ModelError
from im3d.generators.base import GeneratorInputs, Subject
from im3d.generators.choose import build_generator
from im3d.generators.sv3d.generator import Sv3dGenerator
from im3d.generators.sv3d.network import SV3D_U, empty_networks
from im3d.generators.sv3d.weights import UNET, load_networks, unet_name
from im3d.settings import Settings, Sv3dSettings
from im3d_lab.training.data.orbits import OrbitSet
from im3d_lab.training.finetune import WEIGHTS, Finetuner, FinetuneSettings, finetune, is_temporal
from im3d_lab.training.train import DistributedContext

HERE = DistributedContext(torch.device("cpu"))
SMALL = FinetuneSettings(size=64, batch=2, steps=2, learning_rate=1e-3)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return small_checkpoints(tmp_path_factory.mktemp("sv3d"))


def small(checkpoints: dict[str, Path], name: str = "sv3d_u", settings: FinetuneSettings = SMALL) -> Finetuner:
    config = SMALL_P if name == "sv3d_p" else SMALL_U
    return Finetuner(name, checkpoints[name], config, settings, HERE)  # type: ignore[arg-type]


def orbits(count: int = 4, views: int = 4) -> OrbitSet:
    """Rings of a square that moves with the azimuth, in random colours."""
    rng = np.random.default_rng(0)
    rings = np.zeros((count, views, 64, 64, 4), np.uint8)
    for ring in rings:
        colour = rng.integers(60, 200, 3)
        for k, view in enumerate(ring):
            view[16:48, 12 + 4 * k : 36 + 4 * k] = (*colour, 255)
    split = np.array(["train"] * (count - 1) + ["validation"])
    return OrbitSet(rings, rng.uniform(0, 45, count).astype(np.float32), split, np.array(["p/x"] * count))


def one_video() -> torch.Tensor:
    return torch.from_numpy(orbits().views[0]).movedim(-1, 1).float() / 255


class TestWhatIsTrained:
    def test_the_papers_share_of_the_true_network(self) -> None:
        parameters = dict(empty_networks(SV3D_U).unet.named_parameters())
        trained = sum(p.numel() for n, p in parameters.items() if is_temporal(n))
        assert trained == pytest.approx(656.08e6, rel=1e-4)
        assert sum(p.numel() for p in parameters.values()) == pytest.approx(1523.97e6, rel=1e-4)

    def test_it_is_what_the_published_file_calls_time(self) -> None:
        with gzip.open(GOLDEN, "rt") as file:
            keys = [key.removeprefix(UNET) for key in json.load(file)["sv3d_p"]]
        published = {unet_name(k) for k in keys if any(t in k for t in ("time_stack", "time_pos_embed", "time_mixer"))}
        assert {unet_name(k) for k in keys if is_temporal(unet_name(k))} == published
        assert 100 < len(published) < len(keys)

    def test_a_step_changes_all_that_is_temporal_and_nothing_else(self, checkpoints: dict[str, Path]) -> None:
        trainer = small(checkpoints)
        before = {n: p.detach().clone() for n, p in trainer.unet.named_parameters()}
        loss = trainer.train_step(one_video()[None], torch.tensor([10.0]), torch.Generator().manual_seed(0))
        assert math.isfinite(loss)
        changed = {n for n, p in trainer.unet.named_parameters() if not torch.equal(p, before[n])}
        assert changed == {n for n in before if is_temporal(n)}
        assert not any(p.requires_grad for p in trainer.generator._loaded().vae.parameters())


class TestLoss:
    @pytest.mark.parametrize("name", ["sv3d_u", "sv3d_p"])
    def test_it_is_the_papers_with_its_weight(self, name: str, checkpoints: dict[str, Path]) -> None:
        """(σ² + 1)·‖ε̂ − ε‖², with ε̂ from the denoiser that sampling uses."""
        trainer = small(checkpoints, name, FinetuneSettings(size=64, drop=0.0))
        video = one_video()
        with torch.no_grad():
            loss = trainer.loss(video, 20.0, torch.Generator().manual_seed(3))
            generator = torch.Generator().manual_seed(3)
            sigma = (torch.randn(1, generator=generator) * 1.6 + 1.0).exp()
            torch.rand(2, generator=generator)
            rgb = (video[:, :3] + 1 - video[:, 3:]).movedim(1, -1).numpy()
            drawing = trainer.generator
            z = drawing.encode(np.roll(rgb, -1, axis=0))
            noise = torch.randn(z.shape, generator=generator)
            x = z + sigma * noise
            told = drawing.condition(rgb[0], Orbit.uniform(4, 20.0))
            drawing._guidance = 1.0  # the conditional pass alone
            denoised = drawing.denoiser(told)(x, sigma[0])
        theirs = (sigma**2 + 1) * ((x - denoised) / sigma - noise).square().mean()
        torch.testing.assert_close(loss, theirs[0], rtol=1e-3, atol=1e-4)

    def test_conditions_are_hidden_in_their_share(self, checkpoints: dict[str, Path]) -> None:
        seen: list[tuple[bool, bool]] = []
        trainer = small(checkpoints, settings=FinetuneSettings(size=64, drop=0.5))
        forward = trainer.unet.forward

        def watched(sample: torch.Tensor, level: torch.Tensor, context: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            seen.append((bool(context.any()), bool(sample[:, :, 4:].any())))
            return forward(sample, level, context, v)

        trainer.unet.forward = watched  # type: ignore[method-assign]
        with torch.no_grad():
            for seed in range(16):
                trainer.loss(one_video(), 10.0, torch.Generator().manual_seed(seed))
        assert len(set(seen)) == 4

    def test_it_learns_one_video(self, checkpoints: dict[str, Path]) -> None:
        trainer = small(checkpoints, settings=FinetuneSettings(size=64, drop=0.0, learning_rate=2e-3))
        video, elevation = one_video()[None], torch.tensor([10.0])
        losses = [trainer.train_step(video, elevation, torch.Generator().manual_seed(7)) for _ in range(12)]
        assert losses[-1] < 0.7 * losses[0]


class TestRuns:
    def test_a_resumed_run_is_the_run_that_was_never_stopped(
        self, checkpoints: dict[str, Path], tmp_path: Path
    ) -> None:
        steps: list[int] = []
        whole = small(checkpoints)
        finetune(whole, orbits(), tmp_path / "whole", time.monotonic(), lambda step, loss: steps.append(step))
        assert steps == [1, 2]
        half = FinetuneSettings(size=64, batch=2, steps=1, learning_rate=1e-3)
        finetune(small(checkpoints, settings=half), orbits(), tmp_path / "half", time.monotonic(), lambda *_: None)
        again = small(checkpoints)
        again.load(tmp_path / "half")
        assert again.step == 1
        finetune(again, orbits(), tmp_path / "half", time.monotonic(), lambda *_: None)
        for name, parameter in whole.trained.items():
            torch.testing.assert_close(parameter, again.trained[name], rtol=0, atol=0)

    def test_what_it_leaves_draws(self, checkpoints: dict[str, Path], tmp_path: Path) -> None:
        trainer = small(checkpoints, settings=FinetuneSettings(size=64, batch=1, steps=1, learning_rate=1e-2))
        finetune(trainer, orbits(), tmp_path, time.monotonic(), lambda *_: None)
        written = load_file(tmp_path / WEIGHTS)
        assert all(key.startswith(UNET) for key in written)
        networks = load_networks(
            checkpoints["sv3d_u"], SMALL_U, torch.float32, torch.float32, finetuned=tmp_path / WEIGHTS
        )
        for name, parameter in networks.unet.named_parameters():
            theirs = dict(trainer.unet.named_parameters())[name].detach()
            torch.testing.assert_close(parameter, theirs.half().float() if is_temporal(name) else theirs)

        def drawn(finetuned: Path | None) -> OrbitViews:
            generator = Sv3dGenerator(
                "sv3d_u", "cpu", views=3, size=64, steps=1, checkpoint=checkpoints["sv3d_u"], config=SMALL_U,
                segment=lambda rgb: np.pad(np.ones((32, 32), np.float32), 16), finetuned=finetuned,
            )  # fmt: skip
            return generator.generate(Subject(np.full((64, 64, 4), 0.5, np.float32)), 0, silent)

        assert not np.array_equal(drawn(None).rgba, drawn(tmp_path / WEIGHTS).rgba)

    def test_wrong_files_are_explained(self, checkpoints: dict[str, Path], tmp_path: Path) -> None:
        save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
        for path in (tmp_path / "other.safetensors", tmp_path / "none.safetensors"):
            with pytest.raises(ModelError, match="no fine-tuned weights"):
                load_networks(checkpoints["sv3d_u"], SMALL_U, torch.float32, torch.float32, finetuned=path)
        with pytest.raises(InputError, match="does not exist"):
            gone = Settings(sv3d=Sv3dSettings(finetuned=str(tmp_path / "gone")))
            build_generator("sv3d_u", GeneratorInputs(torch.device("cpu"), gone))
        with pytest.raises(InputError, match="no state"):
            small(checkpoints).load(tmp_path)

    def test_nothing_to_train_on(self, checkpoints: dict[str, Path], tmp_path: Path) -> None:
        with pytest.raises(InputError, match="0 orbits"):
            finetune(small(checkpoints), orbits(1), tmp_path, time.monotonic(), lambda *_: None)

    def test_the_command_names_a_missing_model(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("IM3D_HOME", str(tmp_path))
        folders = ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
        assert main(["train", "finetune", "--pack", str(tmp_path / "p.npz"), *folders]) == 3
        assert "im3d models download sv3d_u" in capsys.readouterr().err


def test_the_defaults_are_the_papers() -> None:
    settings = FinetuneSettings()
    assert (settings.size, settings.batch, settings.learning_rate) == (512, 240, 1e-5)
