"""The add-on's side of the wire against a backend that misbehaves in every way we could think of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from extension.im3d_blender.client import backend as link_backend
from extension.im3d_blender.client.backend import Backend, Deadlines, Failure
from extension.im3d_blender.client.environment import backend_command, child_environment
from extension.im3d_blender.client.log import LOG_BYTES
from extension.im3d_blender.client.queue import CANCEL_S, SECOND_CANCEL_S, SILENCE_S, JobQueue, QueuedJob
from extension.im3d_blender.client.session_lock import SessionLock, is_alive

ROOT = Path(__file__).parents[3]
FAKE = Path(__file__).with_name("fake_backend.py")
REQUEST = {"name": "A jug", "prompt": "a jug", "preset": "draft"}


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Scene:
    """A queue on a fake backend."""

    def __init__(self, folder: Path, plan: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder = folder
        self.backend = Backend([sys.executable, str(FAKE), plan], folder / "backend.log", clock=clock)
        self.queue = JobQueue(self.backend, folder / "jobs", clock)
        self.pids: list[int] = []

    def until(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        """Ticks until the condition holds; fails after `seconds` of real time."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, [(j.state, j.stage, j.failure) for j in self.queue.jobs]
            start = time.perf_counter()
            self.queue.tick()
            assert time.perf_counter() - start < 5.0  # no tick waits for the backend
            process = self.backend._process
            if process is not None and process.pid not in self.pids:
                self.pids.append(process.pid)
            time.sleep(0.005)

    def ended(self, job: QueuedJob) -> Callable[[], bool]:
        return lambda: job.state not in ("waiting", "running")


@pytest.fixture
def scenes() -> Iterator[list[Scene]]:
    """Scenes to be closed; afterwards no process of theirs is left, not even as a zombie."""
    made: list[Scene] = []
    yield made
    for scene in made:
        scene.queue.close()
        for pid in scene.pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


@pytest.fixture
def scene(tmp_path: Path, scenes: list[Scene]) -> Callable[..., Scene]:
    def make(plan: str, **options: Any) -> Scene:
        scenes.append(Scene(tmp_path, plan, **options))
        return scenes[-1]

    return make


def test_jobs_run_in_order_and_say_how_far_they_are(scene: Callable[..., Scene]) -> None:
    s = scene("none:ok")
    first, second = s.queue.submit(REQUEST), s.queue.submit({**REQUEST, "seed": 7})
    assert first.folder.is_dir()
    assert s.backend.state == "stopped"
    seen: list[tuple[float, str]] = []
    s.until(lambda: seen.append((first.fraction, first.stage)) or s.ended(first)())
    assert second.state == "waiting" or second.submitted_at >= first.submitted_at
    s.until(s.ended(second))
    assert (first.state, second.state, first.fraction) == ("done", "done", 1.0)
    assert [f for f, _ in seen] == sorted(f for f, _ in seen)
    assert first.result == first.folder / "result.json"
    assert len(s.pids) == 1


def test_progress_never_falls_and_never_stands_still_while_work_is_done_once_more(tmp_path: Path) -> None:
    """A retry after the worker's death goes back to the last finished step; so does a resumed job."""
    job = QueuedJob("a", tmp_path, REQUEST)
    seen = []
    for told in (0.0, 0.2, 0.5, 0.2, 0.3, 0.6, 0.6, 0.1, 0.55, 1.0):
        job.advance(told)
        seen.append(job.fraction)
    assert seen[:3] == [0.0, 0.2, 0.5]
    assert seen[3] == 0.5  # the bar stays, and what is left of it is for what is left of the work
    assert seen[4] == pytest.approx(0.5 + 0.5 * 0.1 / 0.8)
    assert seen[3] < seen[4] < seen[5]
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_a_resumed_job_starts_where_it_was(tmp_path: Path) -> None:
    first = Scene(tmp_path, "texture:hang")
    job = first.queue.submit(REQUEST)
    first.until(lambda: job.stage == "texture")
    reached = job.fraction
    first.queue.close()
    second = Scene(tmp_path, "none:ok")
    again = second.queue.resume(job.folder)
    seen = [again.fraction]
    second.until(lambda: seen.append(again.fraction) or again.state == "done")  # type: ignore[func-returns-value]
    second.queue.close()
    assert seen[0] == reached > 0.7
    assert seen == sorted(seen)


def test_warnings_are_kept_with_the_job_each_once(scene: Callable[..., Scene]) -> None:
    s = scene("fit:warn")
    job = s.queue.submit(REQUEST)
    s.until(s.ended(job))
    assert (job.state, job.warnings) == ("done", ["The object may be cut off."])


