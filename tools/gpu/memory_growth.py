"""What grows when job after job runs in one process: which kind of memory, and after how long a fit.

    python tools/gpu/memory_growth.py examples/playhouse --jobs 15 --iterations 20 120

`im3d bench jobs` says whether the process grows; this says where. After every job, when everything unused was handed
back: resident memory that belongs to nobody else ("anonymous"), of files (libraries) and shared (drivers' and pinned
memory), what malloc has handed out in all arenas, threads, mappings, and the objects that Python knows; beside them
the seconds of the two stages whose threads take most from malloc. Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import tempfile
import threading
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from threading import Event

import torch

from im3d.core.memory import give_back_memory, limit_malloc_arenas
from im3d.jobs.job import Job
from im3d.pipeline import run_pipeline
from im3d_lab.bench.jobs import bench_request, growth

COLUMNS = ("anonymous", "files", "shared", "malloc", "threads", "mappings", "objects", "mesh (s)", "texture (s)")


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
    """In the order of `COLUMNS`, but for the seconds; memory in MB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    resident = [int(status[name].split()[0]) / 2**10 for name in ("RssAnon", "RssFile", "RssShmem")]
    mappings = len(Path("/proc/self/maps").read_text(encoding="utf-8").splitlines())
    return [*resident, malloc_in_use(), threading.active_count(), mappings, len(gc.get_objects())]


def main() -> int:
    parser = argparse.ArgumentParser(description="What grows when job after job runs in one process.")
    parser.add_argument("views", type=Path, help="folder of an orbit")
    parser.add_argument("--jobs", type=int, default=15, help="of each kind, at least 3")
    parser.add_argument("--cores", type=int, default=0, help="threads as of so many cores; 0: as there are")
    parser.add_argument("--heaps", action="store_true", help="leave every thread a heap of its own")
    parser.add_argument("--iterations", type=int, nargs="+", default=[20, 120], help="of the fits, kind by kind")
    args = parser.parse_args()
    if args.cores:
        os.cpu_count = lambda: args.cores
    if not args.heaps:
        limit_malloc_arenas()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for iterations in args.iterations:
        print(f"\n{iterations} iterations\n" + " ".join(f"{name:>11}" for name in COLUMNS), flush=True)
        request = bench_request(args.views, "standard", iterations)
        rows = []
        for _ in range(args.jobs):
            with tempfile.TemporaryDirectory() as folder:
                job = Job.create(Path(folder) / "job", request)
                seconds = run_pipeline(job, lambda message: None, Event(), device)["timings_s"]
            del job
            gc.collect()
            give_back_memory()
            rows.append([*held(), seconds["mesh"], seconds["texture"]])
            print(" ".join(f"{value:11.1f}" for value in rows[-1]), flush=True)
        print(
            " ".join(f"{growth(column):+11.2f}" for column in zip(*rows, strict=True)),
            "a job, over the second half",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
