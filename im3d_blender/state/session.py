"""The one queue of this Blender session: made when first needed, advanced by `timer`, replaced when a folder or the
connection changes, ended with the add-on.

Nothing here keeps a data-block: between two ticks the user may undo, delete, or open another file. Panels draw from the
queue's own list and from the small tables below, never from the disk.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import bpy

from ..client.backend import Backend
from ..client.environment import backend_command, child_environment, remote_command
from ..client.queue import JobQueue, QueuedJob
from ..core.placement import Placement
from ..scene import arrival
from . import arrivals, backend_state, events, thumbnails
from .preferences import backend_folder, get_preferences, home_folder, jobs_folder
from .redraw import redraw

WAIT_S = 0.05  # between two ticks of a script that waits
RUNNING = ("waiting", "running")


class Session:
    """The queue and what the panel shows of its jobs.

    Attributes:
        queue: The jobs.
        pictures: Job id → key of its preview's thumbnail.
        frames: Job id → keys of its orbit views' thumbnails.
        arriving: Ids of finished jobs whose object has not arrived yet.
        notes: Job id → a sentence about its arrival.
        batches: Tables under way.
        left: Folders of jobs that an earlier session left unfinished, when the user wants them left.
        idle_since: When the last job ended, None once memory was freed (see `memory`).
    """

    def __init__(self, queue: JobQueue) -> None:
        self.queue = queue
        self.pictures: dict[str, str] = {}
        self.frames: dict[str, list[str]] = {}
        self.arriving: list[str] = []
        self.notes: dict[str, str] = {}
        self.batches: list[Any] = []
        self.left: list[Path] = []
        self.idle_since: float | None = None

    def find(self, job_id: str) -> QueuedJob | None:
        return next((job for job in self.queue.jobs if job.id == job_id), None)

    def note(self, job: QueuedJob) -> None:
        """Takes over what a job reports; the only place where its pictures are looked for on disk."""
        if job.preview is not None:
            self.pictures[job.id] = thumbnails.load(job.preview)
        known = self.frames.setdefault(job.id, [])
        known.extend(thumbnails.load(frame) for frame in job.frames[len(known) :])
        if job.state == "done" and job.id not in self.arriving:
            self.arriving.append(job.id)
        if job.state not in RUNNING:
            for batch in self.batches:
                batch.ended(job)

    def take_over(self, former: Session) -> None:
        """Keeps a former session's ended jobs with what is known of them, and its tables for jobs that go on here."""
        self.queue.jobs[:0] = [job for job in former.queue.jobs if job.state not in RUNNING]
        self.pictures |= former.pictures
        self.frames |= former.frames
        self.notes |= former.notes
        self.arriving += former.arriving
        self.batches += former.batches

    @property
    def running(self) -> QueuedJob | None:
        return next((job for job in self.queue.jobs if job.state == "running"), None)

    @property
    def is_active(self) -> bool:
        return bool(self.arriving) or any(job.state in RUNNING for job in self.queue.jobs)


_session: Session | None = None


def current() -> Session | None:
    """The session, None until something first needs its queue."""
    return _session


def ensure(context: bpy.types.Context) -> Session:
    """The session, made when there is none yet."""
    global _session
    if _session is None:
        backend_state.refresh(context)
        _session = Session(make_queue(context))
        if not bpy.app.background:  # a script has its own job in mind
            _session.left = _session.queue.unfinished()
            _continue_left(context, _session)
    return _session


def use(queue: JobQueue) -> Session:
    """Starts the session with a queue of one's own, for tests and pictures of the panel."""
    global _session
    restart()
    _session = Session(queue)
    return _session


def make_queue(context: bpy.types.Context) -> JobQueue:
    """A queue as the preferences say; starts nothing yet."""
    home, host = home_folder(context), get_preferences(context).remote_host.strip()
    backend = Backend(_command(context), home / "logs" / "backend.log", child_environment(home))
    files = remote_command(host, "--files") if host else None
    return JobQueue(backend, jobs_folder(context), time.monotonic, files)


