"""Jobs on another machine: the real server, reached through an ssh that only changes the folder; no path is shared."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from extension.im3d_blender.client import transfer
from extension.im3d_blender.client.backend import Backend
from extension.im3d_blender.client.environment import remote_command
from extension.im3d_blender.client.queue import JobQueue, QueuedJob
from extension.im3d_blender.client.transfer import STALL_S, Transfer

WORKER = Path(__file__).parents[2] / "support" / "fake_worker.py"
SSH = Path(__file__).with_name("fake_ssh.py")
MEGABYTE = 1 << 20


class Far:
    """The other machine, and what there is on this one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.near = folder / "far", folder / "near"
        self.folder.mkdir()
        self.near.mkdir()
        self.picture = self.near / "picture.png"
        self.picture.write_bytes(os.urandom(2 * MEGABYTE + 1000))

    def plan(self, *faults: str) -> None:
        """What goes wrong with the next transfers; see fake_ssh."""
        (self.folder / "plan").write_text("".join(f"{fault}\n" for fault in faults))

    @property
    def passed(self) -> list[tuple[int, ...]]:
        """Bytes that went up and down in each connection that was cut."""
        return [tuple(map(int, line.split())) for line in (self.folder / "passed").read_text().splitlines()]

    def parts(self) -> list[Path]:
        return [*self.folder.rglob("*.part"), *self.near.rglob("*.part")]


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Far:
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    call = f'exec "{sys.executable}" "{SSH}" "{tmp_path}/far" "{WORKER}" "$@"'
    ssh.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/arguments"\n{call}\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ssh.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(transfer, "PAUSE_S", 0.0)
    return Far(tmp_path)


@pytest.fixture
def queue(far: Far, tmp_path: Path) -> Iterator[JobQueue]:
    host = "me@far -p 2222"
    others = psutil.Process().children(recursive=True)
    backend = Backend(remote_command(host), tmp_path / "log")
    files = remote_command(host, "--files")
    made = JobQueue(backend, far.near / "jobs", files_command=files)
    yield made
    made.close()
    ours = [child for child in psutil.Process().children(recursive=True) if child not in others]
    _, alive = psutil.wait_procs(ours, timeout=10)
    assert alive == []


