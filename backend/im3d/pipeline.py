"""One job from its request to its result, a line a stage.

    prompt ─ text to image ─▶ picture ─ isolate ─▶ subject ─ generator ─▶ views (K pictures, cameras, masks)
                                                      ▲                     │
                   renders noised and denoised ───────┘◀──── splats ◀── fit ┘
    splats ─▶ depth maps ─▶ distance field ─▶ marching cubes ─▶ clean ─▶ UV ─▶ texture ─▶ GLB ─▶ Blender

Each step leaves its result in the job folder and reads what it needs from there (`im3d.stages`), so that a resumed
job computes exactly what an uninterrupted one does.
"""

from __future__ import annotations

import functools
import time
from threading import Event
from typing import Any

from im3d.jobs import Job, finished_result
from im3d.runner import Listener, StepRunner, failures_recorded
from im3d.settings import FitSettings, RefineSettings


def run_pipeline(
    job: Job, listener: Listener, cancel: Event, device: str = "auto", blender: str | None = None
) -> dict[str, Any]:
    """Runs or continues a job.

    Args:
        job: The job; finished steps are skipped.
        listener: Receives progress and preview messages, on this thread.
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
        nothing_new = _blend_step(job) in (None, *job.state.finished) and (job.folder / "result.json").exists()
        if job.state.status != "done" or not nothing_new:
            with failures_recorded(job):
                _run_steps(job, listener, cancel, device, blender, start)
    return finished_result(job)


def _run_steps(job: Job, listener: Listener, cancel: Event, device: str, blender: str | None, start: float) -> None:
    """The steps that are not finished, under the job's lock; they started at `start` of the monotonic clock."""
    from im3d.stages import Stages

    job.state.status, job.state.error = "running", None
    job.save()
    step = StepRunner(job, listener, cancel)
    stages = Stages(job, device, blender)

    job.state.timings_s["load"] = job.state.timings_s.get("load", 0.0) + time.monotonic() - start
    step("load", stages.load)
    if job.request.only_prompt:
        step("picture", stages.make_picture, stage="image")
    step("image", stages.make_subject)
    step("orbit", stages.make_views)
    for number, until in enumerate(fit_legs(job.request.settings.fit, stages.refine_settings), start=1):
        step(f"fit to {until}", functools.partial(stages.fit, until), stage="fit")
        if until < job.request.settings.fit.iterations:
            step(f"refine {number}", functools.partial(stages.refine, number), stage="refine")
    step("splats", stages.finish_splats, stage="fit")
    step("mesh", stages.make_mesh)
    step("texture", stages.make_texture)
    step("export", stages.export)
    blend = _blend_step(job)
    if blend is not None:
        step(blend, stages.save_blend, stage="export")
    stages.finish()


def _blend_step(job: Job) -> str | None:
    """A step of its own for each .blend, since a job that is finished may be asked for another one."""
    return None if job.request.blend is None else f"blend {job.request.blend}"


def fit_legs(fit: FitSettings, refine: RefineSettings) -> list[int]:
    """The iterations at which the fit pauses for a refinement round, and its end (paper 3.4: 500, 1000, 1200)."""
    pauses = [refine.every * n for n in range(1, refine.rounds + 1)]
    return [p for p in pauses if p < fit.iterations] + [fit.iterations]
