"""The process that does the work: what it leaves behind when a job is over."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from typing import Any

import pytest

from im3d import pipeline
from im3d.errors import CancelledError
from im3d.jobs.job import Job, Request
from im3d.service import worker
from im3d.shared.protocol import Message, message


class Splats:
    """Stands for what a job holds of the GPU."""


@pytest.mark.parametrize("cancelled", [False, True])
def test_memory_is_handed_back_when_nothing_of_the_job_is_left(
    cancelled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[Splats]] = []
    left: list[Splats | None] = []

    def run_pipeline(*_: Any, **__: Any) -> dict[str, Any]:
        splats = Splats()
        held.append(weakref.ref(splats))
        if cancelled:
            raise CancelledError("The job was cancelled.")
        return {}

    said: list[Message] = []
    monkeypatch.setattr(pipeline, "run_pipeline", run_pipeline)
    order: list[str] = []
    monkeypatch.setattr(worker.MODELS, "rest", lambda: order.append("rest"))

    def give_back_memory() -> None:
        order.append("give back")
        left.extend(ref() for ref in held)

    monkeypatch.setattr(worker, "give_back_memory", give_back_memory)
    job = Job.create(tmp_path / "job", Request(name="pot", views=str(tmp_path)))
    worker.Worker(said.append, None)._work("a", job.folder, threading.Event())  # type: ignore[arg-type]
    assert left == [None]
    assert order == ["rest", "give back"]
    assert [message["type"] for message in said] == ["error" if cancelled else "result"]


class Jobs:
    """A worker whose jobs only note whether they were cancelled, and which of them were."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cancelled: dict[str, bool] = {}
        self.meanwhile: dict[str, Message] = {}
        self.worker = worker.Worker(lambda _: None, None)  # type: ignore[arg-type]
        self.folder = folder
        monkeypatch.setattr(pipeline, "run_pipeline", self._run)
        monkeypatch.setattr(worker, "incoming", lambda: None)
        monkeypatch.setattr(worker, "read_messages", lambda *_: None)

    def ask(self, name: str) -> None:
        job = Job.create(self.folder / name, Request(name=name, views=str(self.folder)))
        self.worker._take(message("resume", name, job=str(job.folder)))

    def _run(self, job: Job, _: Any, cancel: threading.Event, **__: Any) -> None:
        if job.request.name in self.meanwhile:
            self.worker._take(self.meanwhile[job.request.name])
        self.cancelled[job.request.name] = cancel.is_set()

    def run(self) -> dict[str, bool]:
        self.worker._jobs.put(None)
        self.worker.run()
        return self.cancelled


def test_a_cancel_before_the_job_begins_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Jobs(tmp_path, monkeypatch)
    jobs.ask("a")
    jobs.ask("b")
    jobs.worker._take(message("cancel", "b"))
    assert jobs.run() == {"a": False, "b": True}


def test_a_cancel_for_a_job_that_has_ended_meets_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Jobs(tmp_path, monkeypatch)
    for name in ("a", "b"):
        jobs.ask(name)
    jobs.meanwhile["b"] = message("cancel", "a")
    assert jobs.run() == {"a": False, "b": False}
    assert jobs.worker._cancels == {}


def test_a_job_asked_for_again_is_not_cancelled_by_its_past(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Jobs(tmp_path, monkeypatch)
    jobs.ask("a")
    jobs.meanwhile["a"] = message("cancel", "a")
    assert jobs.run() == {"a": True}
    jobs.meanwhile.clear()
    jobs.ask("a")
    assert jobs.run() == {"a": False}


def test_what_nobody_foresaw_is_the_jobs_error_and_not_the_workers_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Message] = []

    def run_pipeline(*_: Any, **__: Any) -> None:
        raise ValueError("embedded null byte")

    monkeypatch.setattr(pipeline, "run_pipeline", run_pipeline)
    job = Job.create(tmp_path / "job", Request(name="pot", views=str(tmp_path)))
    worker.Worker(said.append, None)._work("a", job.folder, threading.Event())  # type: ignore[arg-type]
    assert (said[0]["code"], said[0]["log"]) == ("internal", str(job.folder / "log.txt"))
