"""Work for all of the processor's cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def on_all_cores(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Maps `work` over the items in as many threads as there are cores; each item starts as soon as it is available.

    Only for work that releases Python's lock: numpy's long loops, Pillow's file reading, numba functions with `nogil`.
    Never for numba functions with `parallel=True`, because not every threading layer may be entered from two threads.

    Returns:
        The results in the items' order.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(work, items))
