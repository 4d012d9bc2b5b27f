"""The backend as Blender runs it: light, always listening, with the heavy work in a process of its own.

    Blender ──stdin/stdout── server ──stdin/stdout── worker (torch, models, the job)

The server answers at once whatever the worker does. When the worker dies, the job that it was working on goes on in a
new worker from its last finished step; when the same step kills it again, the job fails. Freeing memory is ending the
worker. When stdin ends, both end.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from im3d import __version__
from im3d.core.storage import make_folder
from im3d.errors import CancelledError, Im3dError, InputError, OutOfMemoryError
from im3d.jobs.job import Job, Request
from im3d.service.pipes import Outgoing, incoming, read_messages
from im3d.service.remote_files import RemoteFiles
from im3d.shared.processes import OWN_GROUP, bound, kill_family
from im3d.shared.protocol import PRODUCT, Message, encode, message

# From asking a job to stop to ending its process.
CANCEL_S = 30.0
# A worker that reports nothing for so long has hung.
SILENCE_S = 1800.0
# From the end of stdin to the end of the worker.
GRACE_S = 12.0
# A killed process that is not gone by then is stuck in the system, e.g. in a driver, and is left to it.
STUCK_S = 5.0
# A client on another machine that is not heard for so long is gone, though its connection does not say so; it pings.
LOST_S = 90.0
# How long a job waits for the worker of an earlier, broken connection to let go of it.
HELD_S = LOST_S + GRACE_S + 2 * STUCK_S

Source = Literal["stdin", "worker"]
# What the two reading threads hand to the main one; None: the stream ended.
Heard = tuple[Source, int, Message | str | None]


@dataclass
class Task:
    """A job in the server's hands.

    Attributes:
        id: The id that the messages about it carry.
        job: Its folder.
        died_after: Finished steps when a worker last died at it, None before.
        stop_by: When to end the worker if a cancelled job has not stopped, None while it is not cancelled.
        patient_until: When to begin although another process holds the job, which then is its error.
    """

    id: str
    job: Path
    died_after: int | None = None
    stop_by: float | None = None
    patient_until: float = 0.0


def worker_command(blender: str | None = None) -> list[str]:
    """The command that starts a worker."""
    command = [sys.executable, "-m", "im3d.service.worker"]
    return [*command, "--blender", blender] if blender else command


def serve(worker: Sequence[str], idle_s: float = 0.0, remote: Path | None = None) -> int:
    """Serves until stdin ends or `shutdown` is asked; returns the exit status.

    Args:
        worker: Command of the worker.
        idle_s: Seconds without a job after which the worker is ended, 0 for never.
        remote: Folder of the jobs of clients on other machines, to which all their paths are relative; None: clients
            share this machine's files.
    """
    send = Outgoing()
    heard: queue.SimpleQueue[Heard] = queue.SimpleQueue()
    last = [time.monotonic()]

    def hear(item: Message | str | None) -> None:
        last[0] = time.monotonic()
        heard.put(("stdin", 0, item))

    read_messages(incoming(), hear, hear, lambda: hear(None))
    send(message("hello", product=PRODUCT, version=__version__, device=device_name()))
    if remote is not None:
        make_folder(remote)
        threading.Thread(target=_end_when_lost, args=(heard, last), daemon=True).start()
    Server(send, heard, worker, idle_s, remote).run()
    return 0


def _end_when_lost(heard: queue.SimpleQueue[Heard], last: list[float]) -> None:
    """Ends the server of a client that is gone, whose job another connection may want to go on with."""
    while time.monotonic() - last[0] < LOST_S:
        time.sleep(1.0)
    heard.put(("stdin", 0, None))
    # Unless the main thread waits for a pipe that nobody empties.
    time.sleep(GRACE_S + 2 * STUCK_S)
    os._exit(1)


class Server:
    """The main thread's state; see `serve`."""

    def __init__(
        self,
        send: Callable[[Message], None],
        heard: queue.SimpleQueue[Heard],
        worker: Sequence[str],
        idle_s: float,
        remote: Path | None = None,
    ) -> None:
        self.send = send
        self.files = None if remote is None else RemoteFiles(remote)
        self.heard = heard
        self.worker_command = list(worker)
        self.idle_s = idle_s
        self.waiting: deque[Task] = deque()
        self.running: Task | None = None
        self.worker: subprocess.Popen[bytes] | None = None
        self.generation = 0
        self.last_heard = time.monotonic()

    def run(self) -> None:
        """Handles what is heard until stdin ends."""
        try:
            while True:
                with contextlib.suppress(queue.Empty):
                    source, generation, item = self.heard.get(timeout=0.5)
                    if source == "worker":
                        if generation == self.generation:
                            self._from_worker(item)
                    elif item is None or (isinstance(item, dict) and item["type"] == "shutdown"):
                        break
                    elif isinstance(item, str):
                        why = f"A line that is not a message was refused: {item}."
                        self._error("", InputError(why, "Update both sides."))
                    else:
                        self._command(item)
                self._check_clock()
        finally:
            self._end_worker(GRACE_S)

    # ---------------------------------------------------------------- commands

    def _command(self, asked: Message) -> None:
        """Does what a message asks; whatever is wrong with it is the answer, and the next one is heard."""
        kind, job_id = asked["type"], asked["id"]
        try:
            if kind == "ping":
                self.send(message("pong", job_id))
            elif kind in ("submit", "resume"):
                self._accept(asked)
            elif kind == "cancel":
                self._cancel(job_id)
            elif kind == "free_memory" and self.running is None:
                self._end_worker(0.0)
        except Im3dError as error:
            self._error(job_id, error)
        except (OSError, ValueError) as error:
            self._error(job_id, InputError(f"A path cannot be used: {error}.", "Choose another path."))
        except Exception as defect:
            self._error(job_id, Im3dError(f"im3d failed: {type(defect).__name__}: {defect}.", "Please report it."))
        self._begin()

    def _accept(self, asked: Message) -> None:
        if self.files is not None:
            asked = self.files.located(asked)
        folder = Path(str(asked["job"]))
        if not folder.is_absolute():
            raise InputError(f"{folder} is not an absolute path.", "Name the whole path of the job folder.")
        if asked["type"] == "submit":
            Job.create(folder, Request.from_partial(asked["request"]))
        else:
            Job.open(folder)
        patient_until = 0.0 if self.files is None else time.monotonic() + HELD_S
        self.waiting.append(Task(asked["id"], folder, patient_until=patient_until))

    def _cancel(self, job_id: str) -> None:
        for task in list(self.waiting):
            if task.id == job_id:
                self.waiting.remove(task)
                self._cancelled(task)
        if self.running is not None and self.running.id == job_id and self.running.stop_by is None:
            self.running.stop_by = time.monotonic() + CANCEL_S
            self._to_worker(message("cancel", job_id))

    def _begin(self) -> None:
        """Gives the next job to the worker."""
        if self.running is not None or not self.waiting:
            return
        first = self.waiting[0]
        if time.monotonic() < first.patient_until and _is_held(first.job):
            return  # the clock asks again
        task = self.running = self.waiting.popleft()
        self._start_worker()
        self._to_worker(message("resume", task.id, job=str(task.job)))

    # ---------------------------------------------------------------- the worker

    def _start_worker(self) -> None:
        self.last_heard = time.monotonic()
        if self.worker is not None:
            return
        self.generation += 1
        generation, heard = self.generation, self.heard
        self.worker = subprocess.Popen(
            bound(self.worker_command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            **OWN_GROUP,
        )
        assert self.worker.stdout is not None
        read_messages(
            self.worker.stdout,
            lambda m: heard.put(("worker", generation, m)),
            lambda reason: print(f"from the worker: {reason}", file=sys.stderr),
            lambda: heard.put(("worker", generation, None)),
        )

    def _to_worker(self, asked: Message) -> None:
        assert self.worker is not None
        assert self.worker.stdin is not None
        try:
            self.worker.stdin.write(encode(asked))
            self.worker.stdin.flush()
        except OSError:
            pass  # it died; the end of its stdout is on its way

    def _from_worker(self, item: Message | str | None) -> None:
        self.last_heard = time.monotonic()
        if item is None:
            self._worker_died()
        elif isinstance(item, dict):
            if item["type"] in ("result", "error") and self.running is not None and item["id"] == self.running.id:
                self.running = None
            self._tell(item)
        self._begin()

    def _worker_died(self) -> None:
        status = self._end_worker(0.0)
        task, self.running = self.running, None
        if task is None:
            return
        if task.stop_by is not None:
            self._cancelled(task)
            return
        finished = _finished_steps(task.job)
        if task.died_after is None or finished > task.died_after:
            task.died_after = finished
            self.waiting.appendleft(task)
            return
        self._failed(task, _explanation(status))

    def _end_worker(self, grace_s: float) -> int:
        """Ends the worker, with its children, and returns its exit status."""
        worker, self.worker = self.worker, None
        self.generation += 1
        if worker is None:
            return 0
        assert worker.stdin is not None
        with contextlib.suppress(OSError):
            worker.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(timeout=grace_s or 0.2)
        kill_family(worker)
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(timeout=STUCK_S)
        return -9 if worker.returncode is None else worker.returncode

    def _check_clock(self) -> None:
        now = time.monotonic()
        if self.running is None:
            if self.worker is not None and self.idle_s and now - self.last_heard > self.idle_s:
                self._end_worker(0.0)
            self._begin()
            return
        if self.running.stop_by is not None and now > self.running.stop_by:
            task, self.running = self.running, None
            self._end_worker(0.0)
            self._cancelled(task)
            self._begin()
        elif now - self.last_heard > SILENCE_S:
            task, self.running = self.running, None
            self._end_worker(0.0)
            self._failed(task, Im3dError("The job reported nothing for half an hour and was ended.", "Try again."))
            self._begin()

    # ---------------------------------------------------------------- how jobs end

    def _cancelled(self, task: Task) -> None:
        self._ended(task, "cancelled", CancelledError("Cancelled."))

    def _failed(self, task: Task, error: Im3dError) -> None:
        self._ended(task, "failed", error)

    def _ended(self, task: Task, status: Literal["cancelled", "failed"], error: Im3dError) -> None:
        """Says how a job ended whose worker did not; one that was done before its worker could say so is done."""
        if _mark(task.job, status, None if status == "cancelled" else error.to_json()):
            self._error(task.id, error, task.job)
        else:
            self._tell(message("result", task.id, path=str(task.job / "result.json")))

    def _error(self, job_id: str, error: Im3dError, job: Path | None = None) -> None:
        log = "" if job is None else str(job / "log.txt")
        self._tell(message("error", job_id, **error.to_json(), log=log))

    def _tell(self, said: Message) -> None:
        """Sends an event with paths as the client knows them."""
        self.send(said if self.files is None else self.files.relative(said))


def device_name() -> str:
    """What jobs will run on: the first GPU's name, or the kind of processor. Found without importing torch."""
    import platform

    tool = shutil.which("nvidia-smi")
    if tool is not None:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            query = [tool, "--query-gpu=name", "--format=csv,noheader"]
            # Not `run`, which waits for the end of what it has killed: with a broken driver that never comes.
            asked = subprocess.Popen(query, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            try:
                names = asked.communicate(timeout=3)[0].decode("utf-8", "replace").strip().splitlines()
            except subprocess.TimeoutExpired:
                asked.kill()
                raise
            if asked.returncode == 0 and names:
                return names[0]
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


def _is_held(folder: Path) -> bool:
    """Whether another process works on a job."""
    try:
        with Job.open(folder).locked():
            return False
    except Im3dError:
        return True


def _finished_steps(folder: Path) -> int:
    try:
        return len(Job.open(folder).state.finished)
    except Im3dError:
        return 0


def _mark(folder: Path, status: Literal["cancelled", "failed"], error: dict[str, str] | None) -> bool:
    """Writes how a job ended that could not do so itself; False: it is done already, and stays so."""
    with contextlib.suppress(Im3dError):
        return Job.open(folder).end(status, error)
    return True


def _explanation(status: int) -> Im3dError:
    if status == (137 if sys.platform == "win32" else -9):  # killed
        return OutOfMemoryError(
            "The system ended the job twice at the same step, most likely because memory ran out.",
            "Use the preset draft, or close other programs, then resume the job.",
            "draft",
        )
    how = f"signal {-status}" if status < 0 else f"status {status}"
    return Im3dError(f"The job's process crashed twice at the same step ({how}).", "The log has what it said.")
