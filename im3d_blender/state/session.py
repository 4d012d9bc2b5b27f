"""The one queue of this Blender session: made when first needed, ticked by a timer, gone with the add-on.

Nothing here keeps a data-block: between two ticks the user may undo, delete, or open another file. Panels draw from the
queue's own list and from the small tables below, never from the disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import traceback
import uuid
from pathlib import Path
from typing import Any

import bpy

from ..client.backend import Backend, Failure
from ..client.environment import backend_command, child_environment, remote_command
from ..client.queue import JobQueue, QueuedJob
from ..core import finished_jobs
from ..core.placement import Placement, read_placement
from ..scene import arrival, importing
from . import backend_state, cutout, events, thumbnails
from .preferences import backend_folder, get_preferences, home_folder, jobs_folder
from .properties import refresh_jobs

ACTIVE_S = 0.1  # between two ticks while a job runs
IDLE_S = 1.0
OTHER_FILE = "Started in another file. Import it here?"
RUNNING = ("waiting", "running")


class Session:
    """What lives from the first job to the end of the add-on.

    Attributes:
        queue: The jobs.
        pictures: Job id → key of its preview's thumbnail.
        frames: Job id → keys of its orbit views' thumbnails.
        arriving: Ids of finished jobs whose object has not arrived yet.
        notes: Job id → a sentence about its arrival.
        batches: Tables under way.
        left: Folders of jobs that an earlier session left unfinished, when the user wants them left.
        idle_since: When the last job ended, None once memory was freed.
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

    @property
    def running(self) -> QueuedJob | None:
        return next((job for job in self.queue.jobs if job.state == "running"), None)

    @property
    def is_active(self) -> bool:
        return bool(self.arriving) or any(job.state in RUNNING for job in self.queue.jobs)


_session: Session | None = None
# Changes whenever another file is opened: jobs asked for before do not belong into it, unless its path says so.
_document = uuid.uuid4().hex
_path = ""  # of the open file as it was opened or last saved


def current() -> Session | None:
    """The session, None before the first job."""
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


def _backend_changed(context: bpy.types.Context, session: Session) -> None:
    """A backend was installed while Blender ran: the next start is of that one, and what waited for it goes on."""
    session.queue.backend.command = _command(context)
    _continue_left(context, session)


def restart() -> None:
    """Ends the queue; the next one is made with the present preferences. Unfinished jobs stay in their folders."""
    global _session
    if _session is not None:
        _session.queue.close()
    _session = None


def document() -> str:
    """Identifies the open file among those that this session had open."""
    return _document


def submit(context: bpy.types.Context, request: dict[str, Any], placement: Placement) -> QueuedJob:
    """Queues a job and remembers where its object goes."""
    session = ensure(context)
    job = session.queue.submit(request)
    placement.write(job.folder)
    session.note(job)
    redraw(context)
    return job


def resume(context: bpy.types.Context, job: QueuedJob) -> QueuedJob:
    """Queues a job that failed or was cancelled once more; it goes on from its last finished step."""
    session = ensure(context)
    session.notes.pop(job.id, None)
    session.queue.remove(job.id)
    resumed = session.queue.resume(job.folder)
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
        time.sleep(ACTIVE_S / 2)


def advance(context: bpy.types.Context, session: Session, patient: bool = True) -> list[QueuedJob]:
    """One tick: hears the backend, then lets at most one object arrive.

    Args:
        patient: Whether objects wait until nobody edits or renders.
    """
    changed = session.queue.tick()
    for job in changed:
        session.note(job)
    if session.arriving and not (patient and arrival.busy(context)):
        let_arrive(context, session, session.arriving[0])
    if changed:
        redraw(context)
    return changed


def let_arrive(context: bpy.types.Context, session: Session, job_id: str, anywhere: bool = False) -> None:
    """Imports the object of a finished job where it was asked for, and shows the job among the finished ones.

    Args:
        anywhere: Also into another file than the one in which it was asked for.
    """
    if job_id in session.arriving:
        session.arriving.remove(job_id)
    job = session.find(job_id)
    if job is None:
        return
    refresh_jobs(context)
    placement = read_placement(job.folder)
    if placement is None or not placement.arrive:
        return
    if not (anywhere or placement.is_for(bpy.data.filepath, _document)):
        session.notes[job_id] = OTHER_FILE
        return
    try:
        _, notes = arrival.deliver(context, job.folder, placement, home_folder(context))
        session.notes[job_id] = " ".join(notes)
    except (finished_jobs.JobError, importing.ImportFailedError) as error:
        job.state = "failed"
        job.failure = Failure("import", str(error), "", str(job.folder / "log.txt"))


