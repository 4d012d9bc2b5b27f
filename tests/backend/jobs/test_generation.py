"""Whole jobs whose views are drawn: from a sentence or a picture to an object, the paper's loop, resuming in it."""

from __future__ import annotations

import dataclasses
import json
import socket
import weakref
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from analytic import orbit_views
from sv3d_checkpoint import SMALL_P, random_checkpoint, write_checkpoint
from sv3d_oracle import Oracle
from tiny_models import copying, record, tiny_mini, tiny_sdxl

from im3d.cli.main import main
from im3d.core.images import FloatArray, OrbitViews, over, read_image, read_views, write_png
from im3d.core.orbit import Orbit
from im3d.core.progress import silent
from im3d.core.storage import write_json
from im3d.errors import CancelledError, InputError, ModelError
from im3d.generators.choose import Choice
from im3d.generators.mini import generator as mini
from im3d.generators.mini.model import VolumeDenoiser
from im3d.generators.sv3d import generator as sv3d, weights as sv3d_weights
from im3d.generators.sv3d.generator import Conditioning
from im3d.jobs import context, stages
from im3d.jobs.job import Job, Request
from im3d.models.catalog import find_model
from im3d.models.memory_modes import MODES
from im3d.pipeline import run_pipeline
from im3d.settings import Settings, parse_overrides, preset_settings
from im3d.shared.protocol import Message
from im3d.splats.fit import SplatFit
from im3d.splats.gaussians import Gaussians
from im3d.views import text_to_image

# Small enough for seconds. The fit has three runs, with the loop's two rounds between them.
SMALL = ("fit.iterations=24", "fit.size=48", "fit.points=600", "fit.max_gaussians=800", "refine.interval=10",
         "refine.steps=2", "mesh.grid=48", "mesh.virtual_views=4", "mesh.faces=1000", "mesh.outline_rounds=0",
         "texture.size=128", "texture.normal_map=false", "texture.polish=0", "fit.lpips_shrink=2")  # fmt: skip
SV3D = ("sv3d.size=64", "sv3d.views=6", "sv3d.steps=2")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small random models, installed: SDXL, both of SV3D, and mini."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IM3D_HOME", str(folder))
        tiny_sdxl(find_model("sdxl").folder)
        record("sdxl")
        find_model("sv3d_p").folder.mkdir(parents=True)
        write_checkpoint(find_model("sv3d_p").folder / "sv3d_p.safetensors", random_checkpoint(SMALL_P))
        record("sv3d_p")
        tiny_mini().save_pretrained(folder / "models" / "mini")
    return folder


