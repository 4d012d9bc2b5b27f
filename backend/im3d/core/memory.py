"""The memory of this process: its peak, and returning what is free to the system."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

_M_ARENA_MAX = -8  # of glibc's malloc.h


def peak_memory_mb() -> float:
    """The largest resident size that this process has had, in MB."""
    import psutil

    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset / 2**20)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak / 2**20 if sys.platform == "darwin" else peak / 2**10)


def give_back_gpu_memory() -> None:
    """Returns the GPU memory that torch caches to the driver, for Blender and whatever runs next.

    The memory of a CUDA graph that is gone is not reused even by torch. The call takes tens of milliseconds, so it
    belongs at the ends of stages and jobs, not into loops.
    """
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.cuda.empty_cache()  # does nothing where the GPU was not used


def limit_malloc_arenas() -> None:
    """Makes all threads allocate from one arena of malloc, where the C library is glibc (Linux).

    glibc gives every thread an arena of its own and cannot return free memory in the middle of one: with sixteen
    threads a process kept 0.6 GB, and more with every job. Call it before threads are started.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


def give_back_memory() -> None:
    """Returns free memory, of the GPU and of the process, to the system; for the end of a job.

    glibc keeps blocks that a job freed between blocks that live on (0.2 GB), and returns them on request only, within
    some hundredths of a second.
    """
    give_back_gpu_memory()
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
