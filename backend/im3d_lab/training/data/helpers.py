"""Processes that help training, and end with it, however it ends."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any


class Stop:
    """Ends helping processes at once when it is called, from any thread, and when this process dies.

    As the innermost of a `with` block it is called at the end, so that no thread outside waits for helpers.
    """

    def __init__(self) -> None:
        # The helpers wait for the end of a pipe whose other end is here alone.
        self.watched, self._held = multiprocessing.get_context("spawn").Pipe(duplex=False)

    def __call__(self) -> None:
        self._held.close()

    def __enter__(self) -> Stop:
        return self

    def __exit__(self, *_: object) -> None:
        self()


@contextmanager
def helpers(
    workers: int, start: Callable[..., None] | None = None, arguments: tuple[Any, ...] = (), stop: Stop | None = None
) -> Iterator[ProcessPoolExecutor]:
    """Processes for the block, which ends them: after their work, or at once if it raises.

    Args:
        workers: How many.
        start: Called in each of them first.
        arguments: Of `start`.
        stop: Ends them from another thread; what waits for them there raises `BrokenProcessPool`.
    """
    stop = stop or Stop()
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _begin, (stop.watched, start, arguments))
    try:
        yield pool
    except BaseException:
        stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(watched: Connection, start: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    # Ctrl-C reaches the helpers too; what becomes of them is for the process that they help.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(watched,), daemon=True).start()
    if start is not None:
        start(*arguments)


def _end_with(watched: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        watched.recv()
    os._exit(1)
