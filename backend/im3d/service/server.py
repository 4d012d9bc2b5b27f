"""The backend as Blender runs it: light, always listening, with the heavy work in a process of its own.

    Blender ──stdin/stdout── server ──stdin/stdout── worker (torch, models, the job)

The server answers at once whatever the worker does. It forwards messages, and reports a worker's death as the error
`worker_died` of the job; the client decides whether to resume the job, and when a worker that does not stop is to be
ended: by a second cancel. Freeing memory is ending the worker. When stdin ends, both end.
"""

from __future__ import annotations

import contextlib
import os
import platform
import queue
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
from im3d.errors import CancelledError, Im3dError, InputError, WorkerDiedError
from im3d.jobs.job import Job, Request
from im3d.service.remote_files import RemoteFiles
from im3d.shared.pipes import Outgoing, incoming, read_messages
from im3d.shared.processes import STUCK_S, Child, bound, query_nvidia
from im3d.shared.protocol import PRODUCT, Message, ProtocolError, encode, message

# From the end of stdin to the end of the worker.
GRACE_S = 12.0
# From the end of a dying worker's stdout to its own end, so that its exit status is its own.
DYING_S = 0.2
# A client on another machine pings; one that sends nothing for so long is gone, although its connection is still open.
LOST_S = 90.0
# How long a job waits for the worker of an earlier, broken connection to let go of it.
HELD_S = LOST_S + GRACE_S + 2 * STUCK_S

Source = Literal["stdin", "worker"]
# What the two reading threads pass to the main one: a message, a line that is none, or None at the end of the stream.
Item = Message | ProtocolError | None
Received = tuple[Source, int, Item]


@dataclass
class Task:
    """A job in the server's hands.

    Attributes:
        id: The id that the messages about it carry.
        job: Its folder.
        cancelled: Whether the client has cancelled it.
        patient_until: When to begin although another process holds the job, which then is its error.
    """

    id: str
    job: Path
    cancelled: bool = False
    patient_until: float = 0.0


def worker_command(blender: str | None = None) -> list[str]:
    """The command that starts a worker."""
    command = [sys.executable, "-m", "im3d.service.worker"]
    return [*command, "--blender", blender] if blender else command


def serve(worker: Sequence[str], idle_s: float = 0.0, remote: Path | None = None) -> int:
    """Serves until stdin ends or `shutdown` is received; returns the exit status.

    Args:
        worker: Command of the worker.
        idle_s: Seconds without a job after which the worker is ended, 0 for never.
        remote: Folder of the jobs of clients on other machines, to which all their paths are relative; None: clients
            share this machine's files.
    """
    send = Outgoing()
    received: queue.SimpleQueue[Received] = queue.SimpleQueue()
    last = [time.monotonic()]

    def receive(item: Item) -> None:
        last[0] = time.monotonic()
        received.put(("stdin", 0, item))

    read_messages(incoming(), receive, receive, lambda: receive(None))
    send(message("hello", product=PRODUCT, version=__version__, device=device_name()))
    if remote is not None:
        make_folder(remote)
        threading.Thread(target=_end_when_lost, args=(received, last), daemon=True).start()
    Server(send, received, worker, idle_s, remote).run()
    return 0


def _end_when_lost(received: queue.SimpleQueue[Received], last: list[float]) -> None:
    """Ends the server of a client that is gone, whose job another connection may want to go on with."""
    while time.monotonic() - last[0] < LOST_S:
        time.sleep(1.0)
    received.put(("stdin", 0, None))
    # Unless the main thread waits for a pipe that nobody empties.
    time.sleep(GRACE_S + 2 * STUCK_S)
    os._exit(1)


