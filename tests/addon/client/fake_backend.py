"""A backend that misbehaves as told: `fake_backend.py PLAN` speaks the protocol and goes wrong at one place.

PLAN is "PLACE:FAULT". Places: start, hello, submit and the stages; faults: see `misbehave`. A file `died` in the job
folder makes it behave; with FAKE_ONCE set it leaves one there itself.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

STAGES = ("load", "image", "orbit", "fit", "mesh", "texture", "export")


def say(type_: str, id_: str = "", protocol: int = 2, **content: object) -> None:
    sys.stdout.write(json.dumps({"v": protocol, "id": id_, "type": type_, **content}) + "\n")
    sys.stdout.flush()


def misbehave(fault: str, job_id: str = "") -> None:
    if fault == "die":
        sys.exit(3)
    elif fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "hang":
        time.sleep(3600)
    elif fault == "garbage":
        sys.stdout.buffer.write(b"\xff\xfe not json\nloading shards: 100%|\n[]\n{}\n" + b"[" * 200_000 + b"\n")
        sys.stdout.buffer.write(b"x" * 3_000_000 + b'{"v": 2, "id": "", "type": "ping"}\n')
        sys.stdout.buffer.flush()
    elif fault == "half":
        sys.stdout.write('{"v": 2, "id": "", "type": "prog')
        sys.stdout.flush()
        sys.exit(0)
    elif fault == "newer":
        say("hello", protocol=3, product="im3d", version="9", device="cpu")
        time.sleep(3600)
    elif fault == "flood":
        for _ in range(100):
            sys.stderr.write("x" * (1 << 20))
    elif fault == "warn":
        for _ in range(2):
            say("warning", job_id, message="The object may be cut off.")
    elif fault == "error":
        say(
            "error",
            job_id,
            code="model_missing",
            message="No model.",
            hint="Get it.",
            remedy="download sv3d_p",
            log="l",
        )


def work(job_id: str, folder: Path, place: str, fault: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "request.json").write_text("{}")
    died = (folder / "died").exists()
    for number, stage in enumerate(STAGES):
        fraction = (number + 0.5) / len(STAGES)
        say("progress", job_id, stage=stage, step=1, steps=2, fraction=fraction, eta_s=70 - 70 * fraction)
        if stage == place and not died:
            if fault in ("die", "kill", "hang", "half") and os.environ.get("FAKE_ONCE"):
                (folder / "died").touch()
            misbehave(fault, job_id)
            if fault == "error":
                return
    result = folder / "result.json"
    result.write_text(json.dumps({"timings_s": dict.fromkeys(STAGES, 10.0)}))
    say("result", job_id, path=str(result))


def main() -> None:
    place, fault = sys.argv[1].split(":")
    if place == "start":
        misbehave(fault)
    say("hello", product="im3d", version="0", device="fake")
    if place == "hello":
        misbehave(fault)
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["type"] == "shutdown":
            return
        if asked["type"] == "ping":
            say("pong")
        elif asked["type"] in ("submit", "resume"):
            if place == "submit":
                misbehave(fault, asked["id"])
                if fault == "error":
                    continue
            work(asked["id"], Path(asked["job"]), place, fault)
        elif asked["type"] == "cancel":
            say("error", asked["id"], code="cancelled", message="Cancelled.", hint="", remedy="", log="")


main()
