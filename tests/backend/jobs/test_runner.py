"""Steps of a job: what is skipped, cancelled, timed and reported; the clock is ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import numpy as np
import pytest

from im3d.core.progress import Progress
from im3d.errors import CancelledError, Im3dError
from im3d.jobs import runner
from im3d.jobs.job import Job, Request
from im3d.jobs.job_progress import JobProgress, Step
from im3d.jobs.runner import StepRunner, crept, explain
from im3d.shared.protocol import Message

PICTURE = np.full((4, 4, 3), 0.5, np.float32)


class Clock:
    """Stands for the module `time`: goes on only when it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(runner, "time", clock)
    return clock


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job.create(tmp_path / "job", Request(name="pot", views=str(tmp_path)))


class Run:
    """A runner of a job with the steps fit and mesh, and the messages that it sent."""

    def __init__(self, job: Job) -> None:
        self.job, self.cancel = job, Event()
        self.sent: list[Message] = []
        progress = JobProgress([Step("fit", "fit"), Step("mesh", "mesh")], job.state.finished)
        self.steps = StepRunner(job, self.sent.append, self.cancel, progress)

    def kinds(self) -> list[str]:
        return [message["type"] for message in self.sent]


def never(_: Progress) -> None:
    pytest.fail("a finished step was run again")


def test_a_finished_step_is_skipped_without_a_message_also_by_the_next_process(job: Job) -> None:
    ran: list[str] = []
    first = Run(job)
    first.steps("fit", lambda _: ran.append("fit"))
    first.sent.clear()
    first.steps("fit", never)
    assert first.sent == []
    again = Run(Job.open(job.folder))
    again.steps("fit", never)
    again.steps("mesh", lambda _: ran.append("mesh"))
    assert ran == ["fit", "mesh"]
    assert {message["stage"] for message in again.sent} == {"mesh"}
    assert again.sent[0]["fraction"] > 0.5  # the fit counts for more than the mesh


@pytest.mark.parametrize("when", ["before the step", "within it"])
def test_a_cancelled_step_is_not_finished(when: str, job: Job) -> None:
    run = Run(job)
    reached: list[str] = []

    def work(progress: Progress) -> None:
        reached.append("begun")
        run.cancel.set()
        progress(1, 2)
        reached.append("went on")

    if when == "before the step":
        run.cancel.set()
    with pytest.raises(CancelledError):
        run.steps("fit", work)
    assert reached == ([] if when == "before the step" else ["begun"])
    assert Job.open(job.folder).state.finished == []
    assert run.kinds() == ([] if when == "before the step" else ["progress"])


def test_a_step_that_fails_is_not_finished_and_has_no_time(job: Job) -> None:
    def work(_: Progress) -> None:
        raise Im3dError("broken")

    with pytest.raises(Im3dError, match="broken"):
        Run(job).steps("fit", work)
    assert (job.state.finished, job.state.timings_s) == ([], {})


def test_times_add_up_in_the_stage_that_a_step_counts_for(job: Job, clock: Clock) -> None:
    def lasting(seconds: float) -> Callable[[Progress], None]:
        return lambda _: setattr(clock, "now", clock.now + seconds)

    run = Run(job)
    run.steps.machine = {"device": "cpu"}
    run.steps("fit to 500", lasting(3.0), "fit")
    run.steps("fit to 1000", lasting(2.5), "fit")
    run.steps("mesh", lasting(4.0))
    assert job.state.timings_s == {"fit": pytest.approx(5.5), "mesh": pytest.approx(4.0)}
    assert job.state.notes["ran_with"] == {name: {"device": "cpu"} for name in ("fit to 500", "fit to 1000", "mesh")}
    assert "fit to 1000: done in 2.5 s" in (job.folder / "log.txt").read_text(encoding="utf-8")


def test_messages_are_sent_one_at_a_time(job: Job) -> None:
    """Progress also comes from the thread that reports for a silent stage."""
    run = Run(job)
    alone: dict[str, bool] = {}
    run.steps.listener = lambda message: alone.update({message["type"]: run.steps._sending.locked()})
    run.steps("fit", lambda progress: progress(1, 2, PICTURE))
    assert alone == {"progress": True, "preview": True}


def test_an_error_without_a_log_refers_to_none() -> None:
    assert (
        explain(RuntimeError("odd"), "/jobs/log.txt").hint == "The log /jobs/log.txt has the details; please report it."
    )
    assert explain(RuntimeError("odd"), None).hint == "Please report it."


def test_one_preview_a_second_at_most(job: Job, clock: Clock) -> None:
    def work(progress: Progress) -> None:
        for step in range(1, 11):
            progress(step, 10, PICTURE)
            clock.now += 0.4

    run = Run(job)
    run.steps("fit", work)
    # At 0, 1.2, 2.4 and 3.6 s; progress is reported each time, and once for the step's beginning.
    assert run.kinds().count("preview") == 4
    assert run.kinds().count("progress") == 11
    assert [message["path"] for message in run.sent if message["type"] == "preview"] == [
        str(job.folder / "preview.png")
    ] * 4


def creeping_alone(run: Run, clock: Clock, monkeypatch: pytest.MonkeyPatch, waits: int) -> list[Message]:
    """What is sent while a stage is silent for so many waits of CREEP_S: the thread runs here, before the stage."""

    class Waits:
        def __init__(self) -> None:
            self.left = waits

        def wait(self, seconds: float) -> bool:
            clock.now += seconds
            self.left -= 1
            return self.left < 0

        def set(self) -> None:
            assert self.left < 0

    def thread(target: Callable[[], None], daemon: bool) -> SimpleNamespace:
        return SimpleNamespace(start=target, join=lambda: None)

    monkeypatch.setattr(runner, "Event", Waits)
    monkeypatch.setattr(runner, "Thread", thread)
    begun: list[int] = []
    run.steps("fit", lambda _: begun.append(len(run.sent)))
    return run.sent[1 : begun[0]]


def test_a_silent_stage_creeps_for_ten_minutes_and_no_longer(
    job: Job, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(job)
    sent = creeping_alone(run, clock, monkeypatch, waits=300)
    assert len(sent) == runner.MOST_S / runner.CREEP_S
    share = run.sent[-1]["fraction"] / crept(0, 1, runner.MOST_S)  # of the fit in the whole job
    expected = [round(share * crept(0, 1, runner.CREEP_S * k), 4) for k in range(1, len(sent) + 1)]
    assert [message["fraction"] for message in sent] == pytest.approx(expected, abs=2e-4)
    assert {(message["step"], message["steps"]) for message in sent} == {(0, 1)}


def test_a_cancelled_stage_creeps_no_more(job: Job, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(job)
    send = run.sent.append

    def listen(message: Message) -> None:
        send(message)
        if len(run.sent) == 3:
            run.cancel.set()

    run.steps.listener = listen
    assert len(creeping_alone(run, clock, monkeypatch, waits=10)) == 2
