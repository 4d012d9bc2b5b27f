"""`im3d serve`: what Blender talks to, with a worker that misbehaves, and with the real one."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from analytic import orbit_views

from im3d.core.images import write_views
from im3d.jobs.job import Job, Request
from im3d.shared import protocol

FAKE = Path(__file__).parents[2] / "support" / "fake_worker.py"
WAIT_S = 30.0


class Client:
    """A server process and what it says."""

    def __init__(self, command: list[str]) -> None:
        environment = {**os.environ, "IM3D_HOME": "/nonexistent/im3d"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        self.heard: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.stray: list[bytes] = []
        self.noise: list[bytes] = []
        self.drained = threading.Event()
        for target, stream in ((self._read, self.process.stdout), (self._drain, self.process.stderr)):
            threading.Thread(target=target, args=(stream,), daemon=True).start()

    def _read(self, stream: Any) -> None:
        for line in stream:
            try:
                self.heard.put(protocol.decode(line))
            except protocol.ProtocolError:
                self.stray.append(line)

    def _drain(self, stream: Any) -> None:
        self.noise.extend(stream)
        self.drained.set()

    def send(self, type_: str, id_: str = "", **content: Any) -> None:
        self.raw(protocol.encode(protocol.message(type_, id_, **content)))

    def raw(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()

    def expect(self, type_: str, id_: str = "", seconds: float = WAIT_S) -> dict[str, Any]:
        """The next message of that type and id; what comes before it is dropped."""
        end = time.monotonic() + seconds
        while True:
            item = self.heard.get(timeout=max(end - time.monotonic(), 0.01))
            if (item["type"], item["id"]) == (type_, id_):
                return item

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture
def serve() -> Iterator[Callable[..., Client]]:
    """Starts servers; at the end they are told to go, and neither they nor their workers are left."""
    clients: list[Client] = []

    def start(real: bool = False, idle_s: float = 0.0) -> Client:
        code = (
            f"from im3d.service.server import serve; raise SystemExit(serve({[sys.executable, str(FAKE)]!r}, {idle_s}))"
        )
        real_command = [sys.executable, "-m", "im3d.cli", "serve", "--blender", "/none"]
        clients.append(Client(real_command if real else [sys.executable, "-c", code]))
        clients[-1].expect("hello")
        return clients[-1]

    yield start
    for client in clients:
        family = [] if client.process.poll() is not None else client.workers()
        if client.process.poll() is None:
            assert client.process.stdin is not None
            client.process.stdin.close()
            assert client.process.wait(timeout=WAIT_S) == 0
        _, alive = psutil.wait_procs(family, timeout=WAIT_S)
        assert alive == []


def submit(client: Client, folder: Path, prompt: str) -> Path:
    client.send("submit", folder.name, request={"prompt": prompt}, job=str(folder))
    return folder


def test_jobs_run_one_after_the_other_in_one_worker(serve: Callable[..., Client], tmp_path: Path) -> None:
    client = serve()
    jobs = [submit(client, tmp_path / f"job{i}", "ok") for i in range(3)]
    for job in jobs:
        assert client.expect("progress", job.name)["stage"] == "fit"
        assert client.expect("result", job.name)["path"] == str(job / "result.json")
    assert len({p.name for job in jobs for p in job.glob("worker_*")}) == 1
    client.send("free_memory")
    client.send("ping", "p")
    client.expect("pong", "p")
    assert client.workers() == []
    submit(client, tmp_path / "again", "ok")
    client.expect("result", "again")


def test_the_death_of_a_worker_is_reported_and_the_next_one_resumes_the_job(
    serve: Callable[..., Client], tmp_path: Path
) -> None:
    client = serve()
    job = submit(client, tmp_path / "job", "die once")
    error = client.expect("error", "job")
    assert (error["code"], error["remedy"], error["log"]) == ("worker_died", "draft", str(job / "log.txt"))
    state = json.loads((job / "state.json").read_text())
    assert (state["status"], state["error"]["code"], state["finished"]) == ("failed", "worker_died", ["load"])
    submit(client, tmp_path / "other", "ok")
    client.expect("result", "other")
    client.send("resume", "job", job=str(job))
    client.expect("result", "job")
    assert len(list(job.glob("worker_*"))) == 2


def test_cancel_is_heard_while_a_job_runs(serve: Callable[..., Client], tmp_path: Path) -> None:
    client = serve()
    submit(client, tmp_path / "a", "hang")
    waiting = submit(client, tmp_path / "b", "ok")
    client.expect("progress", "a")
    client.send("ping", "now")
    client.expect("pong", "now", seconds=5)
    client.send("cancel", "b")
    assert client.expect("error", "b")["code"] == "cancelled"
    assert json.loads((waiting / "state.json").read_text())["status"] == "cancelled"
    client.send("cancel", "a")
    assert client.expect("error", "a", seconds=5)["code"] == "cancelled"


class Inside:
    """A server without its reading threads: what it hears is handled when a test says so."""

    def __init__(self, folder: Path, plan: str, remote: bool = False) -> None:
        from im3d.service.server import Server

        self.said: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.server = Server(self.said.put, self.heard, [sys.executable, str(FAKE)], 0.0, folder if remote else None)
        self.job = folder / "a"
        name = "a" if remote else str(self.job)
        self.server._command(protocol.message("submit", "a", request={"prompt": plan}, job=name))

    def worker_says(self) -> Any:
        source, _, item = self.heard.get(timeout=WAIT_S)
        assert source == "worker"
        return item


def test_a_cancel_that_meets_a_dying_worker_is_not_lost(tmp_path: Path) -> None:
    inside = Inside(tmp_path, "die once")
    assert inside.worker_says()["type"] == "progress"
    died = inside.worker_says()
    assert died is None
    inside.server._command(protocol.message("cancel", "a"))  # before the server knows of the death
    inside.server._from_worker(died)
    assert inside.said.get(timeout=1)["code"] == "cancelled"
    assert (inside.server.running, inside.server.worker) == (None, None)


def test_a_job_that_was_done_before_its_worker_died_is_done(tmp_path: Path) -> None:
    inside = Inside(tmp_path, "deaf")
    assert inside.worker_says()["type"] == "progress"
    job = Job.open(inside.job)
    job.state.status = "done"
    job.save()
    inside.server._command(protocol.message("cancel", "a"))
    inside.server._from_worker(None)
    said = inside.said.get(timeout=1)
    assert (said["type"], said["path"]) == ("result", str(inside.job / "result.json"))
    assert json.loads((inside.job / "state.json").read_text())["status"] == "done"


def test_a_remote_job_waits_for_the_worker_of_a_broken_connection(tmp_path: Path) -> None:
    request = Request.from_partial({"prompt": "hang"})
    with Job.create(tmp_path / "a", request).locked():
        inside = Inside(tmp_path, "hang", remote=True)
        inside.server._check_clock()
        assert (inside.server.running, len(inside.server.waiting)) == (None, 1)
    inside.server._check_clock()
    assert inside.server.running is not None
    inside.server._end_worker(0.0)
    with Job.open(tmp_path / "a").locked():
        inside = Inside(tmp_path, "hang", remote=True)
        inside.server.waiting[0].patient_until = time.monotonic()  # it has waited long enough
        inside.server._check_clock()
        assert inside.server.running is not None
    inside.server._end_worker(0.0)


def test_a_remote_server_ends_when_its_client_is_gone_without_a_word(tmp_path: Path) -> None:
    code = (
        "from im3d.service import server; from pathlib import Path; server.LOST_S = 0.1; "
        f"server.serve(['x'], 0, Path({str(tmp_path)!r}))"
    )
    client = Client([sys.executable, "-c", code])
    client.expect("hello")
    assert client.process.wait(timeout=WAIT_S) == 0


def test_bad_requests_are_refused_and_leave_no_folder(serve: Callable[..., Client], tmp_path: Path) -> None:
    client = serve()
    for request, words in (
        ({"prompt": "x", "colour": "red"}, "unknown part: colour"),
        ({"image": str(tmp_path / "none.png")}, "does not exist"),
        ({"prompt": "x", "preset": "best"}, "no preset best"),
        ({"prompt": "x", "settings": {"fit": {"iterations": "many"}}}, "fit.iterations cannot be many"),
        ({"prompt": "x", "seed": "one"}, "seed cannot be one"),
        ({"prompt": "x", "seed": 1.5}, "seed cannot be 1.5"),
        ({}, "nothing to start from"),
        ([], "unknown part"),
    ):
        client.send("submit", "bad", request=request, job=str(tmp_path / "bad"))
        error = client.expect("error", "bad")
        assert error["code"] == "bad_input"
        assert words in error["message"]
        assert not (tmp_path / "bad").exists()
    client.send("submit", "bad", request={"prompt": "x"}, job="relative")
    assert "absolute" in client.expect("error", "bad")["message"]
    client.send("resume", "none", job=str(tmp_path / "none"))
    assert "holds no job" in client.expect("error", "none")["message"]
    for line in (
        b"garbage\n",
        b'{"v": 1, "id": "", "type": "ping"}\n',
        b"x" * 2_000_000 + b"\n",
        b"[" * 200_000 + b"\n",
    ):
        client.raw(line)
        assert client.expect("error")["code"] == "bad_input"


@pytest.mark.parametrize("name", ["a\0b", "n" * 300, "file/below"])
def test_paths_that_no_file_can_have_are_refused_and_the_server_goes_on(
    name: str, serve: Callable[..., Client], tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    client = serve()
    for send in (
        lambda: client.send("submit", "a", request={"prompt": "x"}, job=f"{tmp_path}/{name}"),
        lambda: client.send("resume", "a", job=f"{tmp_path}/{name}"),
        lambda: client.send("submit", "a", request={"image": f"{tmp_path}/{name}"}, job=str(tmp_path / "job")),
    ):
        send()
        assert client.expect("error", "a")["code"] == "bad_input"
        client.send("ping", "p")
        client.expect("pong", "p")


def test_stray_output_never_reaches_the_messages(serve: Callable[..., Client], tmp_path: Path) -> None:
    client = serve()
    submit(client, tmp_path / "a", "noise")
    client.expect("result", "a")
    assert client.stray == []


@pytest.mark.parametrize("running", [False, True])
def test_it_goes_when_it_is_told_to_although_stdin_stays_open(
    running: bool, serve: Callable[..., Client], tmp_path: Path
) -> None:
    client = serve()
    if running:
        submit(client, tmp_path / "job", "deaf")
        client.expect("progress", "job")
    client.send("shutdown")
    assert client.process.wait(timeout=WAIT_S) == 0
    client.drained.wait(WAIT_S)
    assert client.noise == []


def test_an_idle_worker_is_ended(serve: Callable[..., Client], tmp_path: Path) -> None:
    client = serve(idle_s=0.2)
    submit(client, tmp_path / "a", "ok")
    client.expect("result", "a")
    psutil.wait_procs(client.workers(), timeout=WAIT_S)
    assert client.workers() == []


def test_nothing_outlives_a_killed_server(serve: Callable[..., Client], tmp_path: Path) -> None:
    client = serve()
    submit(client, tmp_path / "a", "hang")
    client.expect("progress", "a")
    family = client.workers()
    assert len(family) == 1
    client.process.send_signal(signal.SIGKILL)
    client.process.wait()
    _, alive = psutil.wait_procs(family, timeout=WAIT_S)
    assert alive == []


def family(job: Path) -> list[psutil.Process]:
    """The children of a worker: a bound one, and one that is not."""
    (file,) = job.glob("children_*")
    return [psutil.Process(int(pid)) for pid in file.read_text().split()]


def working(client: Client, folder: Path) -> tuple[psutil.Process, list[psutil.Process]]:
    """A worker that has two children, and these."""
    submit(client, folder, "family")
    client.expect("progress", folder.name)
    while client.expect("progress", folder.name)["step"] != 2:
        pass
    children = family(folder)
    (worker,) = [p for p in client.workers() if str(FAKE) in p.cmdline()]
    return worker, children


def gone(processes: list[psutil.Process]) -> bool:
    """Whether all of them end; as zombies of a process that does not wait for them they count as ended."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        if not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes):
            return True
        time.sleep(0.01)
    return False


