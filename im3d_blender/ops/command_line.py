"""`blender --command im3d generate …` and `… batch …`: the operators from a terminal."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bpy

from ..core.job_request import PRESETS
from .generate import ALL_GENERATORS

_commands: list[Any] = []


def run(arguments: Sequence[str]) -> int:
    """Runs one command; returns the exit status: 0 done, 1 failed (the reason is on stderr), 2 wrong arguments."""
    try:
        args = _parser().parse_args(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    if args.empty:
        # The factory scene's cube, light and camera are nobody's result.
        bpy.ops.wm.read_homefile(use_empty=True)
    elif args.into:
        bpy.ops.wm.open_mainfile(filepath=str(args.into))
    try:
        result = args.operator(args)
    except RuntimeError:  # the operator's report, which Blender has printed
        return 1
    if "FINISHED" not in result:
        return 1
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        bpy.ops.wm.save_as_mainfile(filepath=str(args.out), compress=True)
        print(args.out)
    return 0


def _generate(args: argparse.Namespace) -> set[str]:
    names = ("prompt", "image", "views", "mask", "name", "generator", "preset", "seed", "height", "faces",
             "texture_size", "elevation", "settings", "collection", "library", "lods", "splats")  # fmt: skip
    # What was not given keeps the operator's default.
    return bpy.ops.im3d.generate(**{name: getattr(args, name) for name in names if name in args}, wait=True)


def _batch(args: argparse.Namespace) -> set[str]:
    given = {name: getattr(args, name) for name in ("results", "preset") if name in args}
    return bpy.ops.im3d.batch(filepath=str(args.table.absolute()), wait=True, **given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="blender --command im3d", description="Objects from prompts and pictures.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    generate = commands.add_parser("generate", help="make one object", argument_default=argparse.SUPPRESS)
    generate.set_defaults(operator=_generate)
    for name in ("prompt", "image", "views", "mask", "name", "settings", "collection", "library"):
        generate.add_argument(f"--{name}", type=_absolute if name in ("image", "views", "mask") else str)
    generate.add_argument("--generator", choices=[item[0] for item in ALL_GENERATORS])
    generate.add_argument("--preset", choices=[item[0] for item in PRESETS])
    for name in ("seed", "faces", "texture-size"):
        generate.add_argument(f"--{name}", type=int)
    for name in ("height", "elevation"):
        generate.add_argument(f"--{name}", type=float)
    generate.add_argument("--lods", action="store_true")
    generate.add_argument("--splats", action="store_true")

    batch = commands.add_parser(
        "batch", help="make one object per row of a CSV table", argument_default=argparse.SUPPRESS
    )
    batch.set_defaults(operator=_batch)
    batch.add_argument("table", type=Path, help="CSV file or folder of pictures")
    batch.add_argument("--results", type=_absolute, help="CSV file of results")
    batch.add_argument("--preset", choices=[item[0] for item in PRESETS])

    for command in (generate, batch):
        where = command.add_mutually_exclusive_group()
        where.add_argument("--into", type=Path, default=None, help="open this .blend first")
        where.add_argument("--empty", action="store_true", default=False, help="start with an empty file")
        command.add_argument("--out", type=Path, default=None, help="save the file as this .blend")
    return parser


def _absolute(text: str) -> str:
    return str(Path(text).absolute())


def attach() -> None:
    _commands.append(bpy.utils.register_cli_command("im3d", run))


def detach() -> None:
    while _commands:
        bpy.utils.unregister_cli_command(_commands.pop())