def _command(context: bpy.types.Context) -> list[str]:
    host = get_preferences(context).remote_host.strip()
    return remote_command(host) if host else backend_command(backend_folder(context), bpy.app.binary_path)


def backend_installed(context: bpy.types.Context, session: Session) -> None:
    """A backend was installed while Blender ran: the next start is of that one, and jobs that waited for it go on."""
    session.queue.backend.command = _command(context)
    _continue_left(context, session)


def restart() -> None:
    """Ends the queue; the next one is made with the present preferences. Unfinished jobs stay in their folders."""
    global _session
    if _session is not None:
        _session.queue.close()
    _session = None


def submit(context: bpy.types.Context, request: dict[str, Any], placement: Placement) -> QueuedJob:
    """Queues a job and remembers where its object goes."""
    session = ensure(context)
    job = session.queue.submit(request)
    placement.write(job.folder)
    session.note(job)
    redraw(context)
    return job


def resume(context: bpy.types.Context, job: QueuedJob) -> QueuedJob:
    """Queues a job that failed or was cancelled once more; it goes on from its last finished step.

    Raises:
        OSError: Its folder cannot be read or written, and the job stays in the list as it is.
    """
    session = ensure(context)
    resumed = session.queue.resume(job.folder)
    session.notes.pop(job.id, None)
    session.note(resumed)
    redraw(context)
    return resumed


def clear_ended(context: bpy.types.Context) -> None:
    """Takes the jobs off the list to which nothing more happens by itself; their folders stay."""
    session = ensure(context)
    for job in [j for j in session.queue.jobs if j.state not in RUNNING and j.id not in session.arriving]:
        session.queue.remove(job.id)
        session.notes.pop(job.id, None)
    redraw(context)


def resume_left(context: bpy.types.Context, session: Session) -> None:
    """Queues the jobs that an earlier session left unfinished; one whose folder is gone by now is forgotten."""
    for folder in session.left:
        with contextlib.suppress(OSError):
            session.note(session.queue.resume(folder))
    session.left = []
    redraw(context)


def _continue_left(context: bpy.types.Context, session: Session) -> None:
    """Does so where the preferences ask for it, and not before there is a backend: they would fail for want of it."""
    if get_preferences(context).on_close == "CONTINUE" and backend_state.is_ready(context):
        resume_left(context, session)


def wait_for(context: bpy.types.Context, ids: list[str], report: Any = None) -> None:
    """Ticks until these jobs have ended and arrived: for scripts and for Blender without a window.

    Every wait of the queue has a deadline of its own, so this ends.

    Args:
        report: Called with each job that changed.
    """
    session = ensure(context)
    while True:
        for job in advance(context, session, patient=False):
            if report is not None and job.id in ids:
                report(job)
        waited_for = [job for job in session.queue.jobs if job.id in ids]
        if not any(job.state in RUNNING or job.id in session.arriving for job in waited_for):
            return
        time.sleep(WAIT_S)


def advance(context: bpy.types.Context, session: Session, patient: bool = True) -> list[QueuedJob]:
    """One tick: handles the backend's messages, then lets at most one object arrive.

    Args:
        patient: Whether objects wait until nobody edits or renders.
    """
    changed = session.queue.tick()
    for job in changed:
        session.note(job)
    if session.arriving and not (patient and arrival.busy(context)):
        arrivals.let_arrive(context, session, session.arriving[0])
    if changed:
        redraw(context)
    return changed


def _preferences_changed(context: bpy.types.Context, change: events.Change) -> None:
    """Starts anew with the present preferences; unfinished jobs stay in their folders, as when Blender is closed."""
    former = _session
    restart()
    if former is not None:
        ensure(context).take_over(former)


def attach() -> None:
    events.subscribe(_preferences_changed)


def detach() -> None:
    events.unsubscribe(_preferences_changed)
    restart()


def log_of(job: QueuedJob) -> Path:
    """The log that says most about a job."""
    return Path(job.failure.log) if job.failure is not None and job.failure.log else job.folder / "log.txt"
