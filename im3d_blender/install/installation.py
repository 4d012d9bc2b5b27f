"""An installation on a thread of its own, and what is installed."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..client.backend import Failure
from ..client.environment import development_python
from .failures import InstallError
from .spec import InstallSpec
from .steps import INSTALL_STEPS, UNPACKED, InstallCancelledError, Step, Steps, write_json

CURRENT = "current.json"


@dataclass(frozen=True)
class Installed:
    """A backend that is ready.

    Attributes:
        home: Its home.
        python: Its Python.
        version: Of the backend; "" of a development environment.
        accelerator: The build of torch, e.g. "cu130"; "" of a development environment.
        key: Of the spec it was installed from.
    """

    home: Path
    python: Path
    version: str
    accelerator: str
    key: str = ""


@dataclass(frozen=True)
class InstallProgress:
    """How far an installation is.

    Attributes:
        stage: Name of the step.
        fraction: 0 to 1, of all steps; it never falls.
        message: What is being done, one of `INSTALL_STEPS`.
        failure: Why it ended, or None.
        done: Whether it has ended.
    """

    stage: str = ""
    fraction: float = 0.0
    message: str = ""
    failure: Failure | None = None
    done: bool = False


def find_installed(home: Path) -> Installed | None:
    """The backend in a home, also one that another Blender or another machine's add-on installed; None if none.

    A checkout with a development environment, or such an environment itself, is one too.
    """
    try:
        current = json.loads((home / "backend" / CURRENT).read_text(encoding="utf-8"))
        python = home / str(current["python"])
        found = Installed(home, python, str(current["version"]), str(current["accelerator"]), str(current["key"]))
    except (OSError, ValueError, KeyError, TypeError):
        development = development_python(home)
        return Installed(home, development, "", "") if development is not None else None
    return found if python.exists() else None


class Installation:
    """One run of the installer.

    Args:
        home: Where to.
        spec: What.
        online: Whether Blender's user has allowed downloads.
    """

    def __init__(self, home: Path, spec: InstallSpec, online: bool = True) -> None:
        self._home = home
        self._spec = spec
        self._online = online
        self._cancel = threading.Event()
        self._progress = InstallProgress(message="Starting")
        self._part: Callable[[], float] = lambda: 0.0
        self._share = self._before = 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def poll(self) -> InstallProgress:
        """The present state; never blocks."""
        return self._progress

    def cancel(self) -> None:
        """Stops the running command; what is finished is kept."""
        self._cancel.set()

    def wait(self, timeout: float) -> InstallProgress:
        """The state after the end, or after `timeout` seconds."""
        self._thread.join(timeout)
        return self._progress

    def _run(self) -> None:
        try:
            self._install()
        except InstallCancelledError:
            self._end(InstallError("cancelled").failure)
        except InstallError as error:
            self._end(error.failure)
        except Exception as defect:  # the thread must not die silently
            self._end(InstallError("defect", message=f"{type(defect).__name__}: {defect}").failure)
        else:
            self._progress = InstallProgress("", 1.0, "Installed", None, True)

    def _end(self, failure: Failure) -> None:
        before = self._progress
        self._progress = InstallProgress(before.stage, before.fraction, failure.message, failure, True)

    def _install(self) -> None:
        home, spec = self._home, self._spec
        known = find_installed(home)
        if known is not None and known.key == spec.key:
            return
        if not self._online:
            raise InstallError("offline")
        steps = Steps(home, spec, self._cancel, self._tick)
        steps.prepare()
        fraction = 0.0
        for step in steps.all():
            if step.name not in steps.finished() or step.name == "check":
                if self._cancel.is_set():
                    raise InstallCancelledError
                self._begin(steps, step, fraction)
                step.run()
                steps.record(step.name)
            fraction += step.share
        self._activate(steps)

    def _begin(self, steps: Steps, step: Step, fraction: float) -> None:
        """From now on, progress is that of this step: a download is as far as the disk has filled."""
        self._progress = InstallProgress(step.name, fraction, INSTALL_STEPS[step.name])
        free, expected = steps.free(), step.download * UNPACKED

        def part() -> float:
            return min(max(free - steps.free(), 0) / expected, 0.98) if expected else 0.0

        self._part, self._share, self._before = part, step.share, fraction

    def _tick(self) -> None:
        now = self._progress
        fraction = max(now.fraction, self._before + self._share * self._part())
        self._progress = InstallProgress(now.stage, fraction, now.message)

    def _activate(self, steps: Steps) -> None:
        """Puts the new environment in the place of the old one, which goes."""
        spec = self._spec
        key = steps.folder.name  # not `spec.key`: the add-on may have been updated meanwhile
        content = {
            "python": steps.python.relative_to(self._home).as_posix(),
            "version": spec.version,
            "accelerator": spec.accelerator,
            "key": key,
        }
        write_json(steps.root / CURRENT, content)
        for entry in steps.root.iterdir():
            # A Blender that still runs the old one on Windows holds its files: they go the next time.
            if entry.is_dir() and entry.name not in (key, "uv", "python"):
                shutil.rmtree(entry, ignore_errors=True)
