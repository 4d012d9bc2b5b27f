"""One command of the backend beside the jobs, e.g. downloading a model: started, looked at now and then, stopped.

No bpy here. Two daemon threads move bytes; everything else happens when `poll` is called.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ...backend.im3d.shared.processes import Child

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
        self._tails = {"stdout": b"", "stderr": b""}
        self._process: Child | None = None
        try:
            self._process = Child(command, environment, clock)
        except OSError as error:
            self.state = TaskState(done=True, error=f"The backend could not be started: {error}.")
            return
        for name in self._tails:
            self._process.pump(getattr(self._process, name), partial(self._keep, name))

    def poll(self) -> TaskState:
        """The present state; never blocks."""
        if self.state.done or self._process is None:
            return self.state
        ended = self._process.is_over
        percents = _PERCENT.findall(self._tails["stderr"].decode("utf-8", "replace"))
        if percents:
            self.state.fraction = min(int(percents[-1]), 100) / 100
        if ended:
            self._finish(self._process.returncode)
        elif self._clock() - self._process.output_at > SILENCE_S:
            self.cancel()
            self.state.error = "The backend did not answer for ten minutes and was stopped."
        return self.state

    def cancel(self) -> None:
        """Ends the process; what it has finished stays."""
        if self._process is not None:
            self._process.end()
        self.state.done = True

    def _keep(self, name: str, data: bytes) -> None:
        self._tails[name] = (self._tails[name] + data)[-TAIL:]

    def _finish(self, status: int) -> None:
        self.state.done = True
        lines = self._tails["stdout"].decode("utf-8", "replace").strip().splitlines()
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
                last = self._tails["stderr"].decode("utf-8", "replace").strip().splitlines()
                self.state.error = last[-1] if last else f"The backend ended with status {status}."
