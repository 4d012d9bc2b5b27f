"""The share of a whole job that is done: refinement rounds counted, resumed jobs where they were, times learnt."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from im3d.core import images
from im3d.core.progress import Progress, part, silent
from im3d.errors import Im3dError, InputError
from im3d.jobs import preview, runner
from im3d.jobs.job import Job, Request
from im3d.jobs.job_progress import USUAL, JobProgress, StageTimes, Step, fit_pauses, kind, planned_steps
from im3d.jobs.runner import StepRunner
from im3d.settings import preset_settings
from im3d.shared.names import STAGES
from im3d.shared.protocol import Message


def request(tmp_path: Path, **source: str) -> Request:
    return Request("pot", **(source or {"image": str(tmp_path)}), settings=preset_settings("standard"))


def fractions(progress: JobProgress, steps: list[Step]) -> list[float]:
    """After each tenth of each step."""
    seen = [progress.fraction]
    for step in steps:
        for tenth in range(1, 11):
            progress.within(step.name, tenth / 10)
            seen.append(progress.fraction)
        progress.finish(step.name)
    return seen


def test_two_refinement_rounds_are_part_of_the_whole(tmp_path: Path) -> None:
    steps = planned_steps(request(tmp_path), {})
    names = [step.name for step in steps]
    assert names == [
        "load", "image", "orbit", "fit to 330", "refine 1", "fit to 660", "refine 2", "fit to 800", "splats", "mesh",
        "texture", "export",
    ]  # fmt: skip
    for stage in STAGES:
        assert sum(step.share for step in steps if step.stage == stage) == pytest.approx(1.0)
    seen = fractions(JobProgress(steps, []), steps)
    assert (seen[0], seen[-1]) == (0.0, pytest.approx(1.0))
    rises = np.diff(seen)
    assert rises.min() >= 0
    assert rises.max() < 0.05  # no leap: the rounds' fit is not done at the first round's end


@pytest.mark.parametrize(("source", "first", "refined"), [("prompt", "picture", True), ("views", "image", False)])
def test_each_source_has_its_steps(tmp_path: Path, source: str, first: str, refined: bool) -> None:
    names = [step.name for step in planned_steps(request(tmp_path, **{source: str(tmp_path)}), {})]
    assert names[1] == first
    assert ("refine 1" in names) is refined


def test_rounds_are_planned_when_the_chosen_generator_can_refine(tmp_path: Path) -> None:
    picture, views = request(tmp_path), request(tmp_path, views=str(tmp_path))
    assert fit_pauses(picture, {}) == fit_pauses(picture, {"can_refine": True}) == [330, 660, 800]
    assert fit_pauses(picture, {"can_refine": False}) == fit_pauses(views, {}) == [800]
    names = [step.name for step in planned_steps(picture, {"can_refine": False})]
    assert "fit to 800" in names
    assert "refine 1" not in names


def test_the_kind_of_a_job_names_the_chosen_generator_and_the_rounds(tmp_path: Path) -> None:
    automatic = request(tmp_path)
    mini, sv3d = ({"generator": name, "can_refine": True} for name in ("mini", "sv3d_u"))
    assert kind("cpu", automatic, mini) == kind("cpu", dataclasses.replace(automatic, generator="mini"), mini)
    assert kind("cpu", automatic, mini) != kind("cpu", automatic, sv3d)
    settings = automatic.settings
    single = dataclasses.replace(settings, refine=dataclasses.replace(settings.refine, rounds=1))
    assert kind("cpu", automatic, mini) != kind("cpu", dataclasses.replace(automatic, settings=single), mini)


def test_a_new_plan_never_takes_back_progress() -> None:
    steps = [Step("load", "load"), Step("fit", "fit")]
    progress = JobProgress(steps, [])
    progress.finish("load")
    before = progress.fraction
    progress.plan(steps, ["load"], {**dict.fromkeys(STAGES, 0.0), "load": 1.0, "fit": 99.0})
    assert progress.fraction == before > 0.01
    assert progress.eta_s == pytest.approx((1 - before) * 100, abs=0.1)
    progress.finish("fit")
    assert progress.fraction == pytest.approx(1.0)


def test_a_resumed_job_begins_where_it_was(tmp_path: Path) -> None:
    steps = planned_steps(request(tmp_path), {})
    whole = JobProgress(steps, [])
    for step in steps[:6]:
        whole.finish(step.name)
    assert JobProgress(steps, [s.name for s in steps[:6]]).fraction == pytest.approx(whole.fraction)
    assert fractions(JobProgress(steps, [s.name for s in steps[:6]]), steps[6:])[-1] == pytest.approx(1.0)


def test_the_time_left_follows_the_jobs_own_pace() -> None:
    now = [0.0]
    steps = [Step("fit", "fit"), Step("mesh", "mesh")]
    known = {**dict.fromkeys(STAGES, 0.0), "fit": 60.0, "mesh": 40.0}
    progress = JobProgress(steps, [], known, lambda: now[0])
    assert progress.eta_s == 100.0
    now[0] = 60.0  # twice as slow as before
    progress.within("fit", 0.5)
    assert progress.fraction == pytest.approx(0.3)
    assert progress.eta_s == pytest.approx(0.7 * (10 + 60) / 0.4, abs=0.1)
    new = JobProgress(steps, [], None, lambda: now[0])
    assert new.eta_s is None
    now[0] += 30.0
    new.within("fit", 0.5)
    half = 0.5 * USUAL["fit"] / (USUAL["fit"] + USUAL["mesh"])
    assert new.eta_s == pytest.approx((1 - half) * 30 / half, abs=0.1)


def test_times_are_learnt_for_a_kind_and_damage_is_forgotten(tmp_path: Path) -> None:
    path, this = tmp_path / "times.json", kind("cpu", request(tmp_path), {})
    assert this != kind("cpu", request(tmp_path, views=str(tmp_path)), {})
    StageTimes(path).learn(this, {"fit": 10.0})
    StageTimes(path).learn(this, {"fit": 20.0, "mesh": 5.0})
    assert StageTimes(path).of(this) == {**dict.fromkeys(STAGES, 0.0), "fit": 14.0, "mesh": 2.0}
    assert StageTimes(path).of("another") is None
    for text in ("", "[]", '{"k": 3}', '{"k": {"fit": "x"}}'):
        path.write_text(text)
        assert StageTimes(path).of("k") is None
    StageTimes(tmp_path / "no home" / "times.json").learn(this, {"fit": 1.0})
    assert not (tmp_path / "no home").exists()


def test_a_part_of_a_stage_fills_its_own_share() -> None:
    told: list[tuple[int, int]] = []
    half = part(lambda step, steps, preview=None: told.append((step, steps)), 0.5, 1.0)
    for step in range(5):
        half(step, 4)
    assert told == [(50, 100), (62, 100), (75, 100), (88, 100), (100, 100)]
    assert part(silent, 0.0, 1.0) is silent  # a preview waits for the GPU: none is made for nobody


def test_a_preview_that_cannot_be_replaced_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows while Blender reads the one before; and on a full disk."""
    job = Job.create(tmp_path / "job", request(tmp_path))
    heard: list[Message] = []
    run = StepRunner(job, heard.append, Event(), JobProgress([Step("fit", "fit")], []))
    tries: list[OSError] = [PermissionError(13, "in use"), OSError(28, "full"), OSError(5, "broken")]

    def refuse(*_: object) -> None:
        raise tries.pop()

    def work(progress: object) -> None:
        monkeypatch.setattr(images, "write_png", refuse)
        for number in range(3):
            progress.last_preview = -10.0  # type: ignore[attr-defined]
            progress(number + 1, 3, np.zeros((4, 4, 3), np.float32))  # type: ignore[operator]

    run("fit", work)
    assert tries == []
    assert job.state.finished == ["fit"]
    assert [m["type"] for m in heard] == ["progress"] * 4
    assert [m["fraction"] for m in heard] == [0.0, pytest.approx(0.3333), pytest.approx(0.6667), 1.0]


