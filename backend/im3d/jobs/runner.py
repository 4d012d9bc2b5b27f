"""Running the steps of a job: skipping finished ones, timing, events, cancelling, and failures turned into errors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Lock, Thread

import numpy as np
from numpy.typing import NDArray

from im3d.core.memory import peak_memory_mb
from im3d.core.progress import Progress
from im3d.core.storage import DISK_ERRORS
from im3d.errors import CancelledError, DiskError, Im3dError, OutOfMemoryError
from im3d.jobs.job import Job
from im3d.jobs.job_progress import JobProgress
from im3d.shared.protocol import Message, message

Listener = Callable[[Message], None]
# A preview a second is all that a panel can show; encoding more would slow the stage down.
PREVIEW_SECONDS = 1.0
# Where a stage reports nothing for so long, as while a model is loaded, the fraction advances by itself,
CREEP_S = 3.0
# half of the way to the next report in the first so many seconds,
HALF_WAY_S = 30.0
# but not for ever: a client that receives nothing takes the job for hung.
MOST_S = 600.0
# Share of its step that loading a model counts for.
LOADING = 0.3


class StepRunner:
    """Runs named steps of a job once each, in order.

    Args:
        job: The job; its state tells which steps are finished.
        listener: Receives progress and preview messages, one at a time, not always on the thread of the work.
        cancel: Set from outside to stop at the next step of progress.
        progress: Of the whole job.

    Attributes:
        machine: What steps are done with here, for instance the device; noted for each step, since a job may be resumed
            elsewhere.
    """

    def __init__(self, job: Job, listener: Listener, cancel: Event, progress: JobProgress) -> None:
        self.job = job
        self.machine: dict[str, str] = {}
        self.listener = listener
        self.cancel = cancel
        self.progress = progress
        self._sending = Lock()

    def report(self, stage: str, step: int, steps: int) -> None:
        """Sends the job's progress to the listener.

        Raises:
            CancelledError: It was cancelled.
        """
        if self.cancel.is_set():
            raise CancelledError("Cancelled.")
        with self._sending:
            whole = {"fraction": round(self.progress.fraction, 4), "eta_s": self.progress.eta_s}
            self.listener(message("progress", self.job.folder.name, stage=stage, step=step, steps=steps, **whole))

    def show(self, stage: str, preview: Path) -> None:
        """Sends the path of a new preview to the listener."""
        with self._sending:
            self.listener(message("preview", self.job.folder.name, stage=stage, path=str(preview)))

    def __call__(self, step: str, work: Callable[[Progress], None], stage: str = "") -> None:
        """Runs `work` unless the step is finished already; its files must be complete when it returns.

        Args:
            step: Unique name, e.g. "refine 1".
            work: Does the step and reports to the `Progress` it is given.
            stage: Stage the time counts for; the step's own name by default.
        """
        if step in self.job.state.finished:
            return
        stage = stage or step
        self.report(stage, 0, 1)
        self.job.log(f"{step}: start")
        start = time.monotonic()
        progress = _StepProgress(self, step, stage)
        with progress.creeping():
            work(progress)
        seconds = time.monotonic() - start
        notes = self.job.state.notes
        notes.setdefault("ran_with", {})[step] = self.machine
        notes["peak_memory_mb"] = max(notes.get("peak_memory_mb", 0), int(peak_memory_mb()))
        self.job.finish(step, stage, seconds)
        self.progress.finish(step)
        self.job.log(f"{step}: done in {seconds:.1f} s")


class _StepProgress:
    """The `Progress` of one step: cancels, and passes events on."""

    def __init__(self, runner: StepRunner, step: str, stage: str) -> None:
        self.runner = runner
        self.step = step
        self.stage = stage
        self.last_preview = -PREVIEW_SECONDS
        self.last_report = (time.monotonic(), 0, 1)

    def __call__(self, step: int, steps: int, preview: NDArray[np.float32] | None = None) -> None:
        runner = self.runner
        if steps:
            runner.progress.within(self.step, step / steps)
        self.last_report = (time.monotonic(), step, steps)
        runner.report(self.stage, step, steps)
        now = time.monotonic()
        if preview is not None and now - self.last_preview >= PREVIEW_SECONDS:
            self.last_preview = now
            path = runner.job.folder / "preview.png"
            if write_preview(path, preview):
                runner.show(self.stage, path)

    @contextmanager
    def creeping(self) -> Iterator[None]:
        """While the block runs, the share that is done goes on also where the stage is silent."""
        ended = Event()

        def creep() -> None:
            while not ended.wait(CREEP_S):
                at, step, steps = self.last_report
                silence = time.monotonic() - at
                if CREEP_S <= silence <= MOST_S and steps and not self.runner.cancel.is_set():
                    self.runner.progress.within(self.step, crept(step, steps, silence))
                    with suppress(CancelledError):
                        self.runner.report(self.stage, step, steps)

        thread = Thread(target=creep, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def crept(step: int, steps: int, silence_s: float) -> float:
    """The share of a step that is likely done so many seconds after its last report."""
    last = step / steps
    following = max(LOADING, 1 / steps) if step == 0 else min((step + 1) / steps, 1.0)
    return last + (following - last) * silence_s / (silence_s + HALF_WAY_S)


def write_preview(path: Path, picture: NDArray[np.float32]) -> bool:
    """Writes a picture to look at, (H, W, 3 or 4) in [0, 1]; False where it could not be replaced.

    On Windows nobody can while Blender reads the one before. A picture to look at is no reason to fail a job.
    """
    from im3d.core.images import write_png

    try:
        write_png(path, picture)
    except (OSError, Im3dError):
        return False
    return True


@contextmanager
def failures_recorded(job: Job) -> Iterator[None]:
    """Records how a job ended in its state and log, and lets only `Im3dError`s out.

    Raises:
        Im3dError: Whatever went wrong; anything unexpected becomes a plain `Im3dError` that names the log.
    """
    try:
        yield
    except BaseException as error:
        failure = explain(error, str(job.folder / "log.txt"))
        job.log_exception(error)
        job.state.status = "cancelled" if isinstance(failure, CancelledError) else "failed"
        job.state.error = failure.to_json()
        if not isinstance(failure, DiskError):
            job.save()
        if failure is error:
            raise
        raise failure from error


def explain(error: BaseException, log: str | None) -> Im3dError:
    """The error to report to the user for an exception of a stage; `log` is the file with its traceback, if any."""
    if isinstance(error, Im3dError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return CancelledError("Cancelled.")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate" in str(error):
        return OutOfMemoryError("The memory does not hold this job.", "Close other programs.", "draft")
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return DiskError("The disk is full.", "Free some space, then continue the job.", "resume")
    details = "Please report it." if log is None else f"The log {log} has the details; please report it."
    return Im3dError(f"im3d failed: {type(error).__name__}: {error}.", details)
