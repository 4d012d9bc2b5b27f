"""Running a job in the foreground: progress on the terminal, Ctrl-C, and the result as JSON."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tqdm import tqdm

from im3d.errors import Im3dError
from im3d.generators.choose import generator_names
from im3d.jobs.job import Job
from im3d.shared.names import PRESETS
from im3d.shared.protocol import Message


def add_job_options(group: argparse._ArgumentGroup) -> None:
    """The options of what to make, which a single job and a batch have in common."""
    group.add_argument("--generator", choices=generator_names(), default="auto", help="source of the orbit views")
    group.add_argument("--preset", choices=PRESETS, default="standard", help="quality against time (default: standard)")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="seed of all random numbers (default: 0)")
    group.add_argument("--height", type=float, default=1.0, metavar="METRES", help="height of the object (default: 1)")
    group.add_argument("--faces", type=int, metavar="N", help="upper limit of triangles")
    group.add_argument("--texture-size", type=int, metavar="N", help="side of the texture in pixels")
    group.add_argument(
        "--set", action="append", default=[], metavar="SECTION.NAME=VALUE", help="override a setting; repeatable"
    )


def overrides_of(args: argparse.Namespace) -> list[str]:
    """The settings that these options change, as `parse_overrides` takes them."""
    short = {"mesh.faces": args.faces, "texture.size": args.texture_size}
    return [f"{name}={value}" for name, value in short.items() if value is not None] + args.set


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The options that every command running a job has."""
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"), help="compute device")
    parser.add_argument("--blender", metavar="FILE", help="Blender executable, where bpy is not installed")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object, last on stdout")


def run_job(job: Job, args: argparse.Namespace) -> int:
    """Runs or continues `job`; returns 0, or the exit status of the error that ended it."""
    from im3d.cli.main import report_error
    from im3d.pipeline import run_pipeline

    cancel = threading.Event()
    try:
        with cancelling(cancel), TerminalProgress() as listener:
            result = run_pipeline(job, listener, cancel, device=args.device, blender=args.blender)
    except Im3dError as error:
        report_error(error, args.json, job=str(job.folder), log=str(job.folder / "log.txt"))
        if (job.folder / "state.json").exists() and job.state.finished:
            print(f"im3d: continue with: im3d resume {job.folder}", file=sys.stderr)
        return error.exit_status
    if args.json:
        print(json.dumps(result), flush=True)
    else:
        _print_summary(result)
    return 0


def _print_summary(result: dict[str, Any]) -> None:
    stats = result["mesh_stats"]
    print(
        f"{result['mesh']}: {stats['faces']} faces, {'closed' if stats['watertight'] else 'open'}, "
        f"texture of {stats['texture_size']} pixels, {result['timings_s']['total']:.0f} s "
        f"({_drawn_by(result)}, {result['rasterizer']} on {result['device']}, {result['perceptual']})"
    )
    for warning in result["warnings"]:
        print(f"note: {warning}")
    for key in ("preview", "blend"):
        if result[key]:
            print(f"{key}: {result[key]}")


def _drawn_by(result: dict[str, Any]) -> str:
    calls = result["network_calls"]
    return f"{result['generator']}, {calls} network calls" if calls else str(result["generator"])


@contextmanager
def cancelling(cancel: threading.Event) -> Iterator[None]:
    """Lets the first Ctrl-C (or SIGTERM) ask the job to stop at its next step; a second one stops it where it is."""

    def ask(number: int, frame: FrameType | None) -> None:
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()
        print("\nim3d: stopping; press Ctrl-C again to stop at once", file=sys.stderr)

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class TerminalProgress:
    """One progress bar a stage on stderr, from the pipeline's events."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._stage = ""

    def __enter__(self) -> TerminalProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def __call__(self, event: Message) -> None:
        if event["type"] != "progress":
            return
        if event["stage"] != self._stage:
            self._close()
            self._stage = event["stage"]
        if self._bar is None or self._bar.total != event["steps"]:
            self._close()
            self._bar = tqdm(
                total=event["steps"],
                desc=f"{self._stage:>8}",
                file=sys.stderr,
                mininterval=0.2,
                bar_format="{desc} {bar:24} {n_fmt}/{total_fmt} {elapsed} (left {remaining})",
            )
        self._bar.update(event["step"] - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
