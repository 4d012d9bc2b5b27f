"""`im3d train mini`: trains our own orbit generator on packs of props.

On several GPUs: `torchrun --nproc-per-node=N -m im3d.cli train mini …`, or accelerate launch.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any, get_type_hints


def configure(parser: argparse.ArgumentParser) -> None:
    from im3d.training.train import TrainSettings

    kinds = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    mini = kinds.add_parser("mini", help="our own generator, from packs of props")
    mini.add_argument(
        "--pack", type=Path, action="append", required=True, help="a pack of props; give it once for each"
    )
    mini.add_argument("--out", type=Path, required=True, help="folder of the state, weights, pictures and log")
    mini.add_argument("--cache", type=Path, required=True, help="folder of the rendered orbits (large)")
    mini.add_argument("--resume", action="store_true", help="continue the state in --out")
    mini.add_argument("--init", type=Path, metavar="FOLDER", help="start from exported weights")
    mini.add_argument("--render-size", type=int, default=128, help="side of the rendered orbits in pixels")
    mini.add_argument("--orbits", type=int, default=12, help="rendered orbits per training prop, on average")
    mini.add_argument("--workers", type=int, default=4, help="rendering processes")
    mini.add_argument("--limit", type=int, default=0, help="use only that many props of each pack")
    mini.add_argument("--test", action="store_true", help="score the test split afterwards")
    mini.add_argument("--model", default="{}", metavar="JSON", help="the network's sizes, where they differ")
    hints = get_type_hints(TrainSettings)
    for field in dataclasses.fields(TrainSettings):
        flag = "--" + field.name.replace("_", "-")
        if hints[field.name] is bool:
            mini.add_argument(flag, action="store_true")
        else:
            mini.add_argument(flag, type=hints[field.name], default=field.default)


def run(args: argparse.Namespace) -> int:
    from im3d.training.train import place

    started = time.monotonic()
    with place() as where:
        _train_mini(args, where, started)
    return 0


def _train_mini(args: argparse.Namespace, where: Any, started: float) -> None:
    import json

    import torch
    import torch.distributed as dist

    from im3d.training.batches import OrbitBatches
    from im3d.training.orbits import render_packs
    from im3d.training.train import Trainer, TrainSettings, initial_model, train
    from im3d.training.validate import validate

    def rendered() -> Any:
        devices = max(1, torch.cuda.device_count())
        return render_packs(args.pack, args.cache, args.render_size, args.orbits, args.workers, devices, args.limit)

    # The first process renders; the others find the finished file.
    orbits = rendered() if where.first else None
    if where.world > 1:
        dist.barrier()
    orbits = orbits or rendered()
    settings = TrainSettings(**{f.name: getattr(args, f.name) for f in dataclasses.fields(TrainSettings)})
    model, step, seen = initial_model(args.init, args.seed, **json.loads(args.model))
    trainer = Trainer(model, settings, where)
    trainer.step = trainer.leg_start = step
    trainer.orbits_seen = seen
    if args.resume:
        trainer.load(args.out)
    train(trainer, orbits, args.out, started)
    if args.test and where.first:
        batches = OrbitBatches(orbits, orbits.rows("test"), where.device, settings.size)
        for steps, guidance in ((8, 1.0), (16, 1.0), (16, 1.5)):
            picture = args.out / f"test-{steps}-{guidance:g}.png"
            scores = validate(trainer.average, batches, steps, guidance, picture=picture)
            print(f"test, {steps} steps, guidance {guidance:g}: {scores}", flush=True)
