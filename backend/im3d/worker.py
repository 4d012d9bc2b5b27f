"""The process that does the work: one job after the other, asked for by the server over its stdin.

    python -m im3d.worker [--blender FILE]

It understands `resume` (run or continue the job in a folder) and `cancel`. What it loads stays in memory for the next
job; the server ends it to free that memory. When its stdin ends, the server is gone, and so is it.
"""

from __future__ import annotations

import argparse
import os
import queue
import sys
import threading
from pathlib import Path

from im3d.errors import Im3dError
from im3d.machine import give_back_memory, keep_one_heap
from im3d.model_cache import MODELS
from im3d.pipes import Outgoing, incoming, read_messages
from im3d.protocol import Message, message

# A job stops at its next step of progress; nobody waits for it longer than this.
LAST_SECONDS = 10.0


class Worker:
    """Takes messages on one thread and runs jobs on another."""

    def __init__(self, send: Outgoing, blender: str | None) -> None:
        self._send = send
        self._blender = blender
        self._jobs: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._cancel = threading.Event()
        self._running = ""

    def run(self) -> None:
        """Works until stdin ends."""
        read_messages(incoming(), self._take, lambda reason: print(reason, file=sys.stderr), self._end)
        while (asked := self._jobs.get()) is not None:
            self._cancel.clear()
            self._running = asked["id"]
            self._work(asked["id"], Path(asked["job"]))
            self._running = ""

    def _take(self, asked: Message) -> None:
        if asked["type"] == "resume":
            self._jobs.put(asked)
        elif asked["type"] == "cancel" and asked["id"] == self._running:
            self._cancel.set()

    def _end(self) -> None:
        self._cancel.set()
        self._jobs.put(None)
        timer = threading.Timer(LAST_SECONDS, os._exit, args=(1,))
        timer.daemon = True
        timer.start()

    def _work(self, job_id: str, folder: Path) -> None:
        from im3d.jobs import Job
        from im3d.pipeline import run_pipeline

        try:
            run_pipeline(Job.open(folder), self._send, self._cancel, blender=self._blender)
        except Im3dError as error:
            log = str(folder / "log.txt")
            self._send(message("error", job_id, **error.to_json(), log=log))
        else:
            self._send(message("result", job_id, path=str(folder / "result.json")))
        finally:
            # Also after a job that was cancelled or failed: what it held went with its error.
            MODELS.rest()
            give_back_memory()


if __name__ == "__main__":
    keep_one_heap()
    outgoing = Outgoing()
    parser = argparse.ArgumentParser()
    parser.add_argument("--blender")
    with MODELS.keeping():
        Worker(outgoing, parser.parse_args().blender).run()
