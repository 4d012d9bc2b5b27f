"""The command line: `im3d COMMAND …`; see `COMMANDS` and `LAB_COMMANDS`.

Exit status: 0 done · 2 bad input · 3 model missing or licence not accepted · 4 out of memory · 130 cancelled ·
1 a defect of ours (or the disk). An error is one sentence of what is wrong and one of what to do; the traceback goes
to the job's log. With `--json` the last line of stdout is one object in ASCII, for success and failure alike.

Only the standard library is imported here, so that `im3d --help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import sys
import tempfile
import traceback
from collections.abc import Sequence

from im3d import __version__
from im3d.errors import CancelledError, Im3dError, InputError, OutOfMemoryError

# Name → module and summary. The module has configure(parser) and run(args) → exit status; it is imported on use.
COMMANDS: dict[str, tuple[str, str]] = {
    "generate": ("im3d.cli.generate", "make an object from a picture, a prompt or orbit views"),
    "cutout": ("im3d.cli.cutout", "cut the object out of a picture, as a job does"),
    "batch": ("im3d.cli.batch", "run a job for each row of a CSV table or each picture of a folder"),
    "resume": ("im3d.cli.resume", "continue an interrupted job"),
    "models": ("im3d.cli.models", "list, download and verify models, and show their licences"),
    "serve": ("im3d.cli.serve", "run jobs received as messages on stdin, as Blender uses it"),
    "doctor": ("im3d.cli.doctor", "report what this machine can do and what is missing"),
}
# Of a package that artists do not have.
LAB_COMMANDS: dict[str, tuple[str, str]] = {
    "evaluate": ("im3d_lab.evaluate.command", "measure the quality of results against ground truth"),
    "bench": ("im3d_lab.bench.command", "measure time and memory of each stage on this machine"),
    "train": ("im3d_lab.training.command", "train or fine-tune a generator"),
}


def available_commands() -> dict[str, tuple[str, str]]:
    """`COMMANDS`, and `LAB_COMMANDS` where im3d_lab can be imported."""
    return COMMANDS | (LAB_COMMANDS if importlib.util.find_spec("im3d_lab") else {})


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    _print_anything()
    given = list(sys.argv[1:] if arguments is None else arguments)
    commands = available_commands()
    parser = argparse.ArgumentParser(prog="im3d", description="3D objects from a prompt or a picture, on your machine.")
    parser.add_argument("--version", action="version", version=f"im3d {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    wanted = next((a for a in given if not a.startswith("-")), None)
    if wanted in LAB_COMMANDS and wanted not in commands:
        missing = InputError(
            f"im3d {wanted} belongs to im3d_lab, which is not installed.",
            "It comes with im3d's repository: install that with its extra [lab].",
        )
        report_error(missing, as_json="--json" in given)
        return missing.exit_status
    for name, (module, summary) in commands.items():
        subparser = subparsers.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if name == wanted:
            importlib.import_module(module).configure(subparser)
    args = parser.parse_args(given)
    return _guarded(args)


def _guarded(args: argparse.Namespace) -> int:
    """Runs the command; every failure becomes its sentence and its exit status."""
    try:
        return int(importlib.import_module(available_commands()[args.command][0]).run(args))
    except KeyboardInterrupt:
        error: Im3dError = CancelledError("Stopped.")
    except Im3dError as known:
        error = known
    except MemoryError:
        error = OutOfMemoryError("The memory of this machine is exhausted.", "Close other programs.", "draft")
    except Exception as defect:
        error = Im3dError(
            f"im3d failed: {type(defect).__name__}: {defect}.", f"Please report it with {_logged(defect)}."
        )
    report_error(error, as_json=getattr(args, "json", False))
    return error.exit_status


def _print_anything() -> None:
    """What the terminal's or the pipe's encoding does not know is printed as an escape, and fails nothing.

    On Windows pipes and files have the code page of the system (cp1252, cp932, …), and names come from everywhere.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _logged(defect: Exception) -> str:
    """Where the traceback is now: a file, or, where there is no temporary folder, the lines above."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="im3d-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as log:
            traceback.print_exception(defect, file=log)
        return log.name
    except OSError:
        traceback.print_exception(defect)
        return "the lines above"


def report_error(error: Im3dError, as_json: bool, **content: object) -> None:
    """Prints an error to stderr and, for `--json`, as the last line of stdout."""
    print(f"im3d: {error}", file=sys.stderr)
    if command := remedy_command(error.remedy):
        print(f"im3d: {command}", file=sys.stderr)
    if as_json:
        failure = {"status": "error", **error.to_json(), **content}
        print(json.dumps(failure), flush=True)


def remedy_command(remedy: str) -> str:
    """How a terminal does what the panel's button does, a sentence; "" where the hint says it all."""
    verb, _, name = remedy.partition(" ")
    if verb == "token":
        from im3d.models.catalog import find_model

        return f"Accept the terms at {find_model(name).page}, then run: hf auth login (or set HF_TOKEN)"
    commands = {
        "download": f"Run: im3d models download {name}",
        "licence": f"Run: im3d models licence {name} --accept",
        "draft": "Use: --preset draft",
    }
    return commands.get(verb, "")


if __name__ == "__main__":
    sys.exit(main())
