"""Whole jobs, one after another in one process: seconds and peak memory of every stage, and whether memory grows."""

from __future__ import annotations

import gc
import statistics
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import psutil
import torch

from im3d.bench.measure import MEGABYTE, machine
from im3d.jobs import Job, Request
from im3d.pipeline import run_pipeline
from im3d.settings import preset_settings

SAMPLE_SECONDS = 0.01


def bench_jobs(views: Path, count: int, device: torch.device, iterations: int = 0) -> dict[str, Any]:
    """Runs the same job again and again, preset draft on a CPU and standard on a GPU.

    Args:
        views: Folder of an orbit.
        count: Jobs, at least 3; the first is cold.
        device: Where they run.
        iterations: Of the fit; 0: the preset's.

    Returns:
        "stages": per stage the cold and the median warm seconds and the largest resident memory, on a GPU its memory
        too; "memory_mb": what the process holds after each job; "growth_mb": its slope per job over the second half.
    """
    preset: Any = "standard" if device.type == "cuda" else "draft"
    settings = preset_settings(preset, given_views=True)
    if iterations:
        settings = replace(settings, fit=replace(settings.fit, iterations=iterations))
    request = Request(name="bench", views=str(views.resolve()), preset=preset, settings=settings)
    seconds: dict[str, list[float]] = defaultdict(list)
    peaks: dict[str, float] = defaultdict(float)
    held: list[float] = []
    for _ in range(count):
        with tempfile.TemporaryDirectory() as folder:
            job = Job.create(Path(folder) / "job", request)
            with _watched(job, peaks):
                timings = run_pipeline(job, lambda message: None, Event(), device.type)["timings_s"]
        for stage, took in timings.items():
            seconds[stage].append(took)
        gc.collect()
        held.append(_resident())
    late = held[len(held) // 2 :]
    return {
        "machine": machine(device),
        "preset": preset,
        "stages": {
            stage: {"cold_s": took[0], "median_s": statistics.median(took[1:]), "peak_mb": peaks.get(stage)}
            for stage, took in seconds.items()
            if any(took)
        },
        "memory_mb": held,
        "growth_mb": float(np.polyfit(np.arange(len(late)), late, 1)[0]),
        "gpu_mb": torch.cuda.max_memory_allocated(device) / MEGABYTE if device.type == "cuda" else None,
    }


@contextmanager
def _watched(job: Job, peaks: dict[str, float]) -> Iterator[None]:
    """Keeps the largest resident memory of each stage of a job that runs meanwhile."""
    ended = Event()
    samples: dict[int, float] = defaultdict(float)

    def watch() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            step = len(job.state.finished)
            samples[step] = max(samples[step], _resident())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    for step, peak in samples.items():
        if step < len(job.state.finished):
            stage = job.state.finished[step].split()[0]
            peaks[stage] = max(peaks[stage], peak)
    peaks["total"] = max(peaks["total"], *samples.values())


def _resident() -> float:
    return float(psutil.Process().memory_info().rss / MEGABYTE)