@pytest.fixture
def installed_models(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IM3D_HOME", str(home))
    # The preview by Cycles has its own test; a Blender that does not exist makes it come from the splats.
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(mini, "SHIPPED_WEIGHTS", home / "none")
    # Random weights give no object that could be fitted.
    monkeypatch.setattr(VolumeDenoiser, "forward", copying)
    monkeypatch.setattr(sv3d, "SV3D_P", SMALL_P)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """The first view of the test object, on white."""
    path = tmp_path / "pot.png"
    write_png(path, over(orbit_views(96, count=2).rgba[0]))
    return path


def middle(rgb: FloatArray) -> FloatArray:
    """Stands for IS-Net: the object is a disc in the middle, whatever the picture shows."""
    y, x = (np.mgrid[: rgb.shape[0], : rgb.shape[1]] + 0.5) / len(rgb) - 0.5
    return (x**2 + y**2 < 0.35**2).astype(np.float32)


def generate(
    capsys: pytest.CaptureFixture[str], *extra: str, settings: tuple[str, ...] = ()
) -> tuple[int, dict[str, Any]]:
    """`im3d generate`; returns the exit status and the object on the last line."""
    changes = [part for value in (*SMALL, *settings) for part in ("--set", value)]
    status = main(["generate", *changes, "--device", "cpu", "--blender", "/none", "--json", *extra])
    return status, json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.mark.slow
@pytest.mark.usefixtures("installed_models")
def test_from_a_sentence_to_an_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SDXL draws the picture, sv3d_p the views, each on random weights; everything after is the product."""
    monkeypatch.setattr(context, "installed_isnet", lambda device: middle)
    alive = watched_pipelines(monkeypatch)

    def offline(*_: object) -> None:
        raise AssertionError("something tried the network")

    monkeypatch.setattr(socket.socket, "connect", offline)
    status, result = generate(
        capsys, "--prompt", "a horse galloping", "--generator", "sv3d_p", "--out", str(tmp_path / "job"),
        settings=(*SV3D, "image.size=64", "image.steps=2"),
    )  # fmt: skip
    assert status == 0, result
    assert result["generator"] == "sv3d_p"
    assert result["generator_reason"] == ""
    assert result["image_model"] == "sdxl"
    assert result["prompt"] == "a horse galloping"
    # Two passes a step: the first orbit's 2 steps, then two rounds of 2.
    assert result["network_calls"] == 2 * (2 + 2 + 2)
    assert (result["elevation_deg"], result["elevation_method"], result["elevation_confidence"]) == (12, "prior", 0)
    assert any("galloping" in w for w in result["warnings"])
    assert any("12° was assumed" in w for w in result["warnings"])
    assert not any("looks much the same" in w for w in result["warnings"])
    assert result["mesh_stats"]["faces"] >= 20
    assert Path(result["mesh"]).stat().st_size > 1000
    # The image model was loaded, and gone before the orbit model was.
    assert alive == [0]
    drawn = read_image(tmp_path / "job" / "input.png")
    assert drawn.shape == (64, 64, 4)
    assert len(read_views(tmp_path / "job" / "views").orbit) == 6


def watched_pipelines(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many text-to-image networks were in memory each time that the orbit model was read."""
    networks: list[weakref.ref[torch.nn.Module]] = []
    alive: list[int] = []
    load_pipeline, load_networks = text_to_image.load_pipeline, sv3d_weights.load_networks

    def pipeline(*args: Any) -> Any:
        loaded = load_pipeline(*args)
        networks.extend(weakref.ref(p) for p in loaded.components.values() if isinstance(p, torch.nn.Module))
        return loaded

    def orbit_model(*args: Any, **options: Any) -> Any:
        assert networks
        alive.append(sum(network() is not None for network in networks))
        return load_networks(*args, **options)

    monkeypatch.setattr(text_to_image, "load_pipeline", pipeline)
    monkeypatch.setattr(sv3d_weights, "load_networks", orbit_model)
    return alive


@pytest.mark.slow
@pytest.mark.usefixtures("installed_models")
def test_from_a_picture_to_an_object_by_what_is_installed(
    tmp_path: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Two dozen iterations are too few for a picture that turns by being the same from everywhere.
    longer = ("fit.iterations=60",)
    status, result = generate(capsys, "--image", str(picture), "--out", str(tmp_path / "job"), settings=longer)
    assert status == 0, result
    assert result["generator"] == "mini"
    assert result["generator_reason"] == (
        "mini is the best that is installed and fits (sv3d_u is not installed; sv3d_p needs a GPU)."
    )
    assert result["mask"] == "plain background"
    assert set(result["crop"]) == {"left", "top", "side", "size"}
    assert result["network_calls"] == len(mini.SHIFTS) * mini.DEFAULT_STEPS + 2 + 2
    assert result["elevation_method"] == "network"
    assert result["elevation_confidence"] is None
    # This mini answers with nearly the input in every view.
    views = read_views(tmp_path / "job" / "views")
    subject = read_image(tmp_path / "job" / "subject.png")
    assert len(views.orbit) == 16
    assert ((views.rgba[..., 3] > 0.5) == (subject[..., 3] > 0.5)).mean() > 0.95
    assert result["mesh_stats"]["watertight"]


class StopAt:
    """A listener that cancels at a step of a stage, counted over the whole job."""

    def __init__(self, stage: str, count: int) -> None:
        self.stage, self.left, self.cancel = stage, count, Event()
        self.last, self.fraction = (0, 0), 0.0

    def __call__(self, message: Message) -> None:
        if message["type"] == "progress" and message["stage"] == self.stage:
            step, fraction = (message["step"], message["steps"]), message["fraction"]
            crept = step == self.last and fraction > self.fraction  # what is said of a silent stage does not count
            self.left -= not crept
            self.last, self.fraction = step, fraction
            if self.left == 0:
                self.cancel.set()


def run(job: Job, stop: StopAt | None = None) -> dict[str, Any]:
    stop = stop or StopAt("never", 1)
    return run_pipeline(job, stop, stop.cancel, device="cpu", blender="/none")


def new_job(folder: Path, generator: str = "mini", settings: tuple[str, ...] = SMALL, **source: Any) -> Job:
    request = Request("pot", generator=generator, settings=parse_overrides(Settings(), settings), **source)
    return Job.create(folder, request)


def loop_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the mesh out of the jobs of a test that is about the loop."""

    def finish(self: stages.Stages) -> None:
        files = dict.fromkeys(("mesh", "splats", "preview", "turntable"), "not made")
        write_json(self.job.folder / "result.json", {**files, "network_calls": self.notes["network_calls"]})

    for step in ("make_mesh", "make_texture", "export"):
        monkeypatch.setattr(stages.Stages, step, lambda self, progress: None)
    monkeypatch.setattr(stages.Stages, "finish", finish)


@pytest.mark.slow
@pytest.mark.usefixtures("installed_models")
def test_a_job_stopped_in_the_middle_of_a_refinement_goes_on_to_the_same_result(
    tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop_only(monkeypatch)
    whole = new_job(tmp_path / "whole", image=str(picture))
    assert run(whole)["network_calls"] == len(mini.SHIFTS) * mini.DEFAULT_STEPS + 2 + 2
    # After one of the second round's two steps, and each round's beginning: fit, round, fit are done.
    broken = new_job(tmp_path / "broken", image=str(picture))
    with pytest.raises(CancelledError):
        run(broken, StopAt("refine", 5))
    assert "fit to 20" in broken.state.finished
    assert "refine 2" not in broken.state.finished
    assert not (broken.work / "refine_2" / "orbit.json").exists()
    assert run(Job.open(broken.folder))["network_calls"] == len(mini.SHIFTS) * mini.DEFAULT_STEPS + 2 + 2
    for number in (1, 2):
        mine, theirs = (read_views(j.work / f"refine_{number}") for j in (broken, whole))
        np.testing.assert_array_equal(mine.rgba, theirs.rgba)
        assert mine.orbit == theirs.orbit
    assert (broken.folder / "splats.ply").read_bytes() == (whole.folder / "splats.ply").read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("installed_models")
def test_the_fit_and_its_features_are_gone_when_the_mesh_begins(
    tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop_only(monkeypatch)
    fits: list[weakref.ref[SplatFit]] = []
    whole = SplatFit.finished

    def finished(self: SplatFit) -> Gaussians:
        fits.append(weakref.ref(self))
        return whole(self)

    # Asked without a search for circles of references: gigabytes of features should not wait for one.
    left: list[SplatFit | None] = []
    monkeypatch.setattr(SplatFit, "finished", finished)
    monkeypatch.setattr(stages.Stages, "make_mesh", lambda self, progress: left.extend(ref() for ref in fits))
    run(new_job(tmp_path / "job", image=str(picture)))
    assert left == [None]


@pytest.mark.slow
@pytest.mark.usefixtures("installed_models")
def test_a_resumed_job_keeps_its_generator(tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop_only(monkeypatch)
    job = new_job(tmp_path / "job", generator="auto", image=str(picture))
    with pytest.raises(CancelledError):
        run(job, StopAt("orbit", 1))

    def nobody_asks(*_: object) -> Choice:
        raise AssertionError("the choice was made before")

    monkeypatch.setattr(context, "choose_generator", nobody_asks)
    again = stages.Stages(Job.open(job.folder), "cpu", None, lambda _: None)
    assert again.choice.name == again.generator.name == "mini"
    assert again.choice.reason.startswith("mini is the best")


@pytest.mark.slow
@pytest.mark.parametrize("K", [16, 21])
def test_an_oracle_makes_the_loop_return_the_true_views(
    K: int, tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a denoiser that knows the true views, both rounds give them back, however bad the splats' renders are."""
    loop_only(monkeypatch)
    truth = blocky(orbit_views(64, count=K))
    oracle = Oracle(truth)
    monkeypatch.setattr(context, "choose_generator", lambda *_: Choice("sv3d_p"))
    monkeypatch.setattr(context, "build_generator", lambda *_: oracle)
    job = new_job(tmp_path / "job", "sv3d_p", image=str(picture), elevation_deg=truth.orbit.elevation_deg)
    assert run(job)["network_calls"] == 4 + 2 + 2
    for folder in (job.folder / "views", job.work / "refine_1", job.work / "refine_2", job.folder / "refined"):
        views = read_views(folder)
        assert views.orbit.azimuths_deg == truth.orbit.azimuths_deg
        assert views.orbit.elevation_deg == truth.orbit.elevation_deg
        # View 0 is the input picture.
        assert np.abs(over(views.rgba) - over(truth.rgba))[1:].mean() < 0.01


class TwoOrbits(Oracle):
    """Knows the true views from two elevations, and gives those that it is asked for."""

    def __init__(self, *truths: OrbitViews) -> None:
        super().__init__(truths[0])
        self.truths = {t.orbit.elevation_deg: t for t in truths}

    def condition(self, picture: FloatArray, orbit: Orbit) -> Conditioning:
        self.truth = self.truths[orbit.elevation_deg]
        return super().condition(picture, orbit)


@pytest.mark.slow
def test_a_raised_orbit_is_drawn_and_fitted_too(tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop_only(monkeypatch)
    level, raised = (blocky(orbit_views(64, count=8, elevation_deg=e)) for e in (15.0, 40.0))
    monkeypatch.setattr(context, "choose_generator", lambda *_: Choice("sv3d_p"))
    monkeypatch.setattr(context, "build_generator", lambda *_: TwoOrbits(level, raised))
    targets: list[OrbitViews] = []
    job = new_job(tmp_path / "job", "sv3d_p", (*SMALL, "refine.raise_deg=25"), image=str(picture), elevation_deg=15.0)
    with pytest.raises(CancelledError):
        # A round tells of its beginning, an orbit four times: in the second round's raised one.
        run(job, StopAt("refine", 12))
    assert "fit to 20" in job.state.finished
    assert not (job.work / "refine_2").exists()
    monkeypatch.setattr(SplatFit, "retarget", keeping(SplatFit.retarget, targets))
    assert run(Job.open(job.folder))["network_calls"] == 4 + 2 * (2 + 2)
    # The continued job took up the first round's two orbits, and then the second's.
    assert [v.orbit.elevation_deg for v in targets] == [15.0, 15.0, 40.0, 15.0, 40.0]
    for views, truth in zip(targets[-2:], (level, raised), strict=True):
        # View 0 of the level orbit is the input picture.
        assert np.abs(over(views.rgba) - over(truth.rgba))[1:].mean() < 0.01


def keeping(method: Callable[..., None], seen: list[OrbitViews]) -> Callable[..., None]:
    """The method, and a note of the views it is called with."""

    def kept(self: SplatFit, *views: OrbitViews) -> None:
        seen.extend(views)
        method(self, *views)

    return kept


def blocky(views: OrbitViews) -> OrbitViews:
    """Views of 8×8 blocks, which the oracle's latents hold without loss."""
    K, S = views.rgba.shape[:2]
    blocks = views.rgba.reshape(K, S // 8, 8, S // 8, 8, 4)
    colours = blocks[..., :3].mean(axis=(2, 4)).clip(0, 0.8)
    solid = blocks[..., 3:].mean(axis=(2, 4)) > 0.5
    small = np.concatenate([colours, solid.astype(np.float32)], axis=-1).astype(np.float32)
    return OrbitViews(small.repeat(8, 1).repeat(8, 2), views.orbit)


def test_the_paper_preset_spends_at_most_eighty_network_calls() -> None:
    settings = preset_settings("paper")
    refinement = settings.refine.rounds * settings.refine.steps
    assert 2 * (settings.sv3d.steps + refinement) == 80
    assert len(mini.SHIFTS) * mini.DEFAULT_STEPS + refinement <= 80
    assert settings.refine.interval * settings.refine.rounds < settings.fit.iterations == 1200


@pytest.mark.usefixtures("installed_models")
def test_an_exhausted_gpu_ends_with_status_4_and_names_the_smaller_mode(
    tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(sv3d, "choose_mode", lambda wanted, device: MODES[1])
    monkeypatch.setattr(sv3d.Sv3dGenerator, "condition", exhausted)
    out = tmp_path / "job"
    status, result = generate(
        capsys, "--image", str(picture), "--generator", "sv3d_p", "--out", str(out), settings=SV3D
    )
    assert status == 4
    assert result["code"] == "out_of_memory"
    assert "in the 12 GB mode" in result["message"]
    assert "set sv3d.memory to 8" in result["hint"]
    assert "Traceback" in (out / "log.txt").read_text()
    # Nothing was drawn in a lesser way instead.
    assert not (out / "views").exists()


@pytest.mark.usefixtures("installed_models")
class TestRefusals:
    """What cannot work is said in the first second, before anything is drawn."""

    def test_a_raised_orbit_by_a_generator_without_elevations(self, tmp_path: Path, picture: Path) -> None:
        with pytest.raises(InputError, match="mini cannot render a raised orbit"):
            run(new_job(tmp_path / "job", settings=("refine.raise_deg=20",), image=str(picture)))

    def test_a_generator_for_views_that_are_given(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="this job starts from views"):
            run(new_job(tmp_path / "job", "mini", views=str(tmp_path)))

    def test_views_that_show_no_common_object(
        self, tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rgba = np.zeros((6, 64, 64, 4), np.float32)
        for k, view in enumerate(rgba):
            view[2 + 10 * k : 10 + 10 * k, (0 if k % 2 else 54) : (10 if k % 2 else 64)] = 1
        monkeypatch.setattr(sv3d.Sv3dGenerator, "generate", lambda *_: OrbitViews(rgba, Orbit.uniform(6)))
        with pytest.raises(InputError, match="sv3d_p made do not show one object") as caught:
            run(new_job(tmp_path / "job", "sv3d_p", (*SMALL, *SV3D), image=str(picture)))
        assert "another seed" in caught.value.hint

    def test_a_mask_without_a_picture(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="A mask belongs to a picture"):
            Request("pot", prompt="a pot", mask=str(tmp_path / "mask.png"))

    def test_an_elevation_out_of_range(self, tmp_path: Path, picture: Path) -> None:
        with pytest.raises(InputError, match="elevation of 100° is out of range"):
            run(new_job(tmp_path / "job", image=str(picture), elevation_deg=100.0))

    def test_a_missing_generator_says_how_to_get_it(self, tmp_path: Path, picture: Path) -> None:
        with pytest.raises(ModelError, match=r"SV3D is not installed.*9\.4 GB") as caught:
            run(new_job(tmp_path / "job", "sv3d_u", image=str(picture)))
        assert caught.value.remedy == "download sv3d_u"

    def test_a_missing_image_model_says_how_to_get_it(self, tmp_path: Path) -> None:
        job = new_job(tmp_path / "job", settings=("image.model=flux2_klein",), prompt="a mug")
        with pytest.raises(ModelError, match=r"FLUX.2 klein is not installed.*16\.0 GB") as caught:
            run(job)
        assert caught.value.remedy == "download flux2_klein"
        assert dataclasses.asdict(job.state)["status"] == "failed"
        assert job.state.finished == []

    def test_a_missing_image_model_and_a_missing_generator_are_named_together(self, tmp_path: Path) -> None:
        job = new_job(tmp_path / "job", "sv3d_u", settings=("image.model=flux2_klein",), prompt="a mug")
        with pytest.raises(ModelError) as caught:
            run(job)
        assert caught.value.remedy == "download flux2_klein sv3d_u"
        assert "FLUX.2 klein" in caught.value.message
        assert "SV3D" in caught.value.message


@pytest.mark.usefixtures("installed_models")
def test_the_users_mask_is_taken_and_the_crop_is_kept(tmp_path: Path, picture: Path) -> None:
    """The mask rules over the plain background; the subject fills what suits the generator, and its place is noted."""
    alpha = np.zeros((96, 96), np.float32)
    alpha[30:60, 20:80] = 1
    write_png(tmp_path / "mask.png", np.dstack([alpha] * 3))
    job = new_job(tmp_path / "job", image=str(picture), mask=str(tmp_path / "mask.png"))
    steps = stages.Stages(job, "cpu", None, lambda _: None)
    steps.load(silent)
    steps.make_subject(silent)
    assert steps.notes["mask"] == "mask file"
    side = 60 / steps.generator.framing
    crop = steps.notes["crop"]
    assert (crop["left"], crop["top"], crop["side"]) == pytest.approx((50 - side / 2, 45 - side / 2, side))
    assert crop["size"] == steps.generator.size
    subject = read_image(job.folder / "subject.png")
    rows, columns = np.nonzero(subject[..., 3] > 0.5)
    size = len(subject)
    assert (np.ptp(columns) + 1) / size == pytest.approx(steps.generator.framing, abs=1.5 / size)
    assert (columns.min() + columns.max() + 1) / 2 == pytest.approx(size / 2, abs=1)
    assert (rows.min() + rows.max() + 1) / 2 == pytest.approx(size / 2, abs=1)


@pytest.mark.usefixtures("installed_models")
def test_a_mask_of_another_shape_is_refused_before_anything_is_done(tmp_path: Path, picture: Path) -> None:
    """So the corrected request may have the same folder."""
    write_png(tmp_path / "mask.png", np.ones((40, 80, 3), np.float32))
    job = new_job(tmp_path / "job", image=str(picture), mask=str(tmp_path / "mask.png"))
    with pytest.raises(InputError, match=r"The mask .* is 80 x 40, the picture 96 x 96"):
        run(job)
    assert job.state.finished == []
    assert new_job(tmp_path / "job", image=str(picture)).request.mask is None


def test_the_command_line_ends_with_status_3_where_nothing_is_installed(
    tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IM3D_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(mini, "SHIPPED_WEIGHTS", tmp_path / "none")
    status, result = generate(capsys, "--image", str(picture), "--out", str(tmp_path / "job"))
    assert status == 3
    assert result["code"] == "model_missing"
    assert "SV3D (9.4 GB;" in result["hint"]
    assert result["remedy"] == "download sv3d_u"
