"""`im3d batch`: one job for each row of a table, keeping on after failures and going on after interruptions."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import threading
import traceback
from pathlib import Path

from im3d.cli.run import TerminalProgress, add_job_options, add_run_options, cancelling, overrides_of
from im3d.core.memory import give_back_memory, limit_malloc_arenas
from im3d.errors import CancelledError, Im3dError, InputError
from im3d.models.cache import MODELS
from im3d.settings import parse_overrides, preset_settings


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", metavar="TABLE", help="CSV file, or a folder of pictures and of folders of views")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the job folders and results.csv")
    rows = parser.add_argument_group("defaults of the rows")
    add_job_options(rows)
    add_run_options(parser)


def run(args: argparse.Namespace) -> int:
    """Returns 0 when every row is done, otherwise the exit status of the first failure."""
    from im3d.core.storage import make_folder
    from im3d.jobs.batch import Defaults, Row, check_results, read_table, write_results

    overrides = overrides_of(args)
    parse_overrides(preset_settings(args.preset), overrides)
    if not math.isfinite(args.height):
        raise InputError(f"--height is {args.height}.", "Give a finite number.")
    defaults = Defaults(args.preset, args.seed, args.height, args.generator, tuple(overrides))
    rows = read_table(Path(os.path.abspath(args.table)), defaults)
    out = Path(os.path.abspath(args.out))
    make_folder(out)
    check_results(out)

    limit_malloc_arenas()
    cancel = threading.Event()
    with cancelling(cancel), MODELS.keeping():
        for row in rows:
            if not cancel.is_set():
                _run_row(row, len(rows), out, args, cancel)
            try:
                write_results(rows, out)
            except Im3dError as error:  # the table is written again after the next row, and at the end
                print(f"im3d: {error}", file=sys.stderr)
    results = write_results(rows, out)
    failed: list[Row] = [row for row in rows if row.error is not None]
    done = sum(row.status == "done" for row in rows)
    print(f"im3d: {done} of {len(rows)} done; {results}", file=sys.stderr)
    if args.json:
        status = "done" if done == len(rows) else "cancelled" if cancel.is_set() else "failed"
        answer = {"status": status, "done": done, "rows": len(rows), "results": str(results)}
        print(json.dumps(answer), flush=True)
    if cancel.is_set():
        return CancelledError.exit_status
    return failed[0].error.exit_status if failed and failed[0].error is not None else 0


def _run_row(row: object, total: int, out: Path, args: argparse.Namespace, cancel: threading.Event) -> None:
    """Runs one row; whatever happens ends up in it."""
    from im3d.jobs.batch import Row
    from im3d.jobs.job import Job
    from im3d.jobs.runner import explain
    from im3d.pipeline import run_pipeline

    assert isinstance(row, Row)
    if row.request is not None:
        try:
            job = Job.create(out / row.folder, row.request)
            with TerminalProgress() as listener:
                result = run_pipeline(job, listener, cancel, device=args.device, blender=args.blender)
            row.status, row.mesh, row.seconds = "done", result["mesh"], result["timings_s"]["total"]
        except CancelledError:
            row.status = "cancelled"
        except Im3dError as error:
            # Anew: the one that was raised holds what the job had in memory, to the end of the batch.
            row.status, row.error = "failed", type(error)(error.message, error.hint, error.remedy)
        except Exception as defect:
            traceback.print_exception(defect)
            row.status, row.error = "failed", explain(defect, str(out / row.folder / "log.txt"))
        MODELS.rest()
        give_back_memory()
    said = row.status if row.error is None else f"failed: {row.error}"
    print(f"[{row.number}/{total}] {row.name}: {said}", file=sys.stderr, flush=True)
