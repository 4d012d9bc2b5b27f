"""One backend process: started on demand, read without blocking, ended with all its children.

    backend = Backend(command, log, environment)
    backend.start()
    while …:                          # Blender's timer
        for message in backend.poll():
            …
    backend.stop()

Nothing waits without a deadline: a backend that does not say hello, or no longer answers a ping, is killed, and
`failure` says so. What it writes to stderr, and lines on stdout that are no messages, go to the log, of which the last
megabytes are kept.
"""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from ...backend.im3d.shared.pipes import read_messages
from ...backend.im3d.shared.processes import Child
from . import protocol
from .log import Log

State = Literal["stopped", "starting", "ready", "failed"]
PING_S = 20.0  # a backend on another machine ends when it hears nothing for long; Blender's timers may stand still
MESSAGES_A_POLL = 500  # so that a flood costs one tick milliseconds


@dataclass(frozen=True)
class Failure:
    """Why something ended.

    Attributes:
        code: One of `im3d.errors` or `install.failures`, or the add-on's own: "backend_missing", "backend_died",
            "backend_hung", "protocol", "remote" (a transfer), "import" (the finished mesh).
        message: What is wrong, one sentence.
        hint: What to do, one sentence, or "".
        log: Path of the log that says more, or "".
        remedy: What a button can do about it, as `im3d.errors` lists them, or "".
    """

    code: str
    message: str
    hint: str = ""
    log: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Deadlines:
    """Seconds.

    Attributes:
        start: From the start to hello; on a slow disk Python alone takes a while.
        quiet: Silence after which a ready backend gets a ping.
        answer: From that ping to any message.
    """

    start: float = 90.0
    quiet: float = 10.0
    answer: float = 45.0


