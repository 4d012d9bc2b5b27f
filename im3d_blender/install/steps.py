"""The steps of an installation: commands with deadlines, and what their failures mean."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..link.backend import Failure
from ..link.environment import child_environment
from .spec import InstallSpec, source_files, without_gpu_packages, without_torch

# The longest step fetches three gigabytes; what says nothing for so long has hung.
SILENCE_S = 900.0
TAIL = 6000
BACKEND_ANSWERS_S = 300.0


class InstallError(Exception):
    """A step failed."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class InstallCancelledError(Exception):
    """The user stopped the installation; it goes on where it stopped."""


@dataclass(frozen=True)
class Step:
    """A step, with its share of the whole as it was on a fast line.

    Attributes:
        name: Recorded when it is done.
        message: For the panel, e.g. "Downloading packages".
        share: Of the progress bar.
        run: Does it.
    """

    name: str
    message: str
    share: float
    run: Callable[[], None]


class Steps:
    """The steps of one installation.

    Args:
        home: The backend's home.
        spec: What is installed.
        cancel: Set from another thread to stop.
    """

    def __init__(self, home: Path, spec: InstallSpec, cancel: threading.Event) -> None:
        self.home = home
        self.spec = spec
        self.cancel = cancel
        self.root = home / "backend"
        self.folder = self.root / spec.key
        self.log = home / "logs" / "install.log"

    def all(self) -> list[Step]:
        """In order."""
        return [
            Step("uv", "Getting the installer", 0.03, self._get_uv),
            Step("python", "Making a Python environment", 0.05, self._make_environment),
            Step("packages", "Downloading packages", 0.55 if self.spec.torch_backend else 0.82, self._get_packages),
            Step("torch", "Downloading torch", 0.27 if self.spec.torch_backend else 0.0, self._get_torch),
            Step("sources", "Copying the backend", 0.02, self._copy_sources),
            Step("check", "Starting the backend", 0.08, self._check),
        ]

    @property
    def python(self) -> Path:
        """The environment's Python."""
        inside = ("Scripts", "python.exe") if sys.platform == "win32" else ("bin", "python")
        return self.folder.joinpath("environment", *inside)

    def prepare(self) -> None:
        """Checks the place and makes the folders.

        Raises:
            InstallError: It cannot be written, or does not hold the backend.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.log.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise self._error(
                "disk", f"{self.home} cannot be written: {error.strerror}.", "Choose another folder."
            ) from error
        if free < self.spec.space and not self._packages_are_there():
            needed = self.spec.space / (1 << 30)
            raise self._error(
                "disk",
                f"The backend needs {needed:.0f} GB, and {free / (1 << 30):.1f} GB are free.",
                "Free some space, or choose a folder on another disk.",
            )

    def finished(self) -> list[str]:
        """Names of the steps that are done."""
        try:
            steps = json.loads((self.folder / "steps.json").read_text(encoding="utf-8"))
            return [str(s) for s in steps]
        except (OSError, ValueError, TypeError):
            return []

    def record(self, name: str) -> None:
        """Remembers that a step is done."""
        write_json(self.folder / "steps.json", [*self.finished(), name])

    def _packages_are_there(self) -> bool:
        return "packages" in self.finished()

    # ---------------------------------------------------------------- the steps

    @property
    def _uv_python(self) -> Path:
        inside = ("Scripts", "python.exe") if sys.platform == "win32" else ("bin", "python")
        return self.root.joinpath("uv", *inside)

    def _get_uv(self) -> None:
        """uv in an environment of its own, made by Blender's Python; pip checks the hashes of the lock."""
        lock = self.spec.uv_lock.read_text(encoding="utf-8")
        marker = self.root / "uv" / "lock.txt"
        if marker.exists() and marker.read_text(encoding="utf-8") == lock:
            return  # an earlier installation got it
        self._run([self.spec.host_python, "-m", "venv", "--clear", str(self.root / "uv")])
        pip = [str(self._uv_python), "-m", "pip", "install", "--require-hashes", "--only-binary", ":all:"]
        self._run([*pip, "--disable-pip-version-check", "--no-input", "-r", str(self.spec.uv_lock)])
        marker.write_text(lock, encoding="utf-8")

    def _uv(self, *arguments: str) -> None:
        # The program itself: `python -m uv` starts it as a child on Windows, which would outlive a stop.
        uv = self._uv_python.with_name("uv.exe" if sys.platform == "win32" else "uv")
        self._run([str(uv), "--no-config", "--color", "never", *arguments])

    def _make_environment(self) -> None:
        """Not with Blender's Python: the next Blender would take it away."""
        self._uv("venv", "--python", self.spec.python, "--clear", str(self.folder / "environment"))

    def _get_packages(self) -> None:
        text = self.spec.lock.read_text(encoding="utf-8")
        if self.spec.torch_backend:
            text, _ = without_torch(text)
        if not self.spec.accelerator.startswith("cu"):
            text = without_gpu_packages(text)
        lock = self.folder / "packages.txt"
        lock.write_text(text, encoding="utf-8")
        # The lock is complete, so nothing is resolved; wheels alone, so nothing is compiled.
        self._pip("--require-hashes", "--no-deps", "-r", str(lock))

    def _get_torch(self) -> None:
        if not self.spec.torch_backend:
            return
        _, requirements = without_torch(self.spec.lock.read_text(encoding="utf-8"))
        self._pip("--torch-backend", self.spec.torch_backend, *requirements)

    def _pip(self, *arguments: str) -> None:
        self._uv("pip", "install", "--python", str(self.python), "--only-binary", ":all:", *arguments)

    def _copy_sources(self) -> None:
        """The backend as this add-on brings it; a .pth file makes it importable."""
        target = self.folder / "sources"
        shutil.rmtree(target, ignore_errors=True)
        for file in source_files(self.spec.sources):
            copy = target / file.relative_to(self.spec.sources)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
        place = Path(self._run([str(self.python), "-I", "-c", code]).strip().splitlines()[-1])
        (place / "im3d.pth").write_text(str(target / "backend") + "\n", encoding="utf-8")

    def _check(self) -> None:
        """The new backend must say hello before it takes the old one's place."""
        command = [str(self.python), "-P", "-s", "-m", "im3d.cli"]
        self._run([*command, "doctor", "--json"], BACKEND_ANSWERS_S)
        said = self._run([*command, "serve"], BACKEND_ANSWERS_S)
        if '"type":"hello"' not in said.replace(" ", ""):
            raise self._error("install", "The new backend does not answer.", "The log says more.")

    # ---------------------------------------------------------------- commands

    def _run(self, command: list[str], silence_s: float = SILENCE_S) -> str:
        """Runs a command to its end and returns what it printed; the log gets everything.

        Raises:
            InstallError: It failed, or said nothing for too long.
            InstallCancelledError: The user stopped it.
        """
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
                start_new_session=sys.platform != "win32",
            )
        except OSError as error:
            raise self._error("install", f"{command[0]} cannot be started: {error.strerror}.", "Try again.") from error
        said = _Output(process, self.log)
        try:
            while process.poll() is None:
                if self.cancel.wait(0.05):
                    raise InstallCancelledError
                if time.monotonic() - said.heard > silence_s:
                    raise self._error("install", "The installer stopped answering.", "Try again; it goes on there.")
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            said.finish()
        if process.returncode != 0:
            raise self._explained(said.tail)
        return said.tail

    def _environment(self) -> dict[str, str]:
        cache = self.home / "cache"
        return {
            **child_environment(self.home),
            "UV_CACHE_DIR": str(cache / "uv"),
            "UV_PYTHON_INSTALL_DIR": str(self.root / "python"),
            "UV_NO_PROGRESS": "1",
            "UV_LINK_MODE": "copy" if sys.platform == "win32" else "hardlink",
            "PIP_CACHE_DIR": str(cache / "pip"),
            "PIP_CONFIG_FILE": os.devnull,
            **self.spec.environment,
        }

    def _explained(self, tail: str) -> InstallError:
        """The failure behind the last words of pip or uv."""
        text = tail.lower()
        if "no space left" in text or "disk full" in text or "errno 28" in text or "file too large" in text:
            return self._error("disk", "The disk is full.", "Free some space, then install again: it goes on there.")
        spoilt = ("hash mismatch", "do not match the hashes", "failed to extract", "crc", "bad zip")
        if any(sign in text for sign in spoilt):
            return self._error(
                "hash", "A download is not what it should be and was thrown away.", "Try again, or on another network."
            )
        signs = ("connect", "dns", "resolve host", "timed out", "network", "connection", "error sending request",
                 "failed to fetch", "incompleteread", "error decoding response body",
                 "no matching distribution")  # fmt: skip
        if any(sign in text for sign in signs):
            return self._error(
                "network", "A download was interrupted.", "Check the network, then install again: it goes on there."
            )
        lines = [line.strip() for line in tail.splitlines() if line.strip()]
        return self._error("install", lines[-1] if lines else "A step failed without a word.", "The log says more.")

    def _error(self, code: str, message: str, hint: str) -> InstallError:
        return InstallError(Failure(code, message, hint, str(self.log)))


class _Output:
    """Reads what a command prints, on a thread, into the log; keeps its end."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.heard = time.monotonic()
        self.tail = ""
        self._process = process
        self._log = log
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def finish(self) -> None:
        self._thread.join(timeout=5)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            while data := stream.read1(1 << 16):  # type: ignore[attr-defined]
                self.heard = time.monotonic()
                self.tail = (self.tail + data.decode("utf-8", "replace"))[-TAIL:]
                try:
                    with open(self._log, "ab") as file:
                        file.write(data)
                except OSError:
                    pass  # a full disk is found out by the command itself


def write_json(path: Path, content: object) -> None:
    """In one piece."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(part, path)
