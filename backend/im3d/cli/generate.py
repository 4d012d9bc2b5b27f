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
    source = parser.add_argument_group("input")
    source.add_argument("--image", metavar="FILE", help="picture of the object")
    source.add_argument("--prompt", default="", metavar="TEXT", help="text prompt; may accompany an image")
    source.add_argument("--views", metavar="DIR_OR_VIDEO", help="orbit views: folder of pictures or turntable video")
    source.add_argument("--mask", metavar="FILE", help="foreground mask of the picture; white is the object")
    source.add_argument("--no-recenter", action="store_true", help="the picture is already framed as an orbit view")
    source.add_argument("--elevation", type=float, metavar="DEG", help="camera elevation of the views, if known")

    add_job_options(parser.add_argument_group("method"))
    result = parser.add_argument_group("output")
    result.add_argument("--out", required=True, metavar="DIR", help="job folder")
    result.add_argument("--name", help="object name (default: from the prompt or the file name)")
    result.add_argument("--blend", metavar="FILE", help="also save the object in a .blend file")
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
    settings = preset_settings(args.preset, provided_views=args.views is not None)
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
