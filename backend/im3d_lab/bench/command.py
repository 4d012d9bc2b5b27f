"""`im3d bench`: what every stage costs on this machine, beside what it could cost.

Each part runs in a process of its own, so that peak memory is its own too. Speed belongs here and not into tests.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from im3d.core.memory import limit_malloc_arenas
from im3d.errors import Im3dError, InputError
from im3d.models.cache import MODELS

PARTS = ("sample", "fit", "mesh")
JOBS = 20
EXAMPLE = Path(__file__).parents[3] / "examples" / "playhouse"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", choices=(*PARTS, "jobs", "all"), default="all",
                        help="which part (default: all but jobs, which repeats whole jobs in one process)")  # fmt: skip
    parser.add_argument("--peer", action="store_true", help="fit: beside the same loop with lpips and pytorch-msssim")
    parser.add_argument("--views", type=Path, metavar="FOLDER", help="orbit to fit (default: the playhouse example)")
    parser.add_argument("--size", type=int, default=0, help="pixels a side (default: 256, on a GPU 512; sample: 128)")
    parser.add_argument("--iterations", type=int, default=0, help="of the whole fit (default: 200, on a GPU 1200)")
    parser.add_argument("--repeats", type=int, default=0, help="warm calls (default: 5); of jobs: how many (20)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", action="store_true", help="one JSON object, last on stdout")


def run(args: argparse.Namespace) -> int:
    if args.repeats < 0 or (args.what == "jobs" and args.repeats in (1, 2)):
        raise InputError(f"--repeats is {args.repeats}.", "Measure at least once; jobs: three times.")
    limit_malloc_arenas()  # as the worker does
    if args.what == "jobs":
        return _run_jobs(args)
    args.repeats = args.repeats or 5
    reports: dict[str, Any] = {}
    failures: list[Im3dError] = []
    for part in PARTS if args.what == "all" else (args.what,):
        try:
            reports[part] = _in_child(part) if args.what == "all" else _report(args)
        except Im3dError as error:  # what the other parts took minutes to measure is not thrown away
            failures.append(error)
            continue
        if not args.json:
            print(table(part, reports[part]) + "\n", flush=True)
    if failures:
        if reports and args.json:
            print(json.dumps({"status": "partly", **reports}))
        raise failures[0]
    if args.json:
        print(json.dumps({"status": "done", **reports}))
    return 0


def _run_jobs(args: argparse.Namespace) -> int:
    from im3d.core.devices import choose_device
    from im3d_lab.bench.jobs import bench_jobs

    _views(args.views)  # says what is wrong with them before the first job does
    with MODELS.keeping():  # as the worker does
        report = bench_jobs(args.views or EXAMPLE, args.repeats or JOBS, choose_device(args.device), args.iterations)
    print(json.dumps({"status": "done", "jobs": report}) if args.json else jobs_table(report))
    return 0


def jobs_table(report: dict[str, Any]) -> str:
    """The report of repeated jobs as Markdown."""
    held, on_gpu = report["memory_mb"], report["gpu_mb"]
    lines = ["## jobs", "", f"{report['machine']}; preset {report['preset']}; {len(held)} jobs in one process", ""]
    lines += ["| stage | cold (s) | median (s) | peak (MB) |" + (" GPU (MB) |" if on_gpu else "")]
    lines += ["|---|---:|---:|---:|" + ("---:|" if on_gpu else "")]
    for stage, row in report["stages"].items():
        peaks = [row["peak_mb"], row["gpu_peak_mb"]] if on_gpu else [row["peak_mb"]]
        cells = ["" if peak is None else f"{peak:.0f}" for peak in peaks]
        lines.append(f"| {stage} | {row['cold_s']:.2f} | {row['median_s']:.2f} | {' | '.join(cells)} |")
    lines += ["", _held("Memory", held, report["growth_mb"])]
    if on_gpu:
        lines.append(_held("GPU memory", on_gpu, report["gpu_growth_mb"]))
    return "\n".join(lines)


def _held(what: str, held: list[float], growth: float) -> str:
    first, last = f"{held[0]:.0f} MB after the first job", f"{held[-1]:.0f} MB after the last"
    return f"{what} held: {first}, {last}; {growth:+.1f} MB a job in the second half."


def table(part: str, report: dict[str, Any]) -> str:
    """A part's report as Markdown."""
    facts = {k: v for k, v in report.items() if k not in ("rows", "machine", "gflops", "peak_memory_mb")}
    lines = [
        f"## {part}",
        "",
        f"{report['machine']}; matrix products at {report['gflops']:.0f} GFLOP/s; "
        f"peak memory {report['peak_memory_mb']:.0f} MB",
        "",
        f"| part | cold (s) | median (s) | fastest … slowest | calls | floor (s) | ratio |"
        f"{' GPU (MB) |' if report['rows'][0]['device_mb'] is not None else ''}",
        f"|---|---:|---:|---|---:|---:|---:|{'---:|' if report['rows'][0]['device_mb'] is not None else ''}",
    ]
    for row in report["rows"]:
        floor = f"{row['floor_s']:.4f} | {row['ratio']:.1f}" if row["floor_s"] else " | "
        memory = f" {row['device_mb']:.0f} |" if row["device_mb"] is not None else ""
        lines.append(
            f"| {row['part']} | {row['cold_s']:.3f} | {row['median_s']:.4f} | {row['low_s']:.4f} … {row['high_s']:.4f} "
            f"| {row['repeats']} | {floor} |{memory}"
        )
    return "\n".join([*lines, "", json.dumps(facts)])


def _report(args: argparse.Namespace) -> dict[str, Any]:
    from im3d.core.devices import choose_device
    from im3d_lab.bench.measure import Bench

    device = choose_device(args.device)
    bench = Bench(device, args.repeats)
    facts = _measured(args, bench, on_gpu=device.type == "cuda")
    return {**bench.report(), **facts}


def _measured(args: argparse.Namespace, bench: Any, on_gpu: bool) -> dict[str, Any]:
    from im3d.settings import FitSettings, preset_settings

    if args.what == "sample":
        from im3d_lab.bench.sample import bench_sample

        return bench_sample(bench, args.size or 128)
    views = _views(args.views)
    if args.what == "mesh":
        from im3d_lab.bench.mesh import bench_mesh

        return bench_mesh(bench, views, preset_settings("standard", provided_views=True))
    from im3d_lab.bench.fit import bench_fit

    size = args.size or (512 if on_gpu else 256)
    settings = FitSettings(iterations=args.iterations or (1200 if on_gpu else 200), size=size, max_gaussians=20000)
    return bench_fit(bench, views, settings, args.peer)


def _views(folder: Path | None) -> Any:
    from im3d.views.files import read_provided_views

    if folder is None and not EXAMPLE.exists():
        raise InputError("The example orbit is not beside this installation.", "Name an orbit with --views.")
    views = read_provided_views(folder or EXAMPLE).views
    if views.orbit.elevation_deg is None or len(views.orbit) < 8:
        raise InputError("The orbit's elevation must be known, and eight views are needed.", "Use another orbit.")
    return views


def _in_child(part: str) -> dict[str, Any]:
    """One part's report, by this same command in a new process."""
    rest = [a for a in sys.argv[1:] if a not in ("bench", "all", "--json")]
    command = [sys.executable, "-m", "im3d.cli", "bench", part, *rest, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        if answer["status"] == "done":
            return dict(answer[part])
    except (IndexError, ValueError, KeyError):
        raise Im3dError(f"The bench of {part} ended without an answer: {done.stderr[-500:]}") from None
    raise InputError(answer["message"], answer["hint"])
