"""What grows when job after job runs in one process: which kind of memory, and after how long a fit.

    python tools/gpu/memory_growth.py examples/playhouse --jobs 15 --iterations 20 120

`im3d bench jobs` says whether the process grows; this says where. After every job, when everything unused was handed
back: resident memory that belongs to nobody else ("anonymous"), of files (libraries) and shared (drivers' and pinned
memory), what malloc has handed out in all arenas, threads, mappings, and the objects that Python knows. Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import tempfile
import threading
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import torch

from im3d.jobs import Job, Request
from im3d.machine import give_back_memory, keep_one_heap
from im3d.pipeline import run_pipeline
from im3d.settings import preset_settings

COLUMNS = ("anonymous", "files", "shared", "malloc", "threads", "mappings", "objects")


def malloc_in_use() -> float:
    """MB that glibc has handed out, in all of its arenas and mappings."""
    libc = ctypes.CDLL(None)
    libc.fopen.restype = ctypes.c_void_p
    with tempfile.NamedTemporaryFile() as file:
        stream = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
        libc.malloc_info(0, stream)
        libc.fclose(stream)
        root = ElementTree.parse(file.name).getroot()
    size = {child.get("type"): int(child.get("size", 0)) for child in root if child.tag in ("total", "system")}
    current = next(int(c.get("size", 0)) for c in root if c.tag == "system" and c.get("type") == "current")
    return (current - size.get("fast", 0) - size.get("rest", 0) + size.get("mmap", 0)) / 2**20


def held() -> list[float]:
    """In the order of `COLUMNS`; memory in MB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    resident = [int(status[name].split()[0]) / 2**10 for name in ("RssAnon", "RssFile", "RssShmem")]
    mappings = len(Path("/proc/self/maps").read_text(encoding="utf-8").splitlines())
    return [*resident, malloc_in_use(), threading.active_count(), mappings, len(gc.get_objects())]


def run_job(views: Path, iterations: int, device: str) -> None:
    """One job, of which nothing is left."""
    settings = preset_settings("standard", given_views=True)
    settings = replace(settings, fit=replace(settings.fit, iterations=iterations))
    request = Request(name="growth", views=str(views.resolve()), preset="standard", settings=settings)
    with tempfile.TemporaryDirectory() as folder:
        job = Job.create(Path(folder) / "job", request)
        run_pipeline(job, lambda message: None, Event(), device)


def main() -> int:
    parser = argparse.ArgumentParser(description="What grows when job after job runs in one process.")
    parser.add_argument("views", type=Path, help="folder of an orbit")
    parser.add_argument("--jobs", type=int, default=15, help="of each kind")
    parser.add_argument("--heaps", action="store_true", help="leave every thread a heap of its own")
    parser.add_argument("--iterations", type=int, nargs="+", default=[20, 120], help="of the fits, kind by kind")
    args = parser.parse_args()
    if not args.heaps:
        keep_one_heap()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for iterations in args.iterations:
        print(f"\n{iterations} iterations\n" + " ".join(f"{name:>10}" for name in COLUMNS), flush=True)
        rows = []
        for _ in range(args.jobs):
            run_job(args.views, iterations, device)
            gc.collect()
            give_back_memory()
            rows.append(held())
            print(" ".join(f"{value:10.1f}" for value in rows[-1]), flush=True)
        late = np.array(rows[len(rows) // 2 :])
        slopes = np.polyfit(np.arange(len(late)), late, 1)[0] if len(late) > 1 else np.zeros(len(COLUMNS))
        print(" ".join(f"{slope:+10.2f}" for slope in slopes), "a job, over the second half", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
