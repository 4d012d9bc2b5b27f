"""A worker for the tests of the server. The prompt of a job says what it does: ok, die (at its second step), die once,
hang, deaf (does not hear cancel), family (deaf, with a bound child and a child of any kind), noise, files (a job with
results)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from im3d.jobs.job import Job
from im3d.shared.pipes import Outgoing, read_messages
from im3d.shared.processes import bound, kill_own_family
from im3d.shared.protocol import Message, message

send = Outgoing()
asked: list[Message] = []
wake, cancelled = threading.Condition(), threading.Event()


def take(item: Message) -> None:
    if item["type"] == "cancel":
        cancelled.set()
        return
    with wake:
        asked.append(item)
        wake.notify()


def work(item: Message) -> None:
    job = Job.open(Path(item["job"]))
    plan, job_id = job.request.prompt, item["id"]
    (job.folder / f"worker_{os.getpid()}").touch()
    if "load" not in job.state.finished:
        job.finish("load", "load", 0.1)
    send(message("progress", job_id, stage="fit", step=1, steps=2, fraction=0.5, eta_s=1.0))
    marker = job.folder / "died"
    if plan == "die" or (plan == "die once" and not marker.exists()):
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if plan == "noise":
        print("stray output", flush=True)
        os.write(1, b"from a library\n")
    if plan == "family":
        sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
        children = [subprocess.Popen(bound(sleep)), subprocess.Popen(sleep)]
        (job.folder / "children.part").write_text(" ".join(str(child.pid) for child in children))
        os.replace(job.folder / "children.part", job.folder / f"children_{os.getpid()}")
        send(message("progress", job_id, stage="fit", step=2, steps=2, fraction=0.6, eta_s=1.0))
    if plan in ("hang", "deaf", "family"):
        while not (plan == "hang" and cancelled.wait(60)):
            pass
        send(message("error", job_id, code="cancelled", message="Cancelled.", hint="", remedy="", log=""))
        return
    if plan == "files":
        # What comes home is what was sent, so that a test sees both ways.
        source = Path(job.request.image or "")
        for name in ("mesh.glb", "preview.png"):
            (job.folder / name).write_bytes(source.read_bytes())
        send(message("preview", job_id, stage="fit", path=str(job.folder / "preview.png")))
        (job.folder / "result.json").write_text('{"timings_s": {}, "name": "far away"}')
    send(message("result", job_id, path=str(job.folder / "result.json")))


read_messages(sys.stdin.buffer, take, print, kill_own_family)
while True:
    with wake:
        wake.wait_for(lambda: asked)
        current = asked.pop(0)
    cancelled.clear()
    work(current)
