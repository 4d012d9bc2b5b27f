"""One job from its request to its result, a line a stage.

    prompt ─ text to image ─▶ picture ─ isolate ─▶ subject ─ generator ─▶ views (K pictures, cameras, masks)
                                                      ▲                     │
                   renders noised and denoised ───────┘◀──── splats ◀── fit ┘
    splats ─▶ depth maps ─▶ distance field ─▶ marching cubes ─▶ clean ─▶ UV ─▶ texture ─▶ GLB ─▶ Blender

Each step leaves its result in the job folder and reads what it needs from there (`im3d.jobs.stages`), so that a resumed
job computes exactly what an uninterrupted one does.
"""

from __future__ import annotations

import functools
import time
from threading import Event
from typing import Any

from im3d.jobs.job import Job, finished_result
from im3d.jobs.job_progress import JobProgress, StageTimes, blend_step, fit_pauses, kind, planned_steps
from im3d.jobs.runner import Listener, StepRunner, failures_recorded
from im3d.shared.paths import home_folder
from im3d.shared.protocol import message


def run_pipeline(
    job: Job, listener: Listener, cancel: Event, device: str = "auto", blender: str | None = None
) -> dict[str, Any]:
    """Runs or continues a job.

    Args:
        job: The job; finished steps are skipped.
        listener: Receives progress, warning and preview messages, not always on this thread.
        cancel: Set from outside to stop the job; it stays resumable.
        device: "auto", "cuda" or "cpu".
        blender: Blender executable for the .blend and the preview, where bpy is not installed.

    Returns:
        The object that `--json` prints: result.json with absolute paths.

    Raises:
        Im3dError: The job failed or was cancelled; state.json and log.txt say the same.
    """
    start = time.monotonic()
    with job.locked():
        job.read_state()  # whoever held the lock until now may have finished it
        nothing_new = blend_step(job.request) in (None, *job.state.finished) and (job.folder / "result.json").exists()
        if job.state.status != "done" or not nothing_new:
            with failures_recorded(job):
                _run_steps(job, listener, cancel, device, blender, start)
    return finished_result(job)


def _run_steps(job: Job, listener: Listener, cancel: Event, device: str, blender: str | None, start: float) -> None:
    """The steps that are not finished, under the job's lock; they started at `start` of the monotonic clock."""
    job.state.status, job.state.error = "running", None
    job.save()
    request, notes = job.request, job.state.notes
    times = StageTimes(home_folder() / "stage_times.json")
    progress = JobProgress(planned_steps(request, notes), job.state.finished, times.of(kind(device, request, notes)))
    step = StepRunner(job, listener, cancel, progress)
    step.report("load", 0, 1)  # before torch is imported, which takes seconds
    from im3d.jobs.stages import Stages

    stages = Stages(job, device, blender, lambda text: listener(message("warning", job.folder.name, message=text)))
    step.machine = stages.machine
    job.state.timings_s["load"] = job.state.timings_s.get("load", 0.0) + time.monotonic() - start
    step("load", stages.load)
    # Only now is the generator known, and with it the refinement rounds.
    this_kind = kind(device, request, notes)
    progress.plan(planned_steps(request, notes), job.state.finished, times.of(this_kind))
    if request.only_prompt:
        step("picture", stages.make_picture, stage="image")
    step("image", stages.make_subject)
    step("orbit", stages.make_views)
    for number, until in enumerate(fit_pauses(request, notes), start=1):
        step(f"fit to {until}", functools.partial(stages.fit, until), stage="fit")
        if until < request.settings.fit.iterations:
            step(f"refine {number}", functools.partial(stages.refine, number), stage="refine")
    step("splats", stages.finish_splats, stage="fit")
    step("mesh", stages.make_mesh)
    step("texture", stages.make_texture)
    step("export", stages.export)
    blend = blend_step(request)
    if blend is not None:
        step(blend, stages.save_blend, stage="export")
    stages.finish()
    times.learn(this_kind, job.state.timings_s)
