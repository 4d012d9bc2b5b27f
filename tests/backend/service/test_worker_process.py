"""The real worker over its pipes: the messages of a job, of one that is cancelled, and of one that fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from analytic import orbit_views

from im3d.core.images import write_views
from im3d.jobs.job import Job, Request
from im3d.settings import Settings, parse_overrides
from im3d.shared import protocol
from im3d.shared.protocol import Message, message

# Small enough for seconds; the views' orbit is known.
SMALL = ("fit.iterations=40", "fit.size=48", "fit.points=600", "fit.max_gaussians=800", "mesh.grid=48",
         "mesh.virtual_views=2", "mesh.faces=1000", "mesh.outline_rounds=0", "texture.size=128",
         "texture.normal_map=false", "texture.polish=0")  # fmt: skip


class Worker:
    """A worker process; reading waits for its next message, and ends with the process."""

    def __init__(self, log: Path) -> None:
        self.log = log
        environment = {**os.environ, "IM3D_HOME": "/nonexistent/im3d"}
        command = [sys.executable, "-m", "im3d.service.worker", "--blender", "/none"]
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, env=environment
            )

    def send(self, *messages: Message) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"".join(map(protocol.encode, messages)))
        self.process.stdin.flush()

    def received(self) -> Iterator[Message]:
        """What it sends; a line that is no message fails the test."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            yield protocol.decode(line)

    def until_the_end_of(self, job_id: str) -> list[Message]:
        """The messages up to the job's result or error; all are of this job."""
        found: list[Message] = []
        for item in self.received():
            assert item["id"] == job_id
            found.append(item)
            if item["type"] in ("result", "error"):
                return found
        raise AssertionError(self.log.read_text())


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """One for all tests, as one serves many jobs; the end of its stdin ends it."""
    worker = Worker(tmp_path_factory.mktemp("worker") / "stderr.txt")
    yield worker
    try:
        assert worker.process.stdin is not None
        worker.process.stdin.close()
        assert worker.process.wait(timeout=60) == 0
        assert list(worker.received()) == []
    finally:
        worker.process.kill()
        worker.process.wait()


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("input") / "pot"
    write_views(folder, orbit_views(64, count=8))
    return folder


def new_job(folder: Path, views: Path) -> Job:
    return Job.create(folder, Request(name="pot", views=str(views), settings=parse_overrides(Settings(), SMALL)))


def resume(job: Job) -> Message:
    return message("resume", job.folder.name, job=str(job.folder))


def test_the_messages_of_a_job_in_order(worker: Worker, views: Path, tmp_path: Path) -> None:
    job = new_job(tmp_path / "whole", views)
    worker.send(resume(job))
    *before, last = worker.until_the_end_of("whole")
    assert last == message("result", "whole", path=str(job.folder / "result.json"))
    result = json.loads((job.folder / "result.json").read_text())
    assert result["status"] == "done"
    progress = [item for item in before if item["type"] == "progress"]
    stages = list(dict.fromkeys(item["stage"] for item in progress))
    assert stages == ["load", "image", "orbit", "fit", "mesh", "texture", "export"]
    fractions = [item["fraction"] for item in progress]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert all(0 <= item["step"] <= item["steps"] for item in progress)
    previews = [item for item in before if item["type"] == "preview"]
    assert {item["path"] for item in previews} == {str(job.folder / "preview.png")}
    assert previews[0]["stage"] == "orbit"
    warnings = [item["message"] for item in before if item["type"] == "warning"]
    assert warnings == result["warnings"]
    assert len(before) == len(progress) + len(previews) + len(warnings)


def test_a_cancel_stops_the_job_where_it_is_and_it_can_be_resumed(worker: Worker, views: Path, tmp_path: Path) -> None:
    job = new_job(tmp_path / "stopped", views)
    worker.send(resume(job))
    for item in worker.received():
        if item["type"] == "progress" and item["stage"] == "fit":
            worker.send(message("cancel", "stopped"))
            break
    last = worker.until_the_end_of("stopped")[-1]
    assert (last["type"], last["code"], last["log"]) == ("error", "cancelled", str(job.folder / "log.txt"))
    state = Job.open(job.folder).state
    assert state.status == "cancelled"
    assert state.finished[-1] == "orbit"
    worker.send(resume(job))
    *before, last = worker.until_the_end_of("stopped")
    assert last["type"] == "result"
    progress = [item for item in before if item["type"] == "progress"]
    assert "orbit" not in {item["stage"] for item in progress}
    assert progress[0]["fraction"] > 0


def test_a_failure_is_told_with_its_hint_and_the_next_job_works(worker: Worker, views: Path, tmp_path: Path) -> None:
    """Both are asked for at once, and a message that makes no sense between them is no end."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_bytes((views / "view_000.png").read_bytes())
    first, second = new_job(tmp_path / "failed", broken), new_job(tmp_path / "next", views)
    worker.send(resume(first), message("cancel", "nobody"), resume(second))
    last = worker.until_the_end_of("failed")[-1]
    assert (last["type"], last["code"], last["remedy"]) == ("error", "bad_input", "")
    assert "only one picture" in last["message"]
    assert last["hint"]
    assert "only one picture" in Path(last["log"]).read_text(encoding="utf-8")
    assert Job.open(first.folder).state.status == "failed"
    assert worker.until_the_end_of("next")[-1]["type"] == "result"


def test_a_line_that_is_no_message_is_noted_and_nothing_else(worker: Worker, tmp_path: Path) -> None:
    assert worker.process.stdin is not None
    worker.process.stdin.write(b"print me\n")
    worker.send(message("resume", "gone", job=str(tmp_path / "gone")))
    (only,) = worker.until_the_end_of("gone")
    assert only["type"] == "error"
    assert "print me" in worker.log.read_text()
