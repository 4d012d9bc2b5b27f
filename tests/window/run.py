"""The add-on in real windows of all supported Blenders: `python tests/window/run.py [SUITE …]` (see `--help`).

Installs the built zip in a room of each suite (room.py), opens Blender once, pictures every state of the panel in two
looks (states.py, inside.py), then does real work there (work.py). Pictures go to out/window/<version>/. Exit status 1:
something raised, a picture is missing, or a text is cut off. Where no room can be made, the suite is skipped.

Cut-off text is what Blender itself draws with "…" (fonts.py). So every label, button, menu entry, and value that it
shortens is found, whatever the layout. Not found: a number field with its name inside it, which Blender shortens
without "…", text under something that covers it, and what a user would have to scroll to.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fonts import write_fonts
from PIL import Image
from room import SUITES, NoRoomError, default_folder, ready, run

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
EXAMPLES = ("refrigerator", "playhouse", "cabinet")
W = "/w"  # the run's folder in the room, a short path for the window's fields
COLORS = 200
LIMIT_S = 1800.0
FONT = "usr/share/blender/datafiles/fonts/Inter.woff2"
# A traceback, and what Blender prints when a layout names an operator or a property that is not there.
FAULTS = re.compile(r"Traceback|property not found|unknown operator|operator missing|Segmentation fault|Blender exited")
# The window is high enough for the longest panel at scale 2; beside it is room for those that open.
IN_ROOM = f"""
export HOME={W} PLAN={W}/plan.json
Xvfb -displayfd 3 -screen 0 2600x3000x24 -fbdir {W} -nolisten tcp 3>{W}/display 2>/dev/null &
while ! [ -s {W}/display ]; do kill -0 $!; sleep 0.05; done
export DISPLAY=:$(cat {W}/display)
window='--enable-event-simulate --window-geometry 0 0 800 3000'
blender $window --python {W}/tests/inside.py && status=0 || status=$?
echo "Blender ended with $status"
exit $status
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="Pictures every state of the panel in real windows of Blender.")
    parser.add_argument("suites", nargs="*", default=list(SUITES), metavar="SUITE", help=", ".join(SUITES))
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "window")
    parser.add_argument("--rooms", type=Path, default=default_folder(), help="or IM3D_ROOMS")
    parser.add_argument("--zip", type=Path, help="an extension that is built already")
    parser.add_argument("--states", nargs="+", default=[], metavar="NAME", help="only these")
    parser.add_argument("--looks", nargs="+", default=[], metavar="NAME", help="others, e.g. de_1x_dark ja_1x_dark")
    parser.add_argument("--no-work", action="store_true", help="only pictures")
    parser.add_argument("--only-work", action="store_true", help="no pictures")
    parser.add_argument("--images", type=Path, help="copy the pictures panel_* there, for the documents")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    archive = args.zip or _built_zip(args.out)
    plan = {"pictures": not args.only_work, "states": args.states, "looks": args.looks, "work": not args.no_work}
    outs = {suite: args.out / SUITES[suite] for suite in args.suites}
    with ThreadPoolExecutor(max_workers=2) as pool:
        statuses = list(pool.map(lambda suite: _suite(suite, args.rooms, outs[suite], archive, plan), outs))
    if args.images and not any(statuses):
        _copy_images(outs[args.suites[-1]], args.images)
    return max(statuses)


