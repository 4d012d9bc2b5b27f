"""Measuring: cold and warm runs apart, medians, the machine's own rate, peak memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from im3d.core.devices import processor_name
from im3d.core.memory import peak_memory_mb
from im3d.core.progress import Progress, silent

MEGABYTE = 2**20


@dataclass(frozen=True)
class Measurement:
    """What one part costs.

    Attributes:
        part: Its name.
        cold_s: Seconds of the first call, which compiles, allocates and reads.
        median_s: Median seconds of the calls after it.
        low_s, high_s: The fastest and the slowest of them.
        repeats: How many they were.
        operations: Floating point operations of one call, where they can be counted.
        floor_s: Their seconds at the rate of a matrix product, measured in the same run.
        device_mb: Peak of the GPU's memory, in MB.
    """

    part: str
    cold_s: float
    median_s: float
    low_s: float
    high_s: float
    repeats: int
    operations: float | None = None
    floor_s: float | None = None
    device_mb: float | None = None

    @property
    def ratio(self) -> float | None:
        """How many times slower than the floor."""
        return self.median_s / self.floor_s if self.floor_s else None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio}


class Bench:
    """Collects the measurements of one run.

    Args:
        device: Where the work happens.
        repeats: Warm calls of each part.
        progress: Told of each part.
    """

    def __init__(self, device: torch.device, repeats: int, progress: Progress = silent) -> None:
        self.device, self.repeats, self.progress = device, repeats, progress
        self.rows: list[Measurement] = []
        # Networks compute in half precision on a GPU.
        self.rate = matrix_rate(device, torch.float16 if device.type == "cuda" else torch.float32)

    def measure(self, part: str, work: Callable[[], object], repeats: int = 0, operations: float = 0) -> Measurement:
        """Runs `work` once cold and some times warm.

        Args:
            part: Its name in the table.
            work: What is measured; what it returns is thrown away.
            repeats: Warm calls; 0: those of the run.
            operations: Floating point operations of one call; 0: not counted.
        """
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        count = repeats or self.repeats
        cold = self._seconds(work)
        warm = [self._seconds(work) for _ in range(count)]
        peak = torch.cuda.max_memory_allocated(self.device) / MEGABYTE if self.device.type == "cuda" else None
        row = Measurement(
            part=part,
            cold_s=cold,
            median_s=statistics.median(warm),
            low_s=min(warm),
            high_s=max(warm),
            repeats=count,
            operations=operations or None,
            floor_s=operations / self.rate if operations else None,
            device_mb=peak,
        )
        self.rows.append(row)
        self.progress(len(self.rows), 0)
        return row

    def report(self) -> dict[str, Any]:
        """The machine, its rate, the rows, and this process's peak memory."""
        return {
            "machine": machine(self.device),
            "gflops": self.rate / 1e9,
            "peak_memory_mb": peak_memory_mb(),
            "rows": [row.to_json() for row in self.rows],
        }

    def _seconds(self, work: Callable[[], object]) -> float:
        _wait(self.device)
        start = time.perf_counter()
        work()
        _wait(self.device)
        return time.perf_counter() - start


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int = 0) -> float:
    """FLOP/s of a matrix product of `size`² by `size`²: the most that dense arithmetic reaches here."""
    n = size or (8192 if device.type == "cuda" else 1536)
    a = torch.ones(n, n, device=device, dtype=dtype)
    seconds = []
    for _ in range(6):
        _wait(device)
        start = time.perf_counter()
        a @ a
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / statistics.median(seconds[1:])


def machine(device: torch.device) -> str:
    """The processor that works, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor_name()}, {torch.get_num_threads()} threads"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
