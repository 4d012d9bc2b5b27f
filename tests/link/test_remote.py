"""Jobs on another machine: the real server, reached through an ssh that only changes the folder; no path is shared."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from extension.im3d_blender.link.backend import Backend
from extension.im3d_blender.link.environment import remote_command
from extension.im3d_blender.link.queue import JobQueue, QueuedJob
from extension.im3d_blender.link.transfer import PIECE

from im3d.errors import InputError
from im3d.remote_files import RemoteFiles

WORKER = Path(__file__).parents[1] / "backend" / "fake_worker.py"


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobQueue]:
    """A queue whose ssh is a script: it runs the server where the far home is."""
    far = tmp_path / "far"
    far.mkdir()
    call = f"serve([{sys.executable!r}, {str(WORKER)!r}], 0, Path({str(far)!r}))"
    serve = f"from im3d.server import serve; from pathlib import Path; {call}"
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(f'#!/bin/sh\necho "$@" > "{tmp_path}/arguments"\ncd /\nexec "{sys.executable}" -c "{serve}"\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ssh.parent}:{os.environ['PATH']}")
    backend = Backend(remote_command("me@far -p 2222"), tmp_path / "log")
    made = JobQueue(backend, tmp_path / "near" / "jobs", tmp_path / "times.json", remote=True)
    yield made
    made.close()


def finish(queue: JobQueue, job: QueuedJob) -> None:
    end = time.monotonic() + 30
    while job.state in ("waiting", "running"):
        assert time.monotonic() < end, (job.state, job.stage, queue.backend.failure)
        queue.tick()
        time.sleep(0.005)


def test_files_travel_both_ways(queue: JobQueue, tmp_path: Path) -> None:
    picture = tmp_path / "near" / "picture.png"
    picture.parent.mkdir(exist_ok=True)
    content = os.urandom(2 * PIECE + 1000)
    picture.write_bytes(content)
    job = queue.submit({"name": "cup", "prompt": "files", "image": str(picture)})
    finish(queue, job)
    assert job.failure is None
    assert (job.state, job.result) == ("done", job.folder / "result.json")
    assert (job.folder / "mesh.glb").read_bytes() == content
    assert job.preview is not None
    assert not list(job.folder.glob("*.part"))
    sent = tmp_path / "far" / job.id / "input" / "image.png"
    assert sent.read_bytes() == content
    arguments = (tmp_path / "arguments").read_text()
    assert "me@far" in arguments
    assert "serve --remote" in arguments


def test_what_is_wrong_there_is_said_here(queue: JobQueue, tmp_path: Path) -> None:
    gone = queue.submit({"name": "cup", "prompt": "files", "image": str(tmp_path / "gone.png")})
    finish(queue, gone)
    assert gone.failure is not None
    assert (gone.state, gone.failure.code) == ("failed", "bad_input")
    bad = queue.submit({"name": "cup", "prompt": "x", "preset": "best"})
    finish(queue, bad)
    assert bad.failure is not None
    assert "no preset best" in bad.failure.message
    # A worker that dies twice there is a failure here, and the next job runs.
    dead, fine = queue.submit({"name": "a", "prompt": "die"}), queue.submit({"name": "b", "prompt": "ok"})
    finish(queue, dead)
    finish(queue, fine)
    assert dead.failure is not None
    assert dead.failure.code == "out_of_memory"
    # "ok" leaves no files: that they did not come is said, too.
    assert fine.failure is not None
    assert "did not come back" in fine.failure.message


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "", "."])
def test_nothing_outside_the_folder_is_touched(tmp_path: Path, path: str) -> None:
    files = RemoteFiles(tmp_path / "root")
    with pytest.raises(InputError, match="not one of this session"):
        files.store(path, "aGk=", True)
    with pytest.raises(InputError, match="not one of this session"):
        list(files.pieces(path))
    assert not (tmp_path / "x").exists()


def test_damaged_pieces_are_refused(tmp_path: Path) -> None:
    files = RemoteFiles(tmp_path)
    with pytest.raises(InputError, match="damaged"):
        files.store("a", "no base64!", True)
    files.store("a", "aGk=", False)
    assert not (tmp_path / "a").exists()
    files.store("a", "aGk=", True)
    assert (tmp_path / "a").read_bytes() == b"hihi"
    (said,) = files.pieces("missing")
    assert said["data"] is None