def until(queue: JobQueue, condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, [(job.state, job.stage, job.failure) for job in queue.jobs]
        queue.tick()
        time.sleep(0.005)


def finish(queue: JobQueue, job: QueuedJob) -> None:
    until(queue, lambda: job.state not in ("waiting", "running"))


def submit(queue: JobQueue, far: Far, plan: str = "files") -> QueuedJob:
    return queue.submit({"name": "cup", "prompt": plan, "image": str(far.picture)})


def assert_came_home(job: QueuedJob, far: Far) -> None:
    content = far.picture.read_bytes()
    assert job.failure is None
    assert (job.state, job.result) == ("done", job.folder / "result.json")
    assert (job.folder / "mesh.glb").read_bytes() == content
    assert (far.folder / job.id / "input" / "image.png").read_bytes() == content
    assert far.parts() == []


def test_files_travel_both_ways(queue: JobQueue, far: Far, tmp_path: Path) -> None:
    job = submit(queue, far)
    finish(queue, job)
    assert_came_home(job, far)
    assert job.preview == job.folder / "preview.png"
    for line, serve in zip((tmp_path / "arguments").read_text().splitlines(), ("--remote", "--files"), strict=False):
        assert line.endswith(f"me@far -p 2222 -- im3d serve {serve}")


def test_of_a_folder_of_views_only_the_orbit_is_sent(tmp_path: Path) -> None:
    for name in ("view_000.png", "view_001.png", "orbit.json", ".view_002.png", "notes.txt", "scene.blend"):
        (tmp_path / name).touch()
    request, files = transfer.outgoing("job", {"views": str(tmp_path)})
    assert request["views"] == "job/input/views"
    assert sorted(there for _, there in files) == [
        f"job/input/views/{name}" for name in ("orbit.json", "view_000.png", "view_001.png")
    ]


@pytest.mark.parametrize("fault", ["cut", "flip"])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_broken_transfer_goes_on_and_nothing_arrives_damaged(
    direction: str, fault: str, queue: JobQueue, far: Far
) -> None:
    # Whoever begins anew does not get through the third time either.
    faults = [f"{direction} {fault} 1500000", f"{direction} {fault} 300000", f"{direction} {fault} 1400000"]
    if direction == "down":
        faults[1:] = [f"down {fault} 1400000", f"down {fault} 1900000"]  # twice as much comes home
    if fault == "flip":
        del faults[2]  # three in a row are too many
    far.plan(*(["none"] if direction == "down" else []), *faults)
    job = submit(queue, far)
    finish(queue, job)
    assert_came_home(job, far)
    if fault == "cut":
        assert len(far.passed) == 2


def test_a_part_with_other_content_is_not_continued(queue: JobQueue, far: Far) -> None:
    far.plan("up cut 1500000", "up stall 0")
    job = submit(queue, far)
    until(queue, lambda: (far.folder / "stalled").exists())
    (part,) = far.parts()
    part.write_bytes(b"x" * part.stat().st_size)
    assert queue._transfer is not None
    queue._transfer._end_process()
    finish(queue, job)
    assert_came_home(job, far)


def test_a_connection_that_stands_still_is_ended_and_made_again(far: Far) -> None:
    now = [0.0]
    far.plan("up stall 1000000")
    files = [(far.picture, "a/picture.png")]
    moving = Transfer(remote_command("far", "--files"), "put", files, clock=lambda: now[0])
    end = time.monotonic() + 60
    while not (far.folder / "stalled").exists():
        assert time.monotonic() < end
    now[0] += STALL_S - 1
    assert moving.poll() == "running"
    now[0] += STALL_S + 2
    while moving.poll() == "running":
        assert time.monotonic() < end
        time.sleep(0.005)
    assert (moving.state, moving.failure) == ("done", None)
    assert (far.folder / "a" / "picture.png").read_bytes() == far.picture.read_bytes()


def test_an_ssh_that_cannot_reach_the_machine_is_quoted(queue: JobQueue, far: Far) -> None:
    far.plan(*["refuse"] * 3)
    job = submit(queue, far)
    finish(queue, job)
    assert job.failure is not None
    assert (job.failure.code, job.failure.remedy) == ("remote", "resume")
    assert "Permission denied (publickey)." in job.failure.message
    # The user's next try goes through.
    again = queue.resume(job.folder)
    finish(queue, again)
    assert_came_home(again, far)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_cancel_during_a_transfer_is_heard_at_once(direction: str, queue: JobQueue, far: Far) -> None:
    far.plan(*(["none"] if direction == "down" else []), f"{direction} stall 1000000")
    job, waiting = submit(queue, far), submit(queue, far)
    until(queue, lambda: (far.folder / "stalled").exists())
    ticking = queue._transfer
    queue.cancel(waiting.id)
    assert queue._transfer is ticking is not None  # the other job's
    queue.cancel(job.id)
    assert (job.state, waiting.state) == ("cancelled", "cancelled")
    assert (queue._transfer, ticking.state) == (None, "cancelled")
    again = queue.resume(job.folder)
    finish(queue, again)
    assert_came_home(again, far)


def test_files_come_home_though_the_backend_is_gone(queue: JobQueue, far: Far) -> None:
    far.plan("none", "down stall 1000000")
    job = submit(queue, far)
    until(queue, lambda: (far.folder / "stalled").exists())
    assert queue.backend._process is not None
    queue.backend._process.kill()
    until(queue, lambda: queue.backend.state == "stopped")
    assert queue._transfer is not None
    queue._transfer._end_process()
    finish(queue, job)
    assert_came_home(job, far)
    assert job.attempts == 1


def test_what_is_wrong_there_is_said_here(queue: JobQueue, far: Far, tmp_path: Path) -> None:
    gone = queue.submit({"name": "cup", "prompt": "files", "image": str(tmp_path / "gone.png")})
    finish(queue, gone)
    assert gone.failure is not None
    assert (gone.state, gone.failure.code) == ("failed", "bad_input")
    assert "gone.png" in gone.failure.message
    bad = queue.submit({"name": "cup", "prompt": "x", "preset": "best"})
    finish(queue, bad)
    assert bad.failure is not None
    assert "no preset best" in bad.failure.message
    # A worker that dies twice there is a failure here, with its log, and the next job runs.
    dead, fine = queue.submit({"name": "a", "prompt": "die"}), queue.submit({"name": "b", "prompt": "ok"})
    until(queue, lambda: dead.stage == "fit")
    (far.folder / dead.id / "log.txt").write_text("it died")
    finish(queue, dead)
    finish(queue, fine)
    assert dead.failure is not None
    assert (dead.failure.code, dead.failure.remedy, dead.died_in) == ("worker_died", "draft", ["fit"])
    assert Path(dead.failure.log).read_text() == "it died"
    # "ok" leaves no files: that they did not come is said, too.
    assert fine.failure is not None
    assert "did not come back" in fine.failure.message