def test_progress_goes_on_while_a_stage_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As while a model is loaded; the work waits here until it was heard three times."""
    heard: list[float] = []
    enough = Event()

    def listen(message: Message) -> None:
        heard.append(message["fraction"])
        if len(heard) == 5:
            enough.set()

    def work(progress: Progress) -> None:
        progress(0, 20)
        assert enough.wait(20)

    monkeypatch.setattr(runner, "CREEP_S", 0.01)
    monkeypatch.setattr(runner, "HALF_WAY_S", 0.1)
    job = Job.create(tmp_path / "job", request(tmp_path))
    StepRunner(job, listen, Event(), JobProgress([Step("fit", "fit"), Step("mesh", "mesh")], []))("fit", work)
    assert heard[:2] == [0.0, 0.0]
    assert heard[1] < heard[2] < heard[3] < heard[4]


def test_a_silence_is_half_over_after_half_a_minute_and_never_ends_the_step() -> None:
    shares = [runner.crept(0, 1, s) for s in (0.0, 30.0, 60.0, 120.0, 600.0)]
    assert shares == sorted(set(shares))
    assert (shares[0], shares[1]) == (0.0, 0.5)
    assert shares[-1] < 1
    assert 3 / 20 < runner.crept(0, 20, 60.0) < runner.LOADING  # loading is more than one step of many
    assert 0.5 < runner.crept(10, 20, 60.0) < 0.55


def test_a_preview_by_other_means_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blender failed at it; no Blender at all is no surprise."""
    shown: list[Path] = []
    said: list[str] = []
    rendered = SimpleNamespace(over=lambda _: [torch.zeros(4, 4, 3)])
    monkeypatch.setattr(preview, "render", lambda *_: rendered)
    monkeypatch.setattr(preview, "write_preview", lambda path, _: shown.append(path))
    orbit = SimpleNamespace(cameras=lambda size: [None])
    job = SimpleNamespace(folder=tmp_path, log=lambda _: None)

    def refuse(*_: object) -> None:
        raise Im3dError("Failed to denoise.")

    def absent(*_: object) -> None:
        raise InputError("There is no Blender.")

    monkeypatch.setattr(preview, "render_preview", refuse)
    for find in (lambda _: None, absent):
        monkeypatch.setattr(preview, "find_blender", find)
        preview.make_preview(job, None, orbit, None, said.append)  # type: ignore[arg-type]
    assert shown == [tmp_path / "preview.png"] * 2
    assert said == ["The preview shows the splats, because Blender could not render the mesh: Failed to denoise."]
