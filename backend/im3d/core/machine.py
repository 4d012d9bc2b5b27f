"""Facts about the machine and this process, and work for all of its cores."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from im3d.errors import InputError

if TYPE_CHECKING:
    import torch

_M_ARENA_MAX = -8  # of glibc's malloc.h

Item = TypeVar("Item")
Result = TypeVar("Result")


def processor_name() -> str:
    """The processor's model, as the system calls it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def peak_memory_mb() -> float:
    """The largest resident size that this process has had, in MB."""
    import psutil

    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset / 2**20)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak / 2**20 if sys.platform == "darwin" else peak / 2**10)


def choose_device(wanted: str) -> torch.device:
    """The device of that name; "auto" takes the GPU where there is one.

    Args:
        wanted: "auto", "cuda" or "cpu".

    Raises:
        InputError: There is no such device.
    """
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("There is no CUDA device.", "Use the device cpu.")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def fast_in_half(device: torch.device) -> bool:
    """Whether bfloat16 saves time on a device: on GPUs, and on processors with matrix units for it (Intel's AMX)."""
    import torch

    return device.type == "cuda" or torch.cpu._is_amx_tile_supported()


def give_back_gpu_memory() -> None:
    """Hands back to the driver what torch keeps of the GPU for later: Blender, and what comes next, may need it.

    A recorded graph's memory is not used again even by torch when the graph is gone. It takes tens of milliseconds, so
    it is for the ends of stages and jobs, not for loops.
    """
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.cuda.empty_cache()  # does nothing where the GPU was not used


def keep_one_heap() -> None:
    """From now on all threads take their memory from one heap, where the C library is glibc (Linux).

    It gives threads heaps of their own, and cannot hand back what is free at their ends: with sixteen threads a process
    kept 0.6 GB, and more with every job. To be called before there are threads.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


def give_back_memory() -> None:
    """Hands back to the system what is kept for later, of the GPU and of the processor's memory, after a job.

    The C library keeps what a job leaves free between blocks that live on, 0.2 GB of it. Only glibc has to be asked; it
    takes some hundredths of a second.
    """
    give_back_gpu_memory()
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def on_all_cores(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """`work` of every item, in as many threads as there are cores. It begins with each as soon as it has come.

    For work that lets go of Python's lock, as numpy's long loops, Pillow's files and numba's loops with `nogil` do.
    Loops of numba that are parallel themselves must not be in it: not every threading layer may be entered from two
    threads.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(work, items))
