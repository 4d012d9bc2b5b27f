"""Files to and from a backend on another machine, over an ssh of their own, beside the one of the messages."""

from __future__ import annotations

import base64
import contextlib
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal

from ...backend.im3d.shared.file_stream import DamagedError, EndedEarlyError, Entry, RefusedError
from ...backend.im3d.shared.files import replace_file
from ...backend.im3d.shared.names import INPUT_FOLDER, ORBIT_FILE, pictures_in
from ...backend.im3d.shared.processes import Child
from . import file_stream
from .backend import Failure

SOURCES = ("image", "views", "mask")
# The files of a finished job that are fetched; without the first two it is incomplete.
RESULTS = ("result.json", "mesh.glb", "splats.ply", "preview.png", "turntable.webp", "log.txt")
NEEDED = RESULTS[:2]
# A transfer is given up after so many connections in a row that move nothing; each continues where the last one broke.
ATTEMPTS = 3
PAUSE_S = 2.0
# A connection that moves nothing for so long is ended; the other side may be comparing a large file's hash.
STALL_S = 90.0


class Transfer:
    """Files on their way. A thread moves them; `poll` says how far it is and enforces the deadline.

    Args:
        command: Starts the other side of `file_stream` on the other machine.
        kind: "put" sends the files there, "get" brings them here.
        files: Each with its path here and its path there.
        environment: Of the command; None: this process's.
        clock: Seconds, monotonic.

    Attributes:
        kind: As given.
        state: "running", "done", "failed" or "cancelled".
        failure: Why it failed.
        missing: Requested paths there that do not exist.
        moved: Bytes moved so far, over all connections.
    """

    def __init__(
        self,
        command: Sequence[str],
        kind: Literal["put", "get"],
        files: Sequence[tuple[Path, str]],
        environment: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.kind: Literal["put", "get"] = kind
        self.state: Literal["running", "done", "failed", "cancelled"] = "running"
        self.failure: Failure | None = None
        self.missing: list[str] = []
        self.moved = 0
        self._command = list(command)
        self._files = list(files)
        self._environment = None if environment is None else dict(environment)
        self._clock = clock
        self._moved_at = clock()
        self._stop = threading.Event()
        self._lock = threading.Lock()  # between starting a process and ending it
        self._process: Child | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def poll(self) -> str:
        """The state; ends a stalled connection, after which the thread opens another. Never blocks."""
        if self.state == "running" and self._clock() - self._moved_at > STALL_S:
            self._moved_at = self._clock()
            self._end_process()
        return self.state

    def cancel(self) -> None:
        """Ends the transfer; what has arrived is kept for the next one of the same files."""
        self._stop.set()
        if self.state == "running":
            self.state = "cancelled"
        self._end_process()

    # ---------------------------------------------------------------- on the thread

    def _run(self) -> None:
        fruitless = 0
        while not self._stop.is_set():
            before = self.moved
            try:
                self._attempt()
            except EndedEarlyError as error:
                reason = str(error)
            except DamagedError as error:
                reason, before = str(error), self.moved
            except RefusedError as error:
                if error.code != "damaged":
                    self._finish(Failure(error.code, error.message, error.hint, "", error.remedy))
                    return
                reason, before = error.message.rstrip("."), self.moved
            except OSError as error:
                self._finish(_disk_failure(error))
                return
            except Exception as error:  # an answer that is none
                reason = f"{type(error).__name__}: {error}"
            else:
                self._finish()
                return
            fruitless = 0 if self.moved > before else fruitless + 1
            if fruitless >= ATTEMPTS:
                message = f"The files did not reach the other machine: {reason}."
                if self.kind == "get":
                    message = f"The files of the other machine did not come: {reason}."
                self._finish(Failure("remote", message, "Check the connection, then try again.", remedy="resume"))
                return
            self._stop.wait(PAUSE_S * fruitless)

    def _attempt(self) -> None:
        entries = [(file, Entry.of(file, path)) for file, path in self._files] if self.kind == "put" else []
        with tempfile.TemporaryFile() as errors:
            process = self._start(errors)
            assert process.stdin is not None
            assert process.stdout is not None
            streams = process.stdout, process.stdin
            try:
                try:
                    self._put(streams, entries) if self.kind == "put" else self._get(streams)
                except EndedEarlyError:
                    file_stream.read_line(process.stdout)  # the other side may have sent the reason before it ended
                    raise
            except EndedEarlyError as error:
                raise EndedEarlyError(_last_words(process, errors) or str(error)) from error
            finally:
                self._end_process()

    def _put(self, streams: file_stream.Streams, files: list[tuple[Path, Entry]]) -> None:
        file_stream.write_line(streams[1], put=[entry.to_json() for _, entry in files])
        file_stream.send_all(streams, files, self._count)
        file_stream.read_line(streams[0])

    def _get(self, streams: file_stream.Streams) -> None:
        file_stream.write_line(streams[1], get=[path for _, path in self._files])
        found = file_stream.read_line(streams[0]).get("files")
        if not isinstance(found, list) or len(found) != len(self._files):
            raise ValueError("the answer has not an entry for each file")
        self.missing = [path for (_, path), entry in zip(self._files, found, strict=True) if entry is None]
        coming = [(file, Entry(**entry)) for (file, _), entry in zip(self._files, found, strict=True) if entry]
        file_stream.receive_all(streams, coming, self._count)

    def _count(self, amount: int) -> None:
        self.moved += amount
        self._moved_at = self._clock()

    def _finish(self, failure: Failure | None = None) -> None:
        if not self._stop.is_set():
            self.failure = failure
            self.state = "done" if failure is None else "failed"

    def _start(self, errors: IO[bytes]) -> Child:
        with self._lock:
            if self._stop.is_set():
                raise EndedEarlyError("it was cancelled")
            self._moved_at = self._clock()
            try:
                self._process = Child(self._command, self._environment, stdin=subprocess.PIPE, stderr=errors)
            except OSError as error:
                raise EndedEarlyError(f"{self._command[0]} cannot be started ({error.strerror})") from error
            return self._process

    def _end_process(self) -> None:
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.end()  # with what ssh started, e.g. to reach a proxy


def outgoing(job_id: str, request: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[Path, str]]]:
    """A request with its paths on the other side, and the files that it starts from with theirs.

    Raises:
        OSError: A folder cannot be read.
    """
    changed: dict[str, Any] = dict(request)
    files: list[tuple[Path, str]] = []
    for name in SOURCES:
        if not request.get(name):
            continue
        source, target = Path(request[name]), f"{job_id}/{INPUT_FOLDER}/{name}"
        if source.is_dir():
            orbit = source / ORBIT_FILE
            views = sorted(pictures_in(source)) + ([orbit] if orbit.is_file() else [])
            files += [(p, f"{target}/{p.name}") for p in views]
        else:
            target += source.suffix
            files.append((source, target))
        changed[name] = target
    return changed, files


def results(job_id: str, folder: Path) -> list[tuple[Path, str]]:
    """The files of a finished job that are fetched, with their paths on the other side."""
    return [(folder / name, f"{job_id}/{name}") for name in RESULTS]


def store_preview(folder: Path, data: object) -> Path | None:
    """The picture that came with a preview, stored; None when none came, or it cannot be: a job goes on without."""
    try:
        picture = base64.b64decode(str(data or ""), validate=True)
        if not picture:
            return None
        replace_file(folder / "preview.png", picture)
    except (OSError, ValueError):
        return None
    return folder / "preview.png"


def _last_words(process: Child, errors: IO[bytes]) -> str:
    """The last line that ssh printed before it ended, e.g. that the host is unknown."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=2)
    errors.seek(max(0, errors.seek(0, os.SEEK_END) - 4096))
    lines = errors.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1].strip().rstrip(".") if lines else ""


def _disk_failure(error: OSError) -> Failure:
    reason = error.strerror or str(error)
    if isinstance(error, FileNotFoundError | PermissionError):
        return Failure("bad_input", f"{error.filename} cannot be used: {reason}.", "Check the path.")
    return Failure("disk", f"The files cannot be stored: {reason}.", "Free some space.")
