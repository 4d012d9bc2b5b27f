"""One command of the backend beside the jobs, e.g. downloading a model: started, looked at now and then, stopped.

No bpy here. Two daemon threads move bytes; everything else happens when `poll` is called.
"""

from __future__ import annotations

import json
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

SILENCE_S = 600.0  # a command that says nothing for so long has hung
_PERCENT = re.compile(r"(\d{1,3})%\|")
TAIL = 4000


@dataclass
class TaskState:
    """How far a task is.

    Attributes:
        fraction: 0 to 1, None while unknown.
        done: Whether it has ended.
        error: Why it failed, one or two sentences; "" when it did not.
        remedy: What a button can do about that, as `im3d.errors` lists them, or "".
        result: The object that the command printed last.
    """

    fraction: float | None = None
    done: bool = False
    error: str = ""
    remedy: str = ""
    result: dict[str, Any] | None = None


class Task:
    """A running command.

    Args:
        title: What is being done, for the panel.
        command: Program and arguments; with `--json`, so that its last line says how it ended.
        environment: Its whole environment.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        title: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title = title
        self.state = TaskState()
        self._clock = clock
        self._heard_at = clock()
        self._output: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
        self._tails = {"out": b"", "err": b""}
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=dict(environment),
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
                start_new_session=sys.platform != "win32",
            )
        except OSError as error:
            self.state = TaskState(done=True, error=f"The backend could not be started: {error}.")
            return
        pipes = (("out", self._process.stdout), ("err", self._process.stderr))
        self._readers = [threading.Thread(target=self._read, args=pair, daemon=True) for pair in pipes]
        for reader in self._readers:
            reader.start()

    def poll(self) -> TaskState:
        """The present state; never blocks."""
        if self.state.done or self._process is None:
            return self.state
        # Its last words may still be on their way when the process is gone already.
        ended = self._process.poll() is not None and not any(reader.is_alive() for reader in self._readers)
        while not self._output.empty():
            name, data = self._output.get()
            self._heard_at = self._clock()
            self._tails[name] = (self._tails[name] + data)[-TAIL:]
        percents = _PERCENT.findall(self._tails["err"].decode("utf-8", "replace"))
        if percents:
            self.state.fraction = min(int(percents[-1]), 100) / 100
        if ended:
            self._finish(self._process.returncode)
        elif self._clock() - self._heard_at > SILENCE_S:
            self.cancel()
            self.state.error = "The backend did not answer for ten minutes and was stopped."
        return self.state

    def cancel(self) -> None:
        """Ends the process; what it has finished stays."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(timeout=5)
        self.state.done = True

    def _read(self, name: str, pipe: IO[bytes] | None) -> None:
        assert pipe is not None
        while data := pipe.read1(65536):  # type: ignore[attr-defined]
            self._output.put((name, data))

    def _finish(self, status: int) -> None:
        self.state.done = True
        lines = self._tails["out"].decode("utf-8", "replace").strip().splitlines()
        try:
            result = json.loads(lines[-1]) if lines else None
        except ValueError:
            result = None
        self.state.result = result if isinstance(result, dict) else None
        if status != 0:
            said = self.state.result or {}
            self.state.error = f"{said.get('message', '')} {said.get('hint', '')}".strip()
            self.state.remedy = str(said.get("remedy", ""))
            if not self.state.error:
                last = self._tails["err"].decode("utf-8", "replace").strip().splitlines()
                self.state.error = last[-1] if last else f"The backend ended with status {status}."
