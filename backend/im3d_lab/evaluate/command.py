"""`im3d evaluate`: the product measured on objects whose true surface and colours are known."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

from im3d import __version__
from im3d.core.devices import processor_name
from im3d.core.storage import claim_folder, write_json
from im3d.errors import InputError
from im3d.shared.names import PRESETS

SIZE = 256


def configure(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--objects",
        nargs="+",
        default=[],
        metavar="PACK_OR_FOLDER",
        help="packs of props, or folders of GLB, OBJ, PLY, STL or FBX files (default: the packs in im3d's data folder)",
    )
    what.add_argument("--ids", nargs="+", default=[], metavar="ID", help="only these objects")
    what.add_argument(
        "--sample", type=int, metavar="N", help="sample N objects at random, evenly from all packs and folders"
    )
    what.add_argument(
        "--split", choices=("train", "validation", "test", "all"), default="test", help="part of the packs"
    )
    what.add_argument(
        "--seed", type=int, default=0, help="of the sample, elevations, distortions and jobs (default: 0)"
    )

    how = parser.add_argument_group("how")
    how.add_argument(
        "--source",
        default="oracle",
        metavar="NAME",
        help="oracle: true views; warped: true views made inconsistent; or a generator, from the first true view",
    )
    how.add_argument("--views", type=int, default=16, metavar="K", help="views in the orbit (default: 16)")
    how.add_argument(
        "--withhold-elevation", action="store_true", help="let the product estimate the elevation of given views"
    )
    how.add_argument("--preset", choices=PRESETS, default="standard", help="of the jobs")
    how.add_argument("--mesh-route", choices=("fusion", "density"), help="shorthand for --set mesh.route=…")
    how.add_argument(
        "--set", action="append", default=[], metavar="SECTION.NAME=VALUE", help="change one setting; may be repeated"
    )
    how.add_argument(
        "--ablation",
        choices=("losses", "frames", "representation", "iterations", "noise"),
        help="compare the paper's losses; 16, 8 and 4 views; mesh routes, and splats with a radiance field; refinement "
        "rounds; or the noise of restarts",
    )
    how.add_argument("--clip", metavar="FOLDER", help="CLIP weights (default: clip in the models folder)")
    how.add_argument("--blender", metavar="FILE", help="Blender executable, where bpy is not installed")

    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the report; finished objects are kept")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object, last on stdout")


def run(args: argparse.Namespace) -> int:
    """Returns 0 when every object went through, 1 otherwise; the report is written in both cases."""
    import torch

    from im3d.settings import parse_overrides, preset_settings
    from im3d.splats.losses.perceptual import load_perceptual
    from im3d_lab.evaluate.ablation import PAPER_LOSSES, variants
    from im3d_lab.evaluate.clip import load_clip
    from im3d_lab.evaluate.objects import find_objects
    from im3d_lab.evaluate.reporting.report import write_report
    from im3d_lab.evaluate.reporting.tables import done
    from im3d_lab.evaluate.run import Instruments, Plan, evaluate_object

    _check(args)
    # Ends like Ctrl-C: the job that is running is stopped too, and can be taken up again.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Distorted views stand for a generator's, which the product compares by the paper's losses.
    losses = PAPER_LOSSES if args.source == "warped" else ()
    settings = [*losses, *args.set, *([f"mesh.route={args.mesh_route}"] if args.mesh_route else [])]
    parse_overrides(preset_settings(args.preset), settings)
    plan = Plan(
        args.source,
        args.views,
        SIZE,
        args.seed,
        args.preset,
        tuple(settings),
        withhold_elevation=args.withhold_elevation,
    )
    chosen = variants(args.ablation, plan)
    split = None if args.split == "all" else args.split
    objects = find_objects([Path(p) for p in args.objects], args.ids, args.sample, args.seed, split)

    folder = Path(os.path.abspath(args.out))
    claim_folder(folder, "evaluation", frozenset({"metrics.json", "report.html"}))
    clip = load_clip(Path(args.clip) if args.clip else None)
    instruments = Instruments(load_perceptual(torch.device("cpu")), clip, Path(args.blender) if args.blender else None)
    facts = _facts(args, instruments.perceptual.name, clip if isinstance(clip, str) else clip.name)

    groups: list[tuple[Any, list[dict[str, Any]]]] = [(variant, []) for variant in chosen]
    for item in objects:
        # Object by object, so that an evaluation cut short compares all variants on the same objects.
        for variant, rows in groups:
            rows.append(evaluate_object(item, variant.plan, folder / variant.name / item.folder_name, instruments))
            _say(variant.title, rows[-1], len(rows), len(objects))
            write_json(folder / "metrics.json", _metrics(facts, groups))
            write_report(folder, facts, [(v, r) for v, r in groups if r])
    if args.json:
        print(json.dumps({"report": str(folder / "report.html"), **_metrics(facts, groups)}))
    return 0 if all(len(done(rows)) == len(objects) for _, rows in groups) else 1


def _check(args: argparse.Namespace) -> None:
    from im3d_lab.evaluate.run import GIVEN_VIEWS

    if args.sample is not None and args.sample < 1:
        raise InputError(f"--sample is {args.sample}.", "Draw at least one object.")
    if args.views < 2:
        raise InputError(f"--views is {args.views}.", "Use at least two views.")
    if args.withhold_elevation and args.source not in GIVEN_VIEWS:
        raise InputError("A generator never receives the elevation.", "Leave --withhold-elevation out.")
    if args.clip and not Path(args.clip).is_dir():
        raise InputError(f"There is no folder {args.clip}.", "Give the folder of CLIP's weights, or leave --clip out.")


def _facts(args: argparse.Namespace, perceptual: str, clip: str) -> dict[str, str]:
    """What a reader must know to repeat the numbers."""
    threads = os.environ.get("OMP_NUM_THREADS")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "command": "im3d " + shlex.join(sys.argv[1:]),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{processor_name()}, {cores} core(s)" + (f", {threads} thread(s)" if threads else ""),
        "im3d": __version__,
        "views": f"{args.views} of {SIZE}², source {args.source}",
        "perceptual distance by": perceptual,
        "CLIP": clip,
    }


def _metrics(facts: dict[str, str], groups: list[tuple[Any, list[dict[str, Any]]]]) -> dict[str, Any]:
    from im3d_lab.evaluate.reporting.tables import TABLES, done, summaries

    columns = [column for table in TABLES.values() for column in table]
    return {
        "facts": facts,
        "variants": [
            {
                "name": variant.name,
                "title": variant.title,
                "plan": variant.plan.to_json(),
                "objects": len(rows),
                "failed": len(rows) - len(done(rows)),
                # As stored in the rows: distances in units of the object's longest side.
                "summary": {
                    s.column.path: {
                        "mean": s.mean / s.column.factor,
                        "spread": s.spread / s.column.factor,
                        "worst": s.worst / s.column.factor,
                        "worst_object": s.worst_object,
                    }
                    for s in summaries(done(rows), columns)
                },
                "rows": rows,
            }
            for variant, rows in groups
        ],
    }


def _say(title: str, row: dict[str, Any], number: int, total: int) -> None:
    if row["status"] == "done":
        said = f"mesh {row['mesh']['psnr']:.1f} dB, IoU {row['mesh']['iou']:.3f}, {row['timings_s']['total']:.0f} s"
    else:
        said = f"failed: {row['error']}"
    print(f"[{number}/{total}] {title}: {row['name']}: {said}", file=sys.stderr, flush=True)