@pytest.mark.parametrize("place", ["submit", "load", "orbit", "fit", "mesh", "texture", "export"])
@pytest.mark.parametrize("fault", ["die", "kill", "half"])
def test_a_job_outlives_one_death_of_the_backend(
    scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch, place: str, fault: str
) -> None:
    monkeypatch.setenv("FAKE_ONCE", "1")
    s = scene(f"{place}:{fault}")
    job = s.queue.submit(REQUEST)
    s.until(s.ended(job))
    if place == "submit":  # dies at every submit
        assert (job.state, job.attempts) == ("failed", 2)
        return
    assert (job.state, job.attempts) == ("done", 2)
    assert len(s.pids) == 2


def test_a_backend_that_always_dies_costs_one_job_and_not_the_queue(scene: Callable[..., Scene]) -> None:
    s = scene("fit:kill")
    jobs = [s.queue.submit(REQUEST) for _ in range(2)]
    s.until(lambda: all(s.ended(job)() for job in jobs))
    for job in jobs:
        assert job.failure is not None
        assert (job.state, job.failure.code) == ("failed", "backend_died")
        assert "SIGKILL" in job.failure.message
        assert json.loads((job.folder / "queued.json").read_text())["request"] == REQUEST
    assert len(s.pids) == 4


def test_garbage_is_logged_and_ignored(scene: Callable[..., Scene]) -> None:
    for plan in ("start:garbage", "hello:garbage", "fit:garbage"):
        s = scene(plan)
        job = s.queue.submit(REQUEST)
        s.until(s.ended(job))
        assert job.state == "done"
    assert b"not json" in (s.folder / "backend.log").read_bytes()


def test_a_newer_protocol_names_who_must_be_updated(scene: Callable[..., Scene]) -> None:
    s = scene("start:newer")
    job = s.queue.submit(REQUEST)
    s.until(s.ended(job))
    assert job.failure == Failure(
        "protocol", "The add-on is older than its other half.", "Update the add-on.", str(s.folder / "backend.log")
    )


def test_a_hundred_megabytes_of_log_neither_block_nor_stay(scene: Callable[..., Scene]) -> None:
    s = scene("fit:flood")
    job = s.queue.submit(REQUEST)
    s.until(s.ended(job), seconds=60)
    assert job.state == "done"
    size = sum(p.stat().st_size for p in s.folder.glob("backend.log*"))
    assert 0 < size < 2 * LOG_BYTES + (1 << 20)


def test_slow_starts_are_waited_for_and_endless_ones_are_not(scene: Callable[..., Scene]) -> None:
    clock = Clock()
    s = scene("start:hang", clock=clock)
    job = s.queue.submit(REQUEST)
    s.until(lambda: s.backend.state == "starting")
    clock.now += Deadlines().start - 1
    s.queue.tick()
    assert job.state == "waiting"
    clock.now += 2
    s.until(s.ended(job))
    assert job.failure is not None
    assert (job.failure.code, s.backend.state) == ("backend_hung", "stopped")


@pytest.mark.parametrize("place", ["hello", "submit", "load", "fit", "export"])
def test_a_backend_that_no_longer_answers_is_ended(scene: Callable[..., Scene], place: str) -> None:
    clock = Clock()
    s = scene(f"{place}:hang", clock=clock)
    job = s.queue.submit(REQUEST)
    stage = {"hello": "", "submit": ""}.get(place, place)
    for attempt in (1, 2):
        s.until(lambda a=attempt: (job.state, job.stage, job.attempts) == ("running", stage, a))
        clock.now += Deadlines().quiet + 1  # it is asked
        s.queue.tick()
        clock.now += Deadlines().answer + 1  # it has not answered
        job.stage = ""
        s.queue.tick()
    assert job.failure is not None
    assert (job.state, job.failure.code, job.attempts) == ("failed", "backend_hung", 2)


def test_the_users_cancel_wins(scene: Callable[..., Scene]) -> None:
    clock = Clock()
    s = scene("fit:hang", clock=clock)
    running, waiting = s.queue.submit(REQUEST), s.queue.submit(REQUEST)
    s.until(lambda: running.stage == "fit")
    s.queue.cancel(waiting.id)
    assert waiting.state == "cancelled"
    s.queue.cancel(running.id)
    s.queue.tick()
    assert running.state == "running"
    clock.now += CANCEL_S + 1  # it is cancelled a second time, and does not answer to that either
    s.queue.tick()
    assert running.state == "running"
    clock.now += SECOND_CANCEL_S
    s.until(s.ended(running))
    assert (running.state, running.failure) == ("cancelled", None)
    # It can be taken up again.
    (running.folder / "died").touch()
    again = s.queue.resume(running.folder)
    assert [j.id for j in s.queue.jobs].count(again.id) == 1
    s.until(s.ended(again))
    assert again.state == "done"


