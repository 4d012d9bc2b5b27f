"""The queue and the real server, with a worker that misbehaves: who notices, and what a job loses by it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from extension.im3d_blender.client.backend import Backend
from extension.im3d_blender.client.queue import CANCEL_S, SILENCE_S, JobQueue, QueuedJob

from im3d.jobs.job import Job

WORKER = Path(__file__).parents[2] / "support" / "fake_worker.py"
WAIT_S = 60.0


class Supervised:
    """A queue whose clock a test can move."""

    def __init__(self, folder: Path) -> None:
        code = f"from im3d.service.server import serve; serve([{sys.executable!r}, {str(WORKER)!r}])"
        self.skipped = 0.0
        backend = Backend([sys.executable, "-c", code], folder / "log")
        self.queue = JobQueue(backend, folder / "jobs", lambda: time.monotonic() + self.skipped)

    def submit(self, plan: str) -> QueuedJob:
        return self.queue.submit({"name": "cup", "prompt": plan})

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < end, [(job.state, job.stage, job.failure) for job in self.queue.jobs]
            self.queue.tick()
            time.sleep(0.005)

    def end(self, job: QueuedJob) -> None:
        self.until(lambda: job.state not in ("waiting", "running"))


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    others = psutil.Process().children(recursive=True)
    made = Supervised(tmp_path)
    yield made
    made.queue.close()
    ours = [child for child in psutil.Process().children(recursive=True) if child not in others]
    _, alive = psutil.wait_procs(ours, timeout=WAIT_S)
    assert alive == []


def test_the_death_of_a_worker_costs_a_stage(supervised: Supervised) -> None:
    job, after = supervised.submit("die once"), supervised.submit("ok")
    supervised.end(job)
    assert (job.state, job.died_in, job.attempts) == ("done", ["fit"], 2)
    assert len(list(job.folder.glob("worker_*"))) == 2
    assert Job.open(job.folder).state.finished == ["load"]  # once: the second worker went on after it
    assert supervised.queue.backend.state == "ready"
    assert after.submitted_at >= job.submitted_at
    supervised.end(after)
    assert after.state == "done"


def test_a_second_death_in_the_same_stage_is_the_job_s_failure(supervised: Supervised) -> None:
    job, after = supervised.submit("die"), supervised.submit("ok")
    supervised.end(job)
    assert job.failure is not None
    assert (job.state, job.failure.code, job.failure.remedy) == ("failed", "worker_died", "draft")
    assert len(list(job.folder.glob("worker_*"))) == 2
    supervised.end(after)
    assert after.state == "done"


def test_a_worker_that_does_not_stop_is_ended_with_its_children(supervised: Supervised) -> None:
    job = supervised.submit("family")
    supervised.until(lambda: job.step == 2)
    (children,) = job.folder.glob("children_*")
    family = [psutil.Process(int(pid)) for pid in children.read_text().split()]
    supervised.queue.cancel(job.id)
    supervised.queue.tick()
    assert job.state == "running"
    supervised.skipped = CANCEL_S + 1
    supervised.end(job)
    assert (job.state, Job.open(job.folder).state.status) == ("cancelled", "cancelled")
    assert supervised.queue.backend.state == "ready"
    _, alive = psutil.wait_procs(family, timeout=WAIT_S)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []


def test_a_worker_that_reports_nothing_is_given_up(supervised: Supervised) -> None:
    job = supervised.submit("hang")
    supervised.until(lambda: job.stage == "fit")
    supervised.skipped = SILENCE_S + 1
    supervised.queue.backend._received_at += supervised.skipped  # the server itself answers
    supervised.queue.tick()
    assert (job.state, job.died_in) == ("waiting", ["fit"])
    supervised.until(lambda: len(list(job.folder.glob("worker_*"))) == 2)
    supervised.queue.cancel(job.id)
    supervised.end(job)
    assert (job.state, job.attempts) == ("cancelled", 2)