class Server:
    """The main thread's state; see `serve`."""

    def __init__(
        self,
        send: Callable[[Message], None],
        received: queue.SimpleQueue[Received],
        worker: Sequence[str],
        idle_s: float,
        remote: Path | None = None,
    ) -> None:
        self.send = send
        self.files = None if remote is None else RemoteFiles(remote)
        self.received = received
        self.worker_command = list(worker)
        self.idle_s = idle_s
        self.waiting: deque[Task] = deque()
        self.running: Task | None = None
        self.worker: Child | None = None
        self.generation = 0
        self.busy_at = time.monotonic()

    def run(self) -> None:
        """Handles what is received until stdin ends."""
        try:
            while True:
                with contextlib.suppress(queue.Empty):
                    source, generation, item = self.received.get(timeout=0.5)
                    if source == "worker":
                        if generation == self.generation:
                            self._from_worker(item)
                    elif isinstance(item, ProtocolError):
                        why = f"A line that is not a message was refused: {item}."
                        self._error("", InputError(why, "Update both sides."))
                    elif item is None or item["type"] == "shutdown":
                        break
                    else:
                        self._command(item)
                self._check_clock()
        finally:
            self._end_worker(GRACE_S)

    # ---------------------------------------------------------------- commands

    def _command(self, command: Message) -> None:
        """Carries out a command; whatever is wrong with it is answered as an error."""
        kind, job_id = command["type"], command["id"]
        try:
            if kind == "ping":
                self.send(message("pong", job_id))
            elif kind in ("submit", "resume"):
                self._accept(command)
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

    def _accept(self, command: Message) -> None:
        if self.files is not None:
            command = self.files.located(command)
        folder = Path(str(command["job"]))
        if not folder.is_absolute():
            raise InputError(f"{folder} is not an absolute path.", "Name the whole path of the job folder.")
        if command["type"] == "submit":
            Job.create(folder, Request.from_partial(command["request"]))
        else:
            Job.open(folder)
        patient_until = 0.0 if self.files is None else time.monotonic() + HELD_S
        self.waiting.append(Task(command["id"], folder, patient_until=patient_until))

    def _cancel(self, job_id: str) -> None:
        for waiting in [task for task in self.waiting if task.id == job_id]:
            self.waiting.remove(waiting)
            self._ended(waiting, CancelledError("Cancelled."))
        task = self.running
        if task is None or task.id != job_id:
            return
        if task.cancelled:  # for the second time: the client has waited long enough
            self._end_worker(0.0)
            self.running = None
            self._ended(task, CancelledError("Cancelled."))
        else:
            task.cancelled = True
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
        if self.worker is not None:
            return
        self.generation += 1
        generation, received = self.generation, self.received
        self.worker = Child(bound(self.worker_command), stdin=subprocess.PIPE, stderr=None)
        assert self.worker.stdout is not None
        read_messages(
            self.worker.stdout,
            lambda m: received.put(("worker", generation, m)),
            lambda reason: print(f"from the worker: {reason}", file=sys.stderr),
            lambda: received.put(("worker", generation, None)),
        )

    def _to_worker(self, command: Message) -> None:
        assert self.worker is not None
        assert self.worker.stdin is not None
        try:
            self.worker.stdin.write(encode(command))
            self.worker.stdin.flush()
        except OSError:
            pass  # it died; the end of its stdout is on its way

    def _from_worker(self, item: Item) -> None:
        self.busy_at = time.monotonic()
        if item is None:
            self._worker_died()
        elif isinstance(item, dict):
            if item["type"] in ("result", "error") and self.running is not None and item["id"] == self.running.id:
                self.running = None
            self._send(item)
        self._begin()

    def _worker_died(self) -> None:
        status = self._end_worker(DYING_S)
        task, self.running = self.running, None
        if task is not None:
            self._ended(task, CancelledError("Cancelled.") if task.cancelled else _cause_of_death(status))

    def _end_worker(self, grace_s: float) -> int:
        """Ends the worker, with its children, and returns its exit status."""
        worker, self.worker = self.worker, None
        self.generation += 1
        if worker is None:
            return 0
        assert worker.stdin is not None
        with contextlib.suppress(OSError):
            worker.stdin.close()
        return worker.end(grace_s)

    def _check_clock(self) -> None:
        idle = self.running is None and self.worker is not None
        if idle and self.idle_s and time.monotonic() - self.busy_at > self.idle_s:
            self._end_worker(0.0)
        self._begin()

    # ---------------------------------------------------------------- how jobs end

    def _ended(self, task: Task, error: CancelledError | WorkerDiedError) -> None:
        """Reports the end of a job whose worker could not; one that was done before that is done."""
        if _mark(task.job, error):
            self._error(task.id, error, task.job)
        else:
            self._send(message("result", task.id, path=str(task.job / "result.json")))

    def _error(self, job_id: str, error: Im3dError, job: Path | None = None) -> None:
        log = "" if job is None else str(job / "log.txt")
        self._send(message("error", job_id, **error.to_json(), log=log))

    def _send(self, event: Message) -> None:
        """Sends an event with paths as the client knows them."""
        self.send(event if self.files is None else self.files.relative(event))


def device_name() -> str:
    """What jobs will run on: the first GPU's name, or the kind of processor. Found without importing torch."""
    gpus = query_nvidia("name", 3.0).splitlines()
    return gpus[0] if gpus else f"{platform.machine()} CPU, {os.cpu_count()} cores"


def _is_held(folder: Path) -> bool:
    """Whether another process works on a job."""
    try:
        with Job.open(folder).locked():
            return False
    except Im3dError:
        return True


def _mark(folder: Path, error: CancelledError | WorkerDiedError) -> bool:
    """Records in a job's folder how it ended, as its worker could not; False: it is done already, and stays so."""
    cancelled = isinstance(error, CancelledError)
    with contextlib.suppress(Im3dError):
        return Job.open(folder).end("cancelled" if cancelled else "failed", None if cancelled else error.to_json())
    return True


def _cause_of_death(status: int) -> WorkerDiedError:
    if status == (137 if sys.platform == "win32" else -9):  # killed
        return WorkerDiedError(
            "The system ended the job's process, most likely because memory ran out.",
            "Use the preset draft, or close other programs, then resume the job.",
            "draft",
        )
    how = f"signal {-status}" if status < 0 else f"status {status}"
    return WorkerDiedError(f"The job's process crashed ({how}).", "The log has its last output.")
