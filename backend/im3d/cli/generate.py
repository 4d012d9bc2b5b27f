"""`im3d generate`: one job from the command line."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

from im3d.cli.run import add_job_options, add_run_options, overrides_of, run_job
from im3d.errors import InputError
from im3d.jobs.job import Job, Request
from im3d.settings import override_notes, parse_overrides, preset_settings
from im3d.shared.names import default_name


def configure(parser: argparse.ArgumentParser) -> None:
    source = parser.add_argument_group("what to start from")
    source.add_argument("--image", metavar="FILE", help="one picture of the object")
    source.add_argument("--prompt", default="", metavar="TEXT", help="one sentence")
    source.add_argument("--views", metavar="DIR_OR_VIDEO", help="pictures of an orbit, or a turntable video")
    source.add_argument("--mask", metavar="FILE", help="your own mask of the picture: white is the object")
    source.add_argument("--no-recenter", action="store_true", help="the picture is already framed as an orbit view")
    source.add_argument("--elevation", type=float, metavar="DEG", help="elevation of the views, when you know it")

    add_job_options(parser.add_argument_group("how"))
    result = parser.add_argument_group("the result")
    result.add_argument("--out", required=True, metavar="DIR", help="folder of the job")
    result.add_argument("--name", help="name of the object (default: from the prompt or the file)")
    result.add_argument("--blend", metavar="FILE", help="also save a .blend with the object")
    add_run_options(parser)


def run(args: argparse.Namespace) -> int:
    folder = Path(os.path.abspath(args.out))
    job = Job.create(folder, request_from(args))
    return run_job(job, args)


def request_from(args: argparse.Namespace) -> Request:
    """The request of parsed arguments, with absolute paths.

    Raises:
        InputError: Contradictory, out of range, or naming a file that is not there.
    """
    settings = preset_settings(args.preset, given_views=args.views is not None)
    settings = parse_overrides(settings, overrides_of(args))
    for value, option in ((args.height, "--height"), (args.elevation, "--elevation")):
        if value is not None and not math.isfinite(value):
            raise InputError(f"{option} is {value}.", "Give a finite number.")
    request = Request(
        name=args.name or default_name(args.prompt, args.views or args.image),
        views=_absolute(args.views),
        image=_absolute(args.image),
        prompt=args.prompt,
        mask=_absolute(args.mask),
        generator=args.generator,
        preset=args.preset,
        seed=args.seed,
        recenter=not args.no_recenter,
        elevation_deg=args.elevation,
        height_m=args.height,
        blend=_absolute(args.blend),
        settings=settings,
        warnings=override_notes(args.set),
    )
    request.check_files()
    return request


def _absolute(path: str | None) -> str | None:
    return None if path is None else os.path.abspath(path)
