"""`im3d resume`: goes on with a job from its last finished step."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from im3d.cli.run import add_run_options, run_job
from im3d.jobs.job import Job


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="folder of the job: what --out named")
    add_run_options(parser)


def run(args: argparse.Namespace) -> int:
    return run_job(Job.open(Path(os.path.abspath(args.job))), args)
