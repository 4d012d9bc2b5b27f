"""A backend that answers at once with a job that was made before: only what the add-on does is under test.

The name of a job says what happens: "fail" ends in an error, "wait" reports half of a fit and waits for cancel.
"warn" has something to say; the mesh of "damaged" is empty; "photo" needs the background remover; all others are done.
STAND_IN_JOB names the folder of the finished job. Its other commands are `models download` and `cutout`, which needs
the background remover as well.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

WARNING = "The object touches the left of the picture and may be cut off."
FINISHED = Path(os.environ["STAND_IN_JOB"])
HOME = Path(os.environ["IM3D_HOME"])
NO_PLAIN_BACKGROUND = {
    "code": "bad_input", "message": "The object cannot be separated from this background.", "hint": "Use a mask.",
    "remedy": "download isnet",
}  # fmt: skip


def say(type_: str, id_: str = "", **content: Any) -> None:
    print(json.dumps({"v": 2, "id": id_, "type": type_, **content}), flush=True)


def work(job_id: str, folder: Path, request: dict[str, Any]) -> None:
    (folder / "request.json").write_text(json.dumps(request))
    say("progress", job_id, stage="load", step=1, steps=1, fraction=0.1, eta_s=None)
    say("progress", job_id, stage="fit", step=1, steps=2, fraction=0.5, eta_s=1.0)
    if request["name"] == "fail":
        say("error", job_id, code="model_missing", message="sv3d_p is not installed.",
            hint="Download it first (9.4 GB).", remedy="download sv3d_p", log=str(folder / "log.txt"))  # fmt: skip
        return
    if request["name"] == "photo" and not is_installed("isnet"):
        say("error", job_id, **NO_PLAIN_BACKGROUND, log=str(folder / "log.txt"))
        return
    if request["name"] == "warn":
        say("warning", job_id, message=WARNING)
    if request["name"] == "wait":
        return
    for file in FINISHED.iterdir():
        if file.is_file() and file.name != "result.json":
            shutil.copy(file, folder / file.name)
    result = json.loads((FINISHED / "result.json").read_text(encoding="utf-8"))
    changes = {k: request[k] for k in ("name", "prompt", "seed", "height_m")}
    changes["warnings"] = [WARNING] if request["name"] == "warn" else []
    (folder / "result.json").write_text(json.dumps({**result, **changes}), encoding="utf-8")
    if request["name"] == "damaged":
        (folder / "mesh.glb").write_bytes(b"")
    say("result", job_id, path=str(folder / "result.json"))


def is_installed(model: str) -> bool:
    return (HOME / "models" / model / "installed.json").exists()


def answered(result: dict[str, Any], status: int = 0) -> None:
    print(json.dumps(result), flush=True)
    sys.exit(status)


def download(model: str) -> None:
    """Installs an empty model. Whether it was given a token is noted, and nothing else about it."""
    if model.startswith("sv3d") and not os.environ.get("HF_TOKEN"):
        answered({"code": "model_missing", "message": "Account!", "hint": "Paste it.", "remedy": f"token {model}"}, 3)
    folder = HOME / "models" / model
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights").write_bytes(b"x")
    (folder / "installed.json").write_text(json.dumps({"files": [{"path": "weights", "bytes": 1}]}))
    (folder / "token").write_text("given" if os.environ.get("HF_TOKEN") else "none")
    answered({"status": "done"})


def cut_out(arguments: list[str]) -> None:
    if not is_installed("isnet"):
        answered({"status": "error", **NO_PLAIN_BACKGROUND}, 2)
    out = Path(arguments[arguments.index("--out") + 1])
    out.parent.mkdir(parents=True)
    shutil.copy(FINISHED / "preview.png", out)
    answered({"status": "done", "path": str(out), "method": "segmentation", "warnings": [WARNING]})


if "download" in sys.argv:
    download(sys.argv[sys.argv.index("download") + 1])
if "cutout" in sys.argv:
    cut_out(sys.argv)
HOME.mkdir(parents=True, exist_ok=True)
(HOME / "served_with_token").write_text(str("HF_TOKEN" in os.environ))
say("hello", product="im3d", version="0", device="stand-in")
for line in sys.stdin:
    asked = json.loads(line)
    if asked["type"] == "shutdown":
        break
    if asked["type"] == "ping":
        say("pong")
    elif asked["type"] == "submit":
        work(asked["id"], Path(asked["job"]), asked["request"])
    elif asked["type"] == "resume":
        folder = Path(asked["job"])
        work(asked["id"], folder, json.loads((folder / "request.json").read_text()))
    elif asked["type"] == "cancel":
        say("error", asked["id"], code="cancelled", message="Cancelled.", hint="", remedy="", log="")
