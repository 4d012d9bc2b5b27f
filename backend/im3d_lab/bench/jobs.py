"""Whole jobs, one after another in one process: seconds and peak memory of every stage, and whether memory grows."""

from __future__ import annotations

import gc
import statistics
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import psutil
import torch

from im3d.core.memory import give_back_memory
from im3d.jobs.job import Job, Request
from im3d.models.cache import MODELS
from im3d.pipeline import run_pipeline
from im3d.settings import preset_settings
from im3d_lab.bench.measure import MEGABYTE, machine

SAMPLE_SECONDS = 0.01


def bench_jobs(views: Path, count: int, device: torch.device, iterations: int = 0) -> dict[str, Any]:
    """Runs the same job again and again, preset draft on a CPU and standard on a GPU.

    Args:
        views: Folder of an orbit.
        count: Jobs, at least 3; the first is cold.
        device: Where they run.
        iterations: Of the fit; 0: the preset's.

    Returns:
        "stages": per stage the cold and the median warm seconds, the largest resident memory, and on a GPU what tensors
        took of its memory; "memory_mb" and "gpu_mb": what the process holds after each job, of the GPU with what torch
        keeps for later; "growth_mb" and "gpu_growth_mb": their slopes per job over the second half. Those of the GPU
        are None without one.
    """
    preset: Any = "standard" if device.type == "cuda" else "draft"
    request = bench_request(views, preset, iterations)
    seconds: dict[str, list[float]] = defaultdict(list)
    peaks: dict[str, float] = defaultdict(float)
    gpu_peaks: dict[str, float] = defaultdict(float)
    cuda = device.type == "cuda"
    held: list[float] = []
    held_on_gpu: list[float] = []
    for _ in range(count):
        with tempfile.TemporaryDirectory() as folder:
            job = Job.create(Path(folder) / "job", request)
            with _watched(job, peaks, gpu_peaks if cuda else None):
                timings = run_pipeline(job, lambda message: None, Event(), device.type)["timings_s"]
        for stage, took in timings.items():
            seconds[stage].append(took)
        gc.collect()
        MODELS.rest()
        give_back_memory()
        held.append(_resident())
        if cuda:
            held_on_gpu.append(torch.cuda.memory_reserved(device) / MEGABYTE)
    return {
        "machine": machine(device),
        "preset": preset,
        "stages": {
            stage: {
                "cold_s": took[0],
                "median_s": statistics.median(took[1:]),
                "peak_mb": peaks.get(stage),
                "gpu_peak_mb": gpu_peaks.get(stage),
            }
            for stage, took in seconds.items()
            if any(took)
        },
        "memory_mb": held,
        "growth_mb": growth(held),
        "gpu_mb": held_on_gpu if cuda else None,
        "gpu_growth_mb": growth(held_on_gpu) if cuda else None,
    }


def bench_request(views: Path, preset: Any, iterations: int) -> Request:
    """The job that is run again and again, from an orbit's folder; with the preset's iterations where 0 is given."""
    settings = preset_settings(preset, provided_views=True)
    if iterations:
        settings = replace(settings, fit=replace(settings.fit, iterations=iterations))
    return Request(name="bench", views=str(views.resolve()), preset=preset, settings=settings)


def growth(held: Sequence[float]) -> float:
    """Slope per job over the second half of three jobs or more."""
    late = held[len(held) // 2 :]
    return float(np.polyfit(np.arange(len(late)), late, 1)[0])


@contextmanager
def _watched(job: Job, peaks: dict[str, float], gpu_peaks: dict[str, float] | None) -> Iterator[None]:
    """Keeps the largest memory of each stage of a job that runs meanwhile: the process's, and torch's on a GPU."""
    ended = Event()
    samples: dict[int, float] = defaultdict(float)
    gpu_samples: dict[int, float] = defaultdict(float)

    def watch() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            step = len(job.state.finished)
            samples[step] = max(samples[step], _resident())
            if gpu_peaks is not None:
                gpu_samples[step] = max(gpu_samples[step], torch.cuda.max_memory_allocated() / MEGABYTE)
                torch.cuda.reset_peak_memory_stats()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    _keep(samples, job, peaks)
    if gpu_peaks is not None:
        _keep(gpu_samples, job, gpu_peaks)


def _keep(samples: dict[int, float], job: Job, peaks: dict[str, float]) -> None:
    """Raises the peaks of stages by the samples of the job's steps."""
    for step, peak in samples.items():
        if step < len(job.state.finished):
            stage = job.state.finished[step].split()[0]
            peaks[stage] = max(peaks[stage], peak)
    peaks["total"] = max(peaks["total"], *samples.values())


def _resident() -> float:
    return float(psutil.Process().memory_info().rss / MEGABYTE)
