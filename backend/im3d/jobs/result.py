"""result.json: what a finished job says of itself."""

from __future__ import annotations

from typing import Any

from im3d.jobs.job import Job
from im3d.jobs.job_progress import STAGES


def result_of(job: Job, elevation_deg: float | None, machine: dict[str, str]) -> dict[str, Any]:
    """The content of result.json; paths are relative to the job folder.

    Args:
        job: A job whose steps are finished.
        elevation_deg: Of the views that the splats were fitted to.
        machine: Device and versions of this process, for jobs of versions that did not note them with each step.

    Returns:
        mesh, splats, preview, turntable: Files. orbit_from_glb: 4×4 matrix from GLB coordinates to the orbit's world.
        generator, image_model, perceptual, rasterizer, device, versions, ran_with: What the job was done with.
        network_calls: Evaluations of the generator's network. timings_s: Seconds of each stage. peak_memory_mb: Of the
        process. unseen: Share of the texture, in [0, 1], that no view shows. mask, crop: How the subject was cut out.
        elevation_*, direction_*: See `im3d.jobs.cameras.LocatedViews`. settings: All of them.
    """
    request, notes = job.request, job.state.notes
    timings = {stage: job.state.timings_s.get(stage, 0.0) for stage in STAGES}
    machines = list(notes.get("ran_with", {}).values()) or [machine]
    used = {name: _distinct([m[name] for m in machines]) for name in machines[0]}
    cameras = ("elevation_method", "elevation_confidence", "direction", "direction_confidence")
    return {
        "status": "done",
        "name": request.name,
        "prompt": request.prompt,
        "mesh": "mesh.glb",
        "splats": "splats.ply",
        "preview": "preview.png" if (job.folder / "preview.png").exists() else None,
        "turntable": "turntable.webp",
        "generator": notes["generator"],
        "generator_reason": notes.get("generator_reason", ""),
        "image_model": notes.get("image_model"),
        "preset": request.preset,
        "seed": request.seed,
        "height_m": request.height_m,
        "device": used.pop("device"),
        "rasterizer": _distinct(notes.get("rasterizer", "unknown")),
        "perceptual": _distinct(notes["perceptual"]),
        "versions": used,
        "ran_with": notes.get("ran_with", {}),
        "network_calls": notes["network_calls"],
        "iterations": request.settings.fit.iterations,
        "elevation_deg": elevation_deg,
        **{name: notes[name] for name in cameras},
        "mask": notes.get("mask"),
        "crop": notes.get("crop"),
        "orbit_from_glb": notes["orbit_from_glb"],
        "timings_s": {**timings, "total": round(sum(timings.values()), 3)},
        "mesh_stats": notes["mesh_stats"],
        "unseen": notes["unseen"],
        "peak_memory_mb": notes["peak_memory_mb"],
        "warnings": notes.get("warnings", []),
        "settings": request.settings.to_json(),
    }


def _distinct(used: list[str] | str) -> str:
    """One name, or several with "and" where a job was resumed elsewhere."""
    return used if isinstance(used, str) else " and ".join(dict.fromkeys(used))