def test_a_worker_that_dies_before_it_is_cancelled_stays_cancelled(
    scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    s = scene("fit:hang")
    job = s.queue.submit(REQUEST)
    s.until(lambda: job.stage == "fit")
    s.queue.cancel(job.id)
    died = {"type": "error", "id": job.id, "code": "worker_died", "message": "", "hint": "", "log": "", "remedy": ""}
    monkeypatch.setattr(s.backend, "poll", lambda: [died])
    s.queue.tick()
    assert (job.state, job.attempts) == ("cancelled", 1)


def test_silence_ends_even_a_backend_that_answers_pings(scene: Callable[..., Scene]) -> None:
    """The process that answers is not the one that works."""
    clock = Clock()
    s = scene("submit:garbage", clock=clock)
    job = s.queue.submit(REQUEST)
    s.backend.send = lambda message: None  # type: ignore[method-assign]
    s.until(lambda: job.state == "running")
    clock.now += SILENCE_S + 1
    s.backend._received_at = clock.now
    del s.backend.send
    s.until(lambda: job.attempts == 2)


def test_errors_of_a_job_are_its_own(scene: Callable[..., Scene]) -> None:
    s = scene("load:error")
    job = s.queue.submit(REQUEST)
    s.until(s.ended(job))
    assert (job.state, job.failure) == (
        "failed",
        Failure("model_missing", "No model.", "Get it.", "l", "download sv3d_p"),
    )
    other = s.queue.submit({**job.request, "seed": 5})
    assert (other.request, other.id != job.id) == ({**REQUEST, "seed": 5}, True)
    s.queue.remove(job.id)
    assert s.queue.jobs == [other]


def test_a_missing_backend_is_said_at_once(tmp_path: Path) -> None:
    queue = JobQueue(Backend([str(tmp_path / "none")], tmp_path / "log"), tmp_path / "jobs")
    job = queue.submit(REQUEST)
    queue.tick()
    queue.tick()
    assert job.failure is not None
    assert (job.state, job.failure.code) == ("failed", "backend_missing")
    queue.close()


def test_jobs_outlive_blender_and_are_taken_up_once(tmp_path: Path) -> None:
    first = Scene(tmp_path, "fit:hang")
    running, waiting = first.queue.submit(REQUEST), first.queue.submit(REQUEST)
    first.until(lambda: running.stage == "fit")
    second = Scene(tmp_path, "none:ok")
    assert second.queue.unfinished() == []  # another Blender, and the first one is alive
    first.queue.close()
    assert second.queue.unfinished() == [running.folder, waiting.folder]
    jobs = [second.queue.resume(folder) for folder in second.queue.unfinished()]
    assert second.queue.unfinished() == []
    second.until(lambda: all(job.state == "done" for job in jobs))
    second.queue.close()
    assert Scene(tmp_path, "none:ok").queue.unfinished() == []


def test_the_lock_of_a_killed_session_is_free(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import conftest
from extension.im3d_blender.client.session_lock import SessionLock
lock = SessionLock(Path(sys.argv[2]))
print(lock.name, flush=True)
time.sleep(60)
"""
    command = [sys.executable, "-c", code, str(ROOT / "tests"), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        name = other.stdout.readline().strip()
        assert is_alive(tmp_path, name)
        other.kill()
        other.wait()
        assert not is_alive(tmp_path, name)
    mine = SessionLock(tmp_path)
    mine.release()
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_blenders_python_reaches_the_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/blender/python")
    monkeypatch.setenv("PYTHONHOME", "/blender")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")
    environment = child_environment(tmp_path)
    assert not {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"} & set(environment)
    assert environment["HTTPS_PROXY"] == "http://proxy"
    assert environment["IM3D_HOME"] == str(tmp_path)
    assert environment["HF_HOME"].startswith(str(tmp_path))
    assert backend_command(tmp_path)[0].startswith(str(tmp_path))
    monkeypatch.setenv("IM3D_PYTHON", "/my/python")
    assert backend_command(tmp_path)[0] == "/my/python"


def test_a_backend_is_pinged_though_nobody_looks_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blender's timers stand still while it renders; the thread that writes does not."""
    monkeypatch.setattr(link_backend, "PING_S", 0.01)
    code = "import sys; open(sys.argv[1], 'w').writelines(sys.stdin.readline() for _ in range(3))"
    backend = Backend([sys.executable, "-c", code, str(tmp_path / "said")], tmp_path / "log")
    backend.start()
    assert backend._process is not None
    assert backend._process.wait(timeout=30) == 0
    backend.stop()
    said = (tmp_path / "said").read_bytes().splitlines()
    assert [link_backend.protocol.decode(line)["type"] for line in said] == ["ping"] * 3
