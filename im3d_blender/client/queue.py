"""The queue of jobs, one after the other, surviving backend crashes.

    queue = JobQueue(backend, jobs_folder)
    job = queue.submit(request)
    changed = queue.tick()            # from Blender's timer
    queue.close()

The backend is given one job at a time, and is started when there is one. When it or its worker dies, the job is resumed
from its last finished step; a second death in the same stage is the job's failure. A backend that does not cancel in
time, or reports nothing for long, is ended. Each job's request lies in its folder (`queued.json`), so that a job
outlives Blender.
"""

from __future__ import annotations

import json
import os
import re
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ...backend.im3d.shared.files import replace_file
from ...backend.im3d.shared.names import ORBIT_FILE, QUEUED_FILE, REQUEST_FILE
from . import protocol
from .backend import Backend, Failure
from .session_lock import SessionLock, is_alive
from .transfer import NEEDED, Transfer, outgoing, results, store_preview

JobState = Literal["waiting", "running", "done", "failed", "cancelled"]
# A job that reports nothing for so long hangs; the longest known silence is loading a large model from a slow disk.
SILENCE_S = 1800.0
# From the first cancel message to a second one, which ends the worker; a step of a large model can take half a minute.
CANCEL_S = 60.0
# From the second cancel message to the end of the backend.
SECOND_CANCEL_S = 15.0
SESSIONS = ".sessions"


@dataclass
class QueuedJob:
    """A job of the queue.

    Attributes:
        id: Name of its folder.
        folder: Where it and everything it makes lies.
        request: As in the protocol's `submit`.
        state: See `JobState`.
        stage: The running stage, "" before the first; "send" and "fetch" are those of a remote job's files.
        step, steps: Of the stage.
        fraction: Share of the whole job that is done, 0 to 1, never falling: where work is done once more, what is left
            of the bar is for what is left of the work.
        eta_s: Seconds left for the whole job, None while unknown.
        preview: The latest picture of it, or None.
        frames: Its views, once the generator has made them.
        warnings: What the user should know about the result, a sentence or two each.
        failure: Why it failed, or None.
        result: Its result.json, or None.
        submitted_at: Seconds since the epoch.
        attempts: How often the backend was given it.
        died_in: The stages in which the backend or its worker died.
    """

    id: str
    folder: Path
    request: dict[str, Any]
    state: JobState = "waiting"
    stage: str = ""
    step: int = 0
    steps: int = 0
    fraction: float = 0.0
    eta_s: float | None = None
    preview: Path | None = None
    frames: list[Path] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    failure: Failure | None = None
    result: Path | None = None
    submitted_at: float = 0.0
    attempts: int = 0
    died_in: list[str] = field(default_factory=list)
    # The fraction that the backend reported last; that and ours when the work last restarted.
    _reported: float = 1.0
    _anchor: tuple[float, float] = (0.0, 0.0)

    def advance(self, reported: float) -> None:
        """Takes over the fraction that the backend reports; a lower one than before means that it repeats work."""
        reported = min(max(reported, 0.0), 1.0)
        if reported < self._reported:
            self._anchor = (reported, max(self.fraction, reported))
        self._reported = reported
        theirs, ours = self._anchor
        left = (reported - theirs) / (1 - theirs) if theirs < 1 else 1.0
        self.fraction = max(self.fraction, ours + left * (1 - ours))