def _suite(suite: str, rooms: Path, out: Path, archive: Path, plan: dict[str, Any]) -> int:
    """Runs one suite, prints how it went, and returns its exit status."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    out, started = out.resolve(), time.monotonic()
    try:
        room = ready(suite, rooms, out / "room.log")
    except NoRoomError as reason:
        print(f"{suite}: skipped: {reason}", flush=True)
        return 0
    shutil.copy(archive, out / "im3d.zip")
    shutil.copytree(HERE, out / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    _finished_jobs(out / "jobs")
    plain, marked = write_fonts(room / FONT, out)
    fonts = {"plain": f"{W}/{plain.name}", "marked": f"{W}/{marked.name}"}
    binds = {out: W, ROOT / "examples": f"{W}/examples"}
    python = _own_python(binds) if plan["work"] else ""
    if not python and plan["work"]:
        print(f"{suite}: work skipped: the environment's Python is the system's own", flush=True)
    (out / "plan.json").write_text(json.dumps({**plan, "fonts": fonts, "python": python}), encoding="utf-8")
    log = out / "log.txt"
    status = run(room, IN_ROOM, binds, log, LIMIT_S)
    faults = _faults(out, status)
    for path in out.iterdir():
        if path.suffix not in (".png", ".txt", ".log", ".json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for fault in faults:
        print(f"{suite}: {fault}")
    count = len(list(out.glob("*.png")))
    print(f"{suite}: {'failed' if faults else 'passed'}: {count} pictures in {out}, {time.monotonic() - started:.0f} s")
    return 1 if faults else 0


def _faults(out: Path, status: int) -> list[str]:
    """What is wrong with a run, a sentence each."""
    faults, doing = [], "at the start"
    log = (out / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(log):
        if line.startswith("state "):
            doing = line
        elif FAULTS.search(line):
            raised = next((x for x in log[number + 1 :] if re.match(r"[\w.]*(Error|Exception)\b", x)), "")
            faults.append(f"{doing}: {line.strip()} {raised}")
    faults = list(dict.fromkeys(faults))
    if status:
        faults.append(f"Blender ended with {status} {doing}; see {out / 'log.txt'}")
    if not (out / "report.json").exists():
        return faults
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    wanted = [f"{state}.{look}" for look in report["looks"] for state in report["states"]]
    faults += [f"no picture {name}" for name in wanted if not (out / f"{name}.png").exists()]
    faults += [f"text is cut off in {out / name}.cut.png" for name in report["cut_off"]]
    if not report["states"]:
        faults.append("there are no such states")
    return faults


def _own_python(binds: dict[Path, str]) -> str:
    """This environment's Python, for the backend; its folders are added to those that the room sees at their places.

    Returns:
        "" when it is the system's own, whose folders a room has itself.
    """
    base = Path(sys.base_prefix).resolve()
    if base in (Path("/usr"), Path("/")):
        return ""
    folders = [ROOT, Path(sys.prefix), base, *map(Path, sys.path[1:])]
    for folder in sorted({folder.resolve() for folder in folders if folder.is_dir()}):
        if not any(folder.is_relative_to(known) for known, place in binds.items() if str(known) == place):
            binds[folder] = str(folder)
    return sys.executable


def _copy_images(out: Path, images: Path) -> None:
    """The documents' pictures, with a palette."""
    for path in sorted(out.glob("panel_*.en_1x_dark.png")):
        name = images / f"{path.name.split('.')[0]}.png"
        with Image.open(path) as picture:
            picture.quantize(COLORS, dither=Image.Dither.NONE).save(name, optimize=True)
        print(name)


def _built_zip(out: Path) -> Path:
    command = [sys.executable, str(ROOT / "tools" / "build_zip.py"), "--out", str(out / "dist")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return Path(done.stdout.strip().splitlines()[-1])


def _finished_jobs(folder: Path) -> None:
    """Three finished jobs to be listed, with the repository's examples for pictures."""
    for name in EXAMPLES:
        views = sorted((ROOT / "examples" / name).glob("*.png"))
        (folder / name / "views" if views else folder / name).mkdir(parents=True)
        shutil.copy(ROOT / "examples" / f"{name}.png", folder / name / "preview.png")
        for number, view in enumerate(views[:8]):
            shutil.copy(view, folder / name / "views" / f"view_{number:03d}.png")
        (folder / name / "mesh.glb").write_bytes(b"")
        result = {"status": "done", "name": name, "prompt": f"an old {name} of painted wood", "mesh": "mesh.glb",
                  "preview": "preview.png", "generator": "mini", "seed": 123456, "height_m": 1.0,
                  "mesh_stats": {"faces": 19998}}  # fmt: skip
        (folder / name / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
