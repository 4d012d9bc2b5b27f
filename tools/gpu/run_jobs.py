"""Runs many `im3d generate` commands side by side, as `im3d evaluate` would one after another.

    python tools/gpu/run_jobs.py jobs.json --parallel 6

An evaluation spends most of its time in the jobs, and needs Blender only before and after. So they can be run where
there is a GPU and no Blender: `--plan` lists them here, inputs rendered; there they run under the same paths; brought
back, `im3d evaluate` with the same options finds them finished and measures them.

    python tools/gpu/run_jobs.py jobs.json --plan evaluate --objects … --source mini … --out REPORT
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def plan(arguments: list[str], path: Path) -> int:
    """Writes the commands of an evaluation, and renders what they start from."""
    from im3d.core.storage import make_folder
    from im3d_lab.evaluate import command
    from im3d_lab.evaluate.ablation import variants
    from im3d_lab.evaluate.objects import draw_elevation, find_objects, render_truth
    from im3d_lab.evaluate.run import Plan, product_command, source_arguments

    parser = argparse.ArgumentParser()
    command.configure(parser)
    args = parser.parse_args(arguments)
    split = None if args.split == "all" else args.split
    objects = find_objects([Path(p) for p in args.objects], args.ids, args.sample, args.seed, split)
    base = Plan(args.source, args.views, command.SIZE, args.seed, args.preset, tuple(args.set))
    commands = []
    for item in objects:
        truth = render_truth(item, draw_elevation(item.id, args.seed), args.views, command.SIZE)
        for variant in variants(args.ablation, base):
            folder = Path(os.path.abspath(args.out)) / variant.name / item.folder_name
            make_folder(folder)
            commands.append(product_command(source_arguments(variant.plan, truth, folder), variant.plan, folder)[1:])
        path.write_text(json.dumps(commands, indent=1), encoding="utf-8")
        print(f"{len(commands)} jobs planned, {item.name}", flush=True)
    return 0


def run(command: list[str], threads: int) -> tuple[list[str], int, float, str]:
    start = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, env=environment)
    return command, done.returncode, time.perf_counter() - start, done.stderr


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs the jobs of an evaluation side by side.")
    parser.add_argument("jobs", type=Path, help="JSON list of commands")
    parser.add_argument("--parallel", type=int, default=6, help="jobs at once")
    parser.add_argument("--plan", nargs=argparse.REMAINDER, metavar="OPTIONS", help="write the list for im3d OPTIONS")
    args = parser.parse_args()
    if args.plan:
        return plan(args.plan[1:] if args.plan[0] == "evaluate" else args.plan, args.jobs)
    commands: list[list[str]] = json.loads(args.jobs.read_text(encoding="utf-8"))
    threads = max(1, (os.cpu_count() or 1) // args.parallel)
    failed = 0
    with ThreadPoolExecutor(args.parallel) as pool:
        for command, status, seconds, said in pool.map(lambda c: run(c, threads), commands):
            name = "/".join(Path(command[command.index("--out") + 1]).parts[-3:-1])
            print(f"{name}: status {status}, {seconds:.0f} s" + (f"\n{said[-600:]}" if status else ""), flush=True)
            failed += status != 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