def test_nothing_outlives_a_killed_worker(serve: Callable[..., Client], tmp_path: Path) -> None:
    client = serve()
    worker, children = working(client, tmp_path / "a")
    worker.kill()
    assert gone([worker, *children])
    client.send("cancel", "a")
    client.send("ping", "p")
    client.expect("pong", "p")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the server ends the family, and it is killed here")
def test_nothing_outlives_a_server_and_a_worker_that_are_killed_at_once(
    serve: Callable[..., Client], tmp_path: Path
) -> None:
    client = serve()
    worker, (bound, other) = working(client, tmp_path / "a")
    try:
        client.process.send_signal(signal.SIGSTOP)
        worker.kill()
        client.process.kill()
        client.process.wait()
        assert gone([worker, bound])
    finally:
        other.kill()


def test_nothing_outlives_the_end_of_stdin(serve: Callable[..., Client], tmp_path: Path) -> None:
    client = serve()
    worker, children = working(client, tmp_path / "a")
    assert client.process.stdin is not None
    client.process.stdin.close()
    assert gone([worker, *children])
    assert client.process.wait(timeout=WAIT_S) == 0


def test_nothing_outlives_a_killed_blender(tmp_path: Path) -> None:
    """Blender here is a process that has started a server, and only that."""
    serve = f"from im3d.service.server import serve; serve({[sys.executable, str(FAKE)]!r})"
    submit = protocol.message("submit", "a", request={"prompt": "family"}, job=str(tmp_path / "a"))
    code = (
        "import subprocess, sys, time\n"
        f"p = subprocess.Popen([sys.executable, '-c', {serve!r}], stdin=-1, stdout=-1, start_new_session=True)\n"
        f"p.stdin.write({protocol.encode(submit)!r}); p.stdin.flush()\n"
        "for line in p.stdout:\n"
        "    if b'\"step\":2' in line: print('ready', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as blender:
        assert blender.stdout is not None
        assert blender.stdout.readline() == b"ready\n"
        everything = [*psutil.Process(blender.pid).children(recursive=True), *family(tmp_path / "a")]
        assert len({p.pid for p in everything}) == 4  # server, worker and its two children
        blender.kill()
        assert gone(everything)


@pytest.mark.slow
def test_a_real_job_survives_the_death_of_its_worker(serve: Callable[..., Client], tmp_path: Path) -> None:
    write_views(tmp_path / "views", orbit_views(96, count=8))
    settings = {
        "fit": {"iterations": 60, "size": 64, "points": 1000, "max_gaussians": 1500},
        "mesh": {"grid": 48, "virtual_views": 6, "faces": 2000, "outline_rounds": 1},
        "texture": {"size": 128, "normal_map": False, "polish": 1},
    }
    request = {"views": str(tmp_path / "views"), "settings": settings, "name": "pot"}
    client = serve(real=True)
    client.send("submit", "job", request=request, job=str(tmp_path / "job"))
    while client.expect("progress", "job", seconds=120)["stage"] != "mesh":
        pass
    (worker,) = [p for p in client.workers() if "im3d.service.worker" in p.cmdline()]
    worker.kill()
    assert client.expect("error", "job")["code"] == "worker_died"
    client.send("resume", "job", job=str(tmp_path / "job"))
    result = json.loads(Path(client.expect("result", "job", seconds=200)["path"]).read_text())
    assert result["status"] == "done"
    assert (tmp_path / "job" / "mesh.glb").stat().st_size > 1000
    assert client.stray == []