def redraw(context: bpy.types.Context) -> None:
    """Asks for the sidebars that show the tab to be drawn again."""
    for window in context.window_manager.windows:
        for area in window.screen.areas:
            if area.type == "VIEW_3D":
                for region in area.regions:
                    if region.type == "UI":
                        region.tag_redraw()


def _tick() -> float:
    """The timer. It must not raise: Blender would drop it without a word."""
    try:
        session = ensure(bpy.context)
        advance(bpy.context, session)
        before = backend_state.state.installed
        if backend_state.advance(bpy.context) | cutout.advance(bpy.context):
            redraw(bpy.context)
        if backend_state.state.installed != before:
            _backend_changed(bpy.context, session)
        _show_percent(bpy.context, session)
        _free_when_idle(bpy.context, session)
        return ACTIVE_S if session.is_active or backend_state.is_working() or cutout.is_working() else IDLE_S
    except Exception:
        traceback.print_exc()
        return IDLE_S


def _show_percent(context: bpy.types.Context, session: Session) -> None:
    """Also Blender's status bar shows the running job, and must be drawn anew when it comes further."""
    percent = int(100 * session.running.fraction) if session.running is not None else -1
    if context.window_manager.im3d.percent != percent:
        context.window_manager.im3d.percent = percent


def _free_when_idle(context: bpy.types.Context, session: Session) -> None:
    preferences = get_preferences(context)
    if session.is_active:
        session.idle_since = time.monotonic()
        return
    if session.idle_since is None or not preferences.free_when_idle:
        return
    if time.monotonic() - session.idle_since >= 60 * preferences.idle_minutes:
        session.idle_since = None
        session.queue.free_memory()


@bpy.app.handlers.persistent
def _render_starts(*_: Any) -> None:
    if _session is not None and not _session.is_active and get_preferences(bpy.context).free_before_render:
        _session.idle_since = None
        _session.queue.free_memory()


@bpy.app.handlers.persistent
def _file_loaded(*_: Any) -> None:
    """Another file is open: what was finished for it meanwhile may arrive now."""
    global _document, _path
    _document, _path = uuid.uuid4().hex, bpy.data.filepath
    if _session is not None:
        elsewhere = [job_id for job_id, note in _session.notes.items() if note == OTHER_FILE]
        _session.arriving += elsewhere
        for job_id in elsewhere:
            del _session.notes[job_id]


@bpy.app.handlers.persistent
def _file_saved(*_: Any) -> None:
    """The open file has a path of its own, or another one: its jobs find it there when it is opened again."""
    global _path
    before, _path = _path, bpy.data.filepath
    if _session is None or _path == before:
        return
    for job in _session.queue.jobs:
        placement = read_placement(job.folder)
        if placement is not None and placement.is_for(before, _document):
            with contextlib.suppress(OSError):
                dataclasses.replace(placement, blend=_path).write(job.folder)


def _preferences_changed(context: bpy.types.Context, change: events.Change) -> None:
    restart()


def attach() -> None:
    events.subscribe(_preferences_changed)
    bpy.app.handlers.render_init.append(_render_starts)
    bpy.app.handlers.load_post.append(_file_loaded)
    bpy.app.handlers.save_post.append(_file_saved)
    if not bpy.app.background:  # there the timers never run
        bpy.app.timers.register(_tick, first_interval=ACTIVE_S, persistent=True)


def detach() -> None:
    if bpy.app.timers.is_registered(_tick):
        bpy.app.timers.unregister(_tick)
    bpy.app.handlers.save_post.remove(_file_saved)
    bpy.app.handlers.load_post.remove(_file_loaded)
    bpy.app.handlers.render_init.remove(_render_starts)
    events.unsubscribe(_preferences_changed)
    restart()


def log_of(job: QueuedJob) -> Path:
    """The log that says most about a job."""
    return Path(job.failure.log) if job.failure is not None and job.failure.log else job.folder / "log.txt"