class JobQueue:
    """The queue of one session.

    Args:
        backend: Not started yet.
        folder: The jobs folder; one folder a job is made in it.
        clock: Seconds, monotonic.
        files_command: Moves files to and from the other machine that the backend runs on (see `transfer`); None: it
            runs on this one.

    Attributes:
        jobs: In the order of submission.
    """

    def __init__(
        self,
        backend: Backend,
        folder: Path,
        clock: Callable[[], float] = time.monotonic,
        files_command: Sequence[str] | None = None,
    ) -> None:
        self.backend = backend
        self.jobs: list[QueuedJob] = []
        self._folder = folder
        self._clock = clock
        self._lock: SessionLock | None = None
        self._received_at = 0.0
        self._cancelled_at: float | None = None
        self._cancelled_twice = False
        self._changed: list[QueuedJob] = []
        self._files_command = files_command
        # A remote job's files on their way: before it is submitted, and after its end.
        self._transfer: Transfer | None = None
        self._submission: dict[str, Any] = {}
        self._far_failure: Failure | None = None

    # ---------------------------------------------------------------- commands of the user

    def submit(self, request: dict[str, Any]) -> QueuedJob:
        """Queues a new job; its folder exists when this returns.

        Raises:
            OSError: The jobs folder cannot be written.
        """
        self._hold_lock()
        job_id = new_id(str(request.get("name", "")))
        job = QueuedJob(job_id, self._folder / job_id, dict(request), submitted_at=time.time())
        job.folder.mkdir(parents=True)
        self._write(job)
        self.jobs.append(job)
        return job

    def resume(self, folder: Path) -> QueuedJob:
        """Queues the unfinished job of a folder; it goes on from its last finished step.

        Raises:
            OSError: The folder holds no job that can be read.
        """
        self._hold_lock()
        known = next((j for j in self.jobs if j.folder == folder), None)
        if known is not None and known.state in ("waiting", "running"):
            return known
        stored = _read(folder)
        if stored is None:
            raise FileNotFoundError(f"{folder} holds no job")
        job = QueuedJob(folder.name, folder, stored["request"], submitted_at=stored.get("submitted_at", 0.0))
        job.fraction = float(stored.get("fraction", 0.0))
        self._write(job)
        if known is not None:
            self.jobs.remove(known)
        self.jobs.append(job)
        return job

    def cancel(self, id: str) -> None:
        """Stops a job; it stays resumable."""
        job = self._find(id)
        if job.state == "waiting":
            self._end(job, "cancelled")
        elif job.state == "running" and self._transfer is not None:
            self._end(job, "cancelled")  # the other machine has not begun it, or is done with it
        elif job.state == "running" and self._cancelled_at is None:
            self._cancelled_at = self._clock()
            self.backend.send(protocol.message("cancel", id))

    def remove(self, id: str) -> None:
        """Takes a job that does not run off the list, cancelling it when it waits; its folder stays."""
        job = self._find(id)
        if job.state == "waiting":
            self._end(job, "cancelled")
        if job.state != "running":
            self.jobs.remove(job)

    def free_memory(self) -> None:
        """Lets the backend drop the models that it keeps for the next job."""
        self.backend.send(protocol.message("free_memory"))

    def unfinished(self) -> list[Path]:
        """Folders of jobs that no running session takes care of, the oldest first: Blender was closed, or crashed."""
        found: list[tuple[float, Path]] = []
        try:
            folders = [Path(entry.path) for entry in os.scandir(self._folder) if entry.is_dir()]
        except OSError:
            return []
        for folder in folders:
            stored = _read(folder)
            if stored is None or stored.get("state") not in ("waiting", "running"):
                continue
            session = str(stored.get("session", ""))
            mine = self._lock is not None and session == self._lock.name
            if not mine and not is_alive(self._folder / SESSIONS, session):
                found.append((float(stored.get("submitted_at", 0.0)), folder))
        return [folder for _, folder in sorted(found)]

    def close(self) -> None:
        """Ends the backend; unfinished jobs stay in their folders and in `unfinished` of the next session."""
        self._drop_transfer()
        self.backend.stop(grace_s=2.0)
        if (running := self._running()) is not None:
            self._write(running)  # with how far it was
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    # ---------------------------------------------------------------- periodic update

    def tick(self) -> list[QueuedJob]:
        """Handles the backend's messages and gives it the next job; returns the jobs that changed. Never blocks."""
        for message in self.backend.poll():
            self._take(message)
        if self.backend.state == "failed" and self.backend.failure is not None:
            self._backend_failed(self.backend.failure)
        self._enforce_deadlines()
        self._advance()
        self._move_files()
        changed, self._changed = self._changed, []
        return list({job.id: job for job in changed}.values())

    def _advance(self) -> None:
        """Gives the next job to the backend, starting it when it does not run."""
        waiting = next((job for job in self.jobs if job.state == "waiting"), None)
        if waiting is None or self._running() is not None:
            return
        if self.backend.state in ("stopped", "failed"):
            self.backend.start()
        if self.backend.state != "ready":
            return
        waiting.state, waiting.failure = "running", None
        waiting.attempts += 1
        self._received_at, self._cancelled_at, self._cancelled_twice = self._clock(), None, False
        self._write(waiting)
        self._far_failure = None
        if self._files_command is not None:
            self._send_files(waiting)
        elif (waiting.folder / REQUEST_FILE).exists():
            self.backend.send(protocol.message("resume", waiting.id, job=str(waiting.folder)))
        else:
            self.backend.send(protocol.message("submit", waiting.id, request=waiting.request, job=str(waiting.folder)))
        self._changed.append(waiting)

    def _send_files(self, job: QueuedJob) -> None:
        try:
            self._submission, files = outgoing(job.id, job.request)
        except OSError as error:
            self._end(job, "failed", Failure("bad_input", f"{error.filename} cannot be read.", "Check the path."))
            return
        self._begin_transfer(job, "put", files)

    def _begin_transfer(self, job: QueuedJob, kind: Literal["put", "get"], files: list[tuple[Path, str]]) -> None:
        assert self._files_command is not None
        job.stage = "send" if kind == "put" else "fetch"
        self._transfer = Transfer(self._files_command, kind, files, self.backend.environment, self._clock)

    def _move_files(self) -> None:
        """Watches the running transfer; after it the job begins, or its result is complete."""
        job, transfer = self._running(), self._transfer
        if job is None or transfer is None:
            return
        self._received_at = self._clock()  # a transfer has its own deadline
        if transfer.poll() == "running":
            return
        self._transfer = None
        self._changed.append(job)
        if transfer.kind == "put" and transfer.failure is None:
            # The other side knows the job if it was sent before, and goes on with it.
            self.backend.send(protocol.message("submit", job.id, request=self._submission, job=job.id))
        elif self._far_failure is not None:
            log = job.folder / "log.txt"
            self._end(job, "failed", replace(self._far_failure, log=str(log) if log.exists() else ""))
        elif transfer.failure is not None:
            self._end(job, "failed", transfer.failure)
        else:
            self._come_home(job, transfer.missing)

    def _come_home(self, job: QueuedJob, missing: list[str]) -> None:
        lost = [name for name in NEEDED if f"{job.id}/{name}" in missing]
        if lost:
            self._end(job, "failed", Failure("remote", f"{lost[0]} did not come back.", "Try again."))
            return
        preview = job.folder / "preview.png"
        job.preview = preview if preview.exists() else job.preview
        self._done(job, job.folder / "result.json")

    def _drop_transfer(self) -> None:
        if self._transfer is not None:
            self._transfer.cancel()
            self._transfer = None

    def _take(self, message: dict[str, Any]) -> None:
        job = self._running()
        if job is None or message["id"] != job.id:
            return  # the end of a job that was given up
        self._received_at = self._clock()
        if message["type"] == "progress":
            self._progress(job, message)
        elif message["type"] == "warning":
            if str(message["message"]) not in job.warnings:
                job.warnings.append(str(message["message"]))
        elif message["type"] == "preview":
            if self._files_command is not None:
                job.preview = store_preview(job.folder, message.get("data")) or job.preview
            else:
                job.preview = Path(str(message["path"]))
        elif message["type"] == "result":
            if self._files_command is not None:
                self._begin_transfer(job, "get", results(job.id, job.folder))
            else:
                self._done(job, Path(str(message["path"])))
        elif message["type"] == "error":
            failure = Failure(*(str(message[k]) for k in ("code", "message", "hint", "log", "remedy")))
            died = failure.code == "worker_died"
            if failure.code == "cancelled" or (died and self._cancelled_at is not None):
                self._end(job, "cancelled")
            elif died and self._try_again(job):
                pass
            elif failure.log and self._files_command is not None:
                self._far_failure = failure  # with its log, which lies there
                self._begin_transfer(job, "get", [(job.folder / "log.txt", f"{job.id}/log.txt")])
            else:
                self._end(job, "failed", failure)
        self._changed.append(job)

    def _progress(self, job: QueuedJob, message: dict[str, Any]) -> None:
        try:
            step, steps, fraction = int(message["step"]), int(message["steps"]), float(message["fraction"])
            eta = None if message["eta_s"] is None else float(message["eta_s"])
        except (TypeError, ValueError):
            return
        job.stage, job.step, job.steps, job.eta_s = str(message["stage"]), step, steps, eta
        job.advance(fraction)
        # The stage before the fit wrote them; orbit.json is the last of its files.
        views = job.folder / "views"
        if not job.frames and job.stage in ("fit", "refine") and (views / ORBIT_FILE).exists():
            job.frames = sorted(views.glob("view_*.png"))

    def _done(self, job: QueuedJob, path: Path) -> None:
        job.result, job.fraction, job.eta_s = path, 1.0, 0.0
        self._end(job, "done")

    def _backend_failed(self, failure: Failure) -> None:
        """A running job is resumed or cancelled; when none runs, those that wait fail: the backend does not start."""
        self.backend.stop(grace_s=0.0)
        if self._transfer is not None and self._transfer.kind == "get":
            return  # the job is over there, and its files come by themselves
        self._drop_transfer()
        job = self._running()
        if job is not None and self._cancelled_at is not None:
            self._end(job, "cancelled")
        elif job is not None:
            if failure.code == "protocol" or not self._try_again(job):
                self._end(job, "failed", failure)
        else:
            for waiting in [j for j in self.jobs if j.state == "waiting"]:
                self._end(waiting, "failed", failure)

    def _try_again(self, job: QueuedJob) -> bool:
        """Requeues a job whose process died; False when one has died in the same stage before."""
        if job.stage in job.died_in:
            return False
        job.died_in.append(job.stage)
        job.state = "waiting"
        self._write(job)
        self._changed.append(job)
        return True

    def _enforce_deadlines(self) -> None:
        job = self._running()
        if job is None:
            return
        now = self._clock()
        waited = now - self._cancelled_at if self._cancelled_at is not None else 0.0
        if waited > CANCEL_S and not self._cancelled_twice:
            self._cancelled_twice = True
            self.backend.send(protocol.message("cancel", job.id))
        elif waited > CANCEL_S + SECOND_CANCEL_S:
            self._backend_failed(Failure("cancelled", "The backend did not stop in time and was ended."))
        elif now - self._received_at > SILENCE_S:
            log = str(job.folder / "log.txt")
            self._backend_failed(
                Failure("backend_hung", "The job reported nothing for half an hour.", "Try again.", log)
            )

    # ---------------------------------------------------------------- helpers

    def _running(self) -> QueuedJob | None:
        return next((job for job in self.jobs if job.state == "running"), None)

    def _find(self, job_id: str) -> QueuedJob:
        for job in self.jobs:
            if job.id == job_id:
                return job
        raise KeyError(job_id)

    def _end(self, job: QueuedJob, state: JobState, failure: Failure | None = None) -> None:
        if job.state == "running":
            self._drop_transfer()
        job.state, job.failure = state, failure if state == "failed" else None
        self._write(job)
        self._changed.append(job)

    def _hold_lock(self) -> None:
        if self._lock is None:
            self._lock = SessionLock(self._folder / SESSIONS)

    def _write(self, job: QueuedJob) -> None:
        """Writes the request and state; a full disk must not stop a job that is running."""
        content = {
            "request": job.request,
            "state": job.state,
            "submitted_at": job.submitted_at,
            "fraction": job.fraction,
            "session": self._lock.name if self._lock is not None else "",
        }
        try:
            replace_file(job.folder / QUEUED_FILE, json.dumps(content, indent=1).encode())
        except OSError:
            if job.state == "waiting" and not (job.folder / QUEUED_FILE).exists():
                raise


def new_id(name: str) -> str:
    """A folder name that sorts by time, says what the job is, and is never used twice."""
    words = re.sub(r"[^a-z0-9]+", "-", name.lower())[:32].strip("-")
    parts = [time.strftime("%Y%m%d-%H%M%S"), words, uuid.uuid4().hex[:6]]
    return "-".join(part for part in parts if part)


def _read(folder: Path) -> dict[str, Any] | None:
    """The request and state of the job in a folder, also of the command line's; None when there is none."""
    for name in (QUEUED_FILE, REQUEST_FILE):
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict):
            return content if name == QUEUED_FILE else {"request": content}
    return None
