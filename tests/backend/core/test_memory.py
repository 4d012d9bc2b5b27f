"""Memory that is returned to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

from im3d.core.memory import give_back_memory, limit_malloc_arenas

# 128 MB in blocks that are too small to be handed back one by one, below one that lives on.
FRAGMENTED = """
import psutil
from im3d.core.memory import give_back_memory
resident = lambda: psutil.Process().memory_info().rss / 2**20
blocks = [bytearray(2**15) for _ in range(2**12)]
del blocks[:-1]
before = resident()
give_back_memory()
print(before - resident())
"""

# 256 MB in eight threads, after a large block that teaches glibc to keep more than it would at first.
THREADS = """
import threading
import psutil
from im3d.core.memory import give_back_memory, limit_malloc_arenas
resident = lambda: psutil.Process().memory_info().rss / 2**20
limit_malloc_arenas()
before = resident()
large = bytearray(30 * 2**20)
del large
barrier = threading.Barrier(8)
def work():
    blocks = [bytearray(2**15) for _ in range(2**10)]
    barrier.wait()
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
give_back_memory()
print(resident() - before)
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="Other C libraries hand memory back by themselves.")


@linux
def test_memory_of_threads_that_have_ended_is_handed_back() -> None:
    ran = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, check=True)
    assert float(ran.stdout) < 50


@linux
def test_memory_that_the_c_library_keeps_is_handed_back() -> None:
    ran = subprocess.run([sys.executable, "-c", FRAGMENTED], capture_output=True, text=True, check=True)
    assert float(ran.stdout) > 100


def test_memory_is_handed_back_on_other_systems_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    limit_malloc_arenas()
    give_back_memory()  # `ctypes.CDLL(None)` is an error there