class Backend:
    """A backend process.

    Args:
        command: Program and arguments.
        log: File for what it says beside its messages.
        environment: Its whole environment; None: this process's.
        deadlines: See `Deadlines`.
        clock: Seconds, monotonic.

    Attributes:
        state: "stopped", "starting", "ready" or "failed".
        hello: Its hello, while it is ready.
        failure: Why the state is "failed".
        environment: As given.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        deadlines: Deadlines | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.command = list(command)
        self.log = log
        self.state: State = "stopped"
        self.hello: dict[str, Any] | None = None
        self.failure: Failure | None = None
        self.environment = None if environment is None else dict(environment)
        self._deadlines = deadlines or Deadlines()
        self._clock = clock
        self._process: Child | None = None
        self._pipes: _Pipes | None = None
        self._started = self._received_at = 0.0
        self._pinged_at: float | None = None

    def start(self) -> None:
        """Starts the process unless it runs; a failure to do so is in `failure`."""
        if self.state in ("starting", "ready"):
            return
        self.hello, self.failure, self._pinged_at = None, None, None
        self._started = self._received_at = self._clock()
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self._process = Child(self.command, self.environment, stdin=subprocess.PIPE)
        except FileNotFoundError:
            self._fail("backend_missing", "The backend is not installed.", "Install it, or choose its folder.")
            return
        except OSError as error:
            self._fail("backend_missing", f"The backend cannot be started: {error.strerror}.", "Install it again.")
            return
        self._pipes = _Pipes(self._process, Log(self.log))
        self.state = "starting"

    def send(self, message: dict[str, Any]) -> None:
        """Queues a message for the backend; does nothing when there is none."""
        if self._pipes is not None and self.state in ("starting", "ready"):
            self._pipes.outgoing.put(protocol.encode(message))

    def poll(self) -> list[dict[str, Any]]:
        """The messages since the last call, except hello and pong; enforces the deadlines. Never blocks."""
        if self._process is None or self._pipes is None or self.state not in ("starting", "ready"):
            return []
        # In this order: once the process and its reader have ended, its last messages are in the queue.
        ended = self._process.poll() is not None and not self._pipes.reading
        messages = self._received()
        if self.state in ("starting", "ready"):
            if ended and self._pipes.incoming.empty():
                self._fail("backend_died", _death(self._process.returncode), "Try again; the log says more.")
            else:
                self._enforce_deadlines()
        return messages

    def stop(self, grace_s: float = 5.0) -> None:
        """Asks the process to end, waits up to `grace_s`, then kills it with everything that it started."""
        if self._process is not None and self._pipes is not None:
            self.send(protocol.message("shutdown"))
            self._pipes.outgoing.put(None)
            self._kill(grace_s)
        self.state, self.hello = "stopped", None

    def _received(self) -> list[dict[str, Any]]:
        assert self._pipes is not None
        messages: list[dict[str, Any]] = []
        for _ in range(MESSAGES_A_POLL):
            try:
                item = self._pipes.incoming.get_nowait()
            except queue.Empty:
                break
            self._received_at, self._pinged_at = self._clock(), None
            if isinstance(item, Failure):
                self._fail(item.code, item.message, item.hint)
                break
            if item["type"] == "hello":
                self.hello, self.state = item, "ready"
            elif item["type"] != "pong":
                messages.append(item)
        return messages

    def _enforce_deadlines(self) -> None:
        now, deadlines = self._clock(), self._deadlines
        if self.state == "starting":
            if now - self._started > deadlines.start:
                self._fail("backend_hung", f"The backend did not start within {deadlines.start:.0f} s.", "Try again.")
        elif self._pinged_at is not None:
            if now - self._pinged_at > deadlines.answer:
                self._fail("backend_hung", "The backend no longer answers.", "Try again; the log says more.")
        elif now - self._received_at > deadlines.quiet:
            self._pinged_at = now
            self.send(protocol.message("ping"))

    def _fail(self, code: str, message: str, hint: str) -> None:
        self.failure = Failure(code, message, hint, str(self.log))
        self.state, self.hello = "failed", None
        self._kill()

    def _kill(self, grace_s: float = 0.0) -> None:
        """Ends the process and its children, and waits for the end: a killed process leaves at once."""
        process, self._process = self._process, None
        pipes, self._pipes = self._pipes, None
        if process is not None:
            process.end(grace_s)
        if pipes is not None:
            pipes.outgoing.put(None)  # lets the writer go; readers end by themselves with their pipes


def _death(status: int) -> str:
    if status < 0 and sys.platform != "win32":
        name = signal.Signals(-status).name if -status in {s.value for s in signal.Signals} else f"signal {-status}"
        return f"The backend was ended by the system ({name})."
    return f"The backend ended unexpectedly (status {status})."


class _Pipes:
    """The threads on a process's pipes: one writes stdin, one reads stdout, one copies stderr to the log."""

    def __init__(self, process: Child, log: Log) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.incoming: queue.SimpleQueue[dict[str, Any] | Failure] = queue.SimpleQueue()
        self.outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._log = log
        process.pump(process.stderr, log.write)
        self._reader = read_messages(process.stdout, self.incoming.put, self._refuse, lambda: None)
        threading.Thread(target=self._write, args=(process.stdin,), daemon=True).start()

    @property
    def reading(self) -> bool:
        """Whether more may come from stdout."""
        return self._reader.is_alive()

    def _refuse(self, error: protocol.ProtocolError) -> None:
        if error.version is None:
            self._log.write(f"not a message: {error}\n".encode("utf-8", "backslashreplace"))
        else:
            older = "add-on" if error.version > protocol.VERSION else "backend"
            message = f"The {older} is older than its other half."
            self.incoming.put(Failure("protocol", message, f"Update the {older}."))

    def _write(self, stream: IO[bytes]) -> None:
        try:
            with stream:
                while (data := self._next()) is not None:
                    stream.write(data)
                    stream.flush()
        except (OSError, ValueError):
            pass  # the process is gone; poll() finds out

    def _next(self) -> bytes | None:
        """What is to be sent, a ping when there is nothing for long; None at the end."""
        try:
            return self.outgoing.get(timeout=PING_S)
        except queue.Empty:
            return protocol.encode(protocol.message("ping"))
