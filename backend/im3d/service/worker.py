"""The process that does the work: one job after the other, as the server sends them over its stdin.

    python -m im3d.service.worker [--blender FILE]

It understands `resume` (run or continue the job in a folder) and `cancel`. What it loads stays in memory for the next
job; the server ends it to free that memory. When its stdin ends, the server is gone, and so is it, with all that it
started.
"""

from __future__ import annotations

import argparse
import queue
import sys
import threading
from pathlib import Path

from im3d.core.memory import give_back_memory, limit_malloc_arenas
from im3d.models.cache import MODELS
from im3d.shared.pipes import Outgoing, incoming, read_messages
from im3d.shared.processes import kill_own_family
from im3d.shared.protocol import Message, message

# A job stops at its next step of progress; nobody waits for it longer than this.
LAST_SECONDS = 10.0


class Worker:
    """Takes messages on one thread and runs jobs on another."""

    def __init__(self, send: Outgoing, blender: str | None) -> None:
        self._send = send
        self._blender = blender
        # Each job has its own event from the message that asks for it on: a cancel that comes before the job begins
        # is kept for it, and one that comes when it has ended never meets the next.
        self._jobs: queue.SimpleQueue[tuple[Message, threading.Event] | None] = queue.SimpleQueue()
        self._cancels: dict[str, threading.Event] = {}
        self._lock = threading.Lock()
        self._ended = False

    def run(self) -> None:
        """Works until stdin ends."""
        read_messages(incoming(), self._take, lambda reason: print(reason, file=sys.stderr), self._end)
        while (item := self._jobs.get()) is not None and not self._ended:
            command, cancel = item
            self._work(command["id"], Path(command["job"]), cancel)
            with self._lock:
                if self._cancels.get(command["id"]) is cancel:
                    del self._cancels[command["id"]]

    def _take(self, command: Message) -> None:
        with self._lock:
            if command["type"] == "resume":
                cancel = self._cancels[command["id"]] = threading.Event()
                self._jobs.put((command, cancel))
            elif command["type"] == "cancel" and command["id"] in self._cancels:
                self._cancels[command["id"]].set()

    def _end(self) -> None:
        with self._lock:
            self._ended = True
            for cancel in self._cancels.values():
                cancel.set()
        self._jobs.put(None)
        timer = threading.Timer(LAST_SECONDS, kill_own_family)
        timer.daemon = True
        timer.start()

    def _work(self, job_id: str, folder: Path, cancel: threading.Event) -> None:
        from im3d.jobs.job import Job
        from im3d.jobs.runner import explain
        from im3d.pipeline import run_pipeline

        try:
            run_pipeline(Job.open(folder), self._send, cancel, blender=self._blender)
        except Exception as error:
            log = str(folder / "log.txt")
            self._send(message("error", job_id, **explain(error, log).to_json(), log=log))
        else:
            self._send(message("result", job_id, path=str(folder / "result.json")))
        finally:
            # Also after a failed or cancelled job: the exception's traceback kept its tensors alive until here.
            MODELS.rest()
            give_back_memory()


if __name__ == "__main__":
    limit_malloc_arenas()
    outgoing = Outgoing()
    parser = argparse.ArgumentParser()
    parser.add_argument("--blender")
    with MODELS.keeping():
        Worker(outgoing, parser.parse_args().blender).run()
