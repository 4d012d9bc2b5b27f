"""The steps of an installation: commands with deadlines."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...backend.im3d.shared.files import replace_file
from ...backend.im3d.shared.processes import Child
from ..client.environment import child_environment, python_in
from ..client.log import Log
from .failures import Code, InstallError, explained
from .spec import InstallSpec, source_files

# The longest step fetches three gigabytes; what says nothing for so long has hung.
SILENCE_S = 900.0
TAIL = 6000
BACKEND_ANSWERS_S = 300.0
# What the downloads take on the disk when they are unpacked: 6.6 GB of 3.4 were seen.
UNPACKED = 1.9
# Taken when the certificates that pip and uv bring along do not know the network's: those of the operating system.
SYSTEM_CERTIFICATES = {"UV_SYSTEM_CERTS": "1", "PIP_USE_FEATURE": "truststore"}
# What the panel says during each step, and its share of the whole as it was on a fast line.
INSTALL_STEPS: dict[str, str] = {
    "uv": "Getting the installer",
    "python": "Making a Python environment",
    "packages": "Downloading packages",
    "torch": "Downloading torch",
    "sources": "Copying the backend",
    "check": "Starting the backend",
}


class InstallCancelledError(Exception):
    """The user stopped the installation; it goes on where it stopped."""


@dataclass(frozen=True)
class Step:
    """A step.

    Attributes:
        name: Recorded when it is done; `INSTALL_STEPS` says it in words.
        share: Of the whole, as it was on a fast line.
        run: Does it.
        download: Bytes that it fetches, roughly.
    """

    name: str
    share: float
    run: Callable[[], None]
    download: float = 0.0


class Steps:
    """The steps of one installation.

    Args:
        home: The backend's home.
        spec: What is installed.
        cancel: Set from another thread to stop.
        tick: Called several times a second while a command runs.
    """

    def __init__(
        self, home: Path, spec: InstallSpec, cancel: threading.Event, tick: Callable[[], None] = lambda: None
    ) -> None:
        self.home = home
        self.spec = spec
        self.cancel = cancel
        self.root = home / "backend"
        self.folder = self.root / spec.key
        self.log = home / "logs" / "install.log"
        self._tick = tick
        self._certificates: dict[str, str] = {}
        self._last_words = ""

    def all(self) -> list[Step]:
        """In order."""
        hashed = 1.0 if not self.spec.unhashed else 0.15  # of the bytes; the rest is torch
        return [
            Step("uv", 0.03, self._get_uv),
            Step("python", 0.05, self._make_environment),
            Step("packages", 0.82 * hashed, self._get_packages, self.spec.download * hashed),
            Step("torch", 0.82 * (1 - hashed), self._get_torch, self.spec.download * (1 - hashed)),
            Step("sources", 0.02, self._copy_sources),
            Step("check", 0.08, self._check),
        ]

    @property
    def python(self) -> Path:
        """The environment's Python."""
        return python_in(self.folder / "environment")

    def prepare(self) -> None:
        """Checks the place and makes the folders.

        Raises:
            InstallError: It cannot be written, or does not hold the backend.
        """
        try:
            for folder in (self.folder, self.log.parent):
                folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "steps.json", self.finished())  # a folder that is there may be read-only
            free = self.free()
        except OSError as error:
            self.log = Path(tempfile.gettempdir()) / "im3d-install.log"
            with contextlib.suppress(OSError):
                self.log.write_text(f"{error}\n", encoding="utf-8")
            raise self._error("place") from error
        if free < self.spec.space and not self._packages_are_there():
            raise self._error("space")

    def free(self) -> int:
        """Bytes that are free where the backend goes."""
        return shutil.disk_usage(self.root).free

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

    def _get_uv(self) -> None:
        """uv in an environment of its own, made by Blender's Python; pip checks the hashes of the lock."""
        lock = self.spec.uv_lock.read_text(encoding="utf-8")
        marker = self.root / "uv" / "lock.txt"
        if marker.exists() and marker.read_text(encoding="utf-8") == lock:
            return  # an earlier installation got it
        try:
            self._run([self.spec.host_python, "-m", "venv", "--clear", str(self.root / "uv")])
        except InstallError as error:
            # Its last words are the command that failed, or Debian's advice.
            missing = any(name in self._last_words for name in ("ensurepip", "No module named venv"))
            raise (self._error("ensurepip") if missing else error) from error
        pip = [str(python_in(self.root / "uv")), "-m", "pip", "install", "--require-hashes", "--only-binary", ":all:"]
        self._fetch([*pip, "--disable-pip-version-check", "--no-input", "-r", str(self.spec.uv_lock)])
        marker.write_text(lock, encoding="utf-8")

    def _uv(self, *arguments: str) -> None:
        # The program itself: `python -m uv` starts it as a child on Windows, which would outlive a stop.
        uv = python_in(self.root / "uv").with_name("uv.exe" if sys.platform == "win32" else "uv")
        self._fetch([str(uv), "--no-config", "--color", "never", *arguments])

    def _make_environment(self) -> None:
        """Not with Blender's Python: the next Blender would take it away."""
        self._uv("venv", "--python", self.spec.python, "--clear", str(self.folder / "environment"))

    def _get_packages(self) -> None:
        # The lock is complete, so nothing is resolved; wheels alone, so nothing is compiled.
        backend = ("--torch-backend", self.spec.torch_backend) if self.spec.torch_backend else ()
        self._pip("--require-hashes", "--no-deps", *backend, "-r", str(self.spec.lock))

    def _get_torch(self) -> None:
        """A build whose hash is not known, with the libraries that only it needs; the lock holds for all others."""
        if self.spec.unhashed:
            backend = ("--torch-backend", self.spec.torch_backend) if self.spec.torch_backend else ()
            self._pip(*backend, "-c", str(self.spec.lock), self.spec.unhashed)

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
            raise self._error("answer")

    # ---------------------------------------------------------------- commands

    def _fetch(self, command: list[str]) -> None:
        """Runs a download, and once more with the system's certificates where its own do not know the network's."""
        try:
            self._run(command)
        except InstallError as error:
            if error.failure.code != "certificate" or self._certificates:
                raise
            self._certificates = SYSTEM_CERTIFICATES
            try:
                self._run(command)
            except InstallError as again:
                # An old pip cannot use them, and says so: the reason is still the first one.
                raise (error if again.failure.code == "install" else again) from error

    def _run(self, command: list[str], silence_s: float = SILENCE_S) -> str:
        """Runs a command to its end and returns what it printed; the log gets everything.

        Raises:
            InstallError: It failed, or said nothing for too long.
            InstallCancelledError: The user stopped it.
        """
        try:
            process = Child(command, self._environment(), stderr=subprocess.STDOUT)
        except OSError as error:
            raise self._error("install", f"{command[0]}: {error.strerror}.") from error
        log, tail = Log(self.log), bytearray()

        def keep(data: bytes) -> None:
            tail.extend(data)
            del tail[:-TAIL]
            log.write(data)

        process.pump(process.stdout, keep)
        try:
            while process.poll() is None:
                if self.cancel.wait(0.05):
                    raise InstallCancelledError
                self._tick()
                if time.monotonic() - process.output_at > silence_s:
                    raise self._error("silent")
        finally:
            process.end()
            process.drain()
        self._last_words = tail.decode("utf-8", "replace")
        if process.returncode != 0:
            raise explained(self._last_words, str(self.log))
        return self._last_words

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
            **self._certificates,
            **self.spec.environment,
        }

    def _error(self, code: Code, message: str = "") -> InstallError:
        return InstallError(code, str(self.log), message)


def write_json(path: Path, content: object) -> None:
    replace_file(path, json.dumps(content, indent=1).encode())
