"""Facts about the machine, and memory that is handed back to it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from im3d.machine import give_back_memory

# 128 MB in blocks that are too small to be handed back one by one, below one that lives on.
FRAGMENTED = """
import psutil
from im3d.machine import give_back_memory
resident = lambda: psutil.Process().memory_info().rss / 2**20
blocks = [bytearray(2**15) for _ in range(2**12)]
del blocks[:-1]
before = resident()
give_back_memory()
print(before - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Other C libraries hand memory back by themselves.")
def test_memory_that_the_c_library_keeps_is_handed_back() -> None:
    ran = subprocess.run([sys.executable, "-c", FRAGMENTED], capture_output=True, text=True, check=True)
    assert float(ran.stdout) > 100


def test_memory_is_handed_back_on_other_systems_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    give_back_memory()  # `ctypes.CDLL(None)` is an error there
