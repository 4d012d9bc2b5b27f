"""`im3d train mini` trains our own orbit generator on packs of props, `im3d train score` compares its weights on props
of validation and test, `im3d train finetune` trains SV3D as the paper does.

On several GPUs: `torchrun --nproc-per-node=N -m im3d.cli train mini …`, or accelerate launch.
"""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from im3d.core.storage import claim_folder
from im3d.errors import InputError

Made = TypeVar("Made")


def configure(parser: argparse.ArgumentParser) -> None:
    from im3d_lab.training.finetune import FinetuneSettings
    from im3d_lab.training.train_settings import TrainSettings

    kinds = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    mini = kinds.add_parser("mini", help="our own generator, from packs of props")
    _add_data_options(mini, render_size=128)
    mini.add_argument("--init", type=Path, metavar="FOLDER", help="start from exported weights")
    mini.add_argument("--test", action="store_true", help="score the test split afterwards")
    mini.add_argument(
        "--redraw-minutes",
        type=float,
        default=0.0,
        help="pause between further sets of random orbits, rendered while training (the cache needs room for two); "
        "0: no further ones",
    )
    mini.add_argument(
        "--invented", type=int, default=0, help="so many props more, made of the training props by bending and joining"
    )
    mini.add_argument(
        "--model", default="{}", metavar="JSON",
        help="the network's sizes, where they differ; with --init: depths, a multiple of the weights', and samples",
    )  # fmt: skip
    _add_settings(mini, TrainSettings)
    _add_old_name(mini, "--drawn-views", "--rendered-views")

    scoring = kinds.add_parser("score", help="weights of mini on the packs' props of validation and test")
    _add_pack_options(scoring)
    scoring.add_argument("--weights", type=Path, action="append", required=True, help="exported weights; once for each")
    scoring.add_argument("--split", choices=("validation", "test"), action="append", help="one alone")

    tuning = kinds.add_parser("finetune", help="the temporal layers of Stable Video 3D, the paper's recipe")
    _add_data_options(tuning, render_size=512)
    tuning.add_argument("--base", choices=("sv3d_u", "sv3d_p"), default="sv3d_u", help="the model to start from")
    _add_settings(tuning, FinetuneSettings)


def _add_pack_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pack", type=Path, action="append", required=True, help="a pack of props; give it once for each"
    )
    parser.add_argument("--cache", type=Path, required=True, help="folder of the rendered orbits (large)")
    parser.add_argument("--workers", type=int, default=4, help="rendering processes")
    parser.add_argument("--limit", type=int, default=0, help="use only that many props of each pack")


def _add_data_options(parser: argparse.ArgumentParser, render_size: int) -> None:
    _add_pack_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the state, weights, pictures and log")
    parser.add_argument("--resume", action="store_true", help="continue the state in --out")
    parser.add_argument("--render-size", type=int, default=render_size, help="side of the rendered orbits in pixels")
    parser.add_argument("--orbits", type=int, default=12, help="rendered orbits per training prop, on average")
    parser.add_argument("--orbit-seed", type=int, default=0, help="seed of the training props' random orbits")
    _add_old_name(parser, "--draw", "--orbit-seed")


def _add_old_name(parser: argparse.ArgumentParser, old: str, new: str) -> None:
    """Accepts an option's old name, with a note, for one version."""

    class OldName(argparse.Action):
        def __call__(self, _: object, namespace: argparse.Namespace, value: Any, *__: object) -> None:
            print(f"im3d: {old} is called {new} now; the old name goes with the next version.", file=sys.stderr)
            setattr(namespace, self.dest, value)

    dest = new.removeprefix("--").replace("-", "_")
    parser.add_argument(old, type=int, action=OldName, dest=dest, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def _add_settings(parser: argparse.ArgumentParser, settings: type[Any]) -> None:
    hints = get_type_hints(settings)
    for field in dataclasses.fields(settings):
        flag = "--" + field.name.replace("_", "-")
        if hints[field.name] is bool:
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(flag, type=hints[field.name], default=field.default)


def _settings(kind: type[Any], args: argparse.Namespace) -> Any:
    return kind(**{f.name: getattr(args, f.name) for f in dataclasses.fields(kind)})


def run(args: argparse.Namespace) -> int:
    from im3d_lab.training.train import place

    started = time.monotonic()
    # Ends like Ctrl-C, and the processes that help end too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if args.what != "score":
        _claim(args.out, args.resume)
    with place() as where:
        {"mini": _train_mini, "score": _score, "finetune": _finetune}[args.what](args, where, started)
    return 0


def _claim(out: Path, resume: bool) -> None:
    """Raises InputError when training would overwrite another training, or the user's files."""
    if (out / "state.pt").exists() and not resume:
        raise InputError(f"{out} holds a training already.", "Resume it, or choose another folder.")
    claim_folder(out, "training", frozenset({"state.pt"}))


def _made_once(make: Callable[[], Made], where: Any) -> Made:
    """What is made by the first process and kept on disk, where the others find it."""
    import torch.distributed as dist

    made = make() if where.first else None
    if where.world > 1:
        dist.barrier()
    return make() if made is None else made


def _rendered(args: argparse.Namespace, where: Any) -> Any:
    """The orbits of the packs."""
    return _made_once(_draw_request(args).rendered, where)


def _draw_request(args: argparse.Namespace) -> Any:
    import torch

    from im3d_lab.training.data.draws import DrawRequest

    devices = max(1, torch.cuda.device_count())
    return DrawRequest(
        args.pack, args.cache, args.render_size, args.orbits, args.workers, devices, args.limit, args.orbit_seed
    )


def _invented(args: argparse.Namespace, where: Any) -> Path:
    """The pack of invented props."""
    from im3d_lab.training.data.invented import invented_pack

    return _made_once(lambda: invented_pack(args.pack, args.cache, args.invented, args.seed, args.workers), where)


def _rendered_with_grids(args: argparse.Namespace, where: Any) -> tuple[Any, Any]:
    """The packs' orbits and grids of distances; the one takes the GPU, the other the processors."""
    from concurrent.futures import ThreadPoolExecutor

    from im3d_lab.training.data.grids import pack_grids
    from im3d_lab.training.data.helpers import Stop

    def make() -> tuple[Any, Any]:
        with ThreadPoolExecutor(1) as beside, Stop() as stop:
            grids = beside.submit(pack_grids, args.pack, args.cache, args.workers, stop)
            return _draw_request(args).rendered(), grids.result()

    return _made_once(make, where)


def _finetune(args: argparse.Namespace, where: Any, started: float) -> None:
    from im3d.generators.sv3d.network import SV3D_P, SV3D_U
    from im3d.models.catalog import find_model, require
    from im3d_lab.training.finetune import Finetuner, FinetuneSettings, finetune

    settings = _settings(FinetuneSettings, args)
    checkpoint = require(args.base) / find_model(args.base).files[0]
    config = SV3D_P if args.base == "sv3d_p" else SV3D_U
    orbits = _rendered(args, where)
    trainer = Finetuner(args.base, checkpoint, config, settings, where)
    if args.resume:
        trainer.load(args.out)
    finetune(trainer, orbits, args.out, started, lambda step, loss: print(f"step {step}: loss {loss:.4f}", flush=True))


def _train_mini(args: argparse.Namespace, where: Any, started: float) -> None:
    import json

    from im3d_lab.training.data.batches import OrbitBatches
    from im3d_lab.training.data.draws import Redrawing
    from im3d_lab.training.data.orbits import balanced_shares
    from im3d_lab.training.data.volumes import OrbitVolumes
    from im3d_lab.training.train import Trainer, initial_model, train
    from im3d_lab.training.train_settings import TrainSettings
    from im3d_lab.training.validate import validate

    if args.redraw_minutes and where.world > 1:
        raise InputError("Further random orbits are rendered for one process alone.", "Leave --redraw-minutes out.")
    if args.invented:
        args.pack.append(_invented(args, where))
    settings = _settings(TrainSettings, args)
    volumes = None
    if settings.frozen_shape:
        orbits = _rendered(args, where)
    else:
        orbits, grids = _rendered_with_grids(args, where)
        volumes = OrbitVolumes(grids, orbits, args.pack, where.device, args.workers)
    model, step, seen = initial_model(args.init, args.seed, **json.loads(args.model))
    trainer = Trainer(model, settings, where)
    trainer.step = trainer.leg_start = step
    trainer.orbits_seen = seen
    if args.resume:
        trainer.load(args.out)
    pause_s = 60 * args.redraw_minutes
    shares = balanced_shares(orbits, args.pack)
    with Redrawing(_draw_request(args), pause_s) if pause_s else nullcontext() as redrawing:
        train(trainer, orbits, volumes, args.out, started, redrawing=redrawing, shares=shares)
    if args.test and where.first:
        for pack, rows in orbits.rows_by_pack("test").items():
            batches = OrbitBatches(orbits, rows, where.device, model.config["sample_size"])
            for steps in (1, 2, 4, 8):
                picture = args.out / f"test-{steps}-{pack.split('.')[0]}.png"
                scores = validate(trainer.average, batches, steps, picture=picture)
                print(f"test, {pack}, {steps} steps: {scores}", flush=True)


def _score(args: argparse.Namespace, where: Any, started: float) -> None:
    """Prints a line of a Markdown table for each weights, split and pack, as they are done."""
    import torch

    from im3d_lab.training.data.batches import OrbitBatches
    from im3d_lab.training.data.orbits import render_packs
    from im3d_lab.training.picture_losses import PictureDistance
    from im3d_lab.training.train import initial_model
    from im3d_lab.training.validate import validate

    devices = max(1, torch.cuda.device_count())
    orbits = render_packs(args.pack, args.cache, 128, 0, args.workers, devices, args.limit)
    distance = PictureDistance(where.device)
    print("| weights | split | pack | orbits | PSNR (dB) | mask IoU | elevation error, median | mean | perceptual |")
    print("|---|---|---|---:|---:|---:|---:|---:|---:|", flush=True)
    for folder in args.weights:
        model = initial_model(folder, 0)[0].to(where.device).eval()
        size = int(model.config["sample_size"])
        for split in args.split or ("validation", "test"):
            for pack, rows in (orbits.rows_by_pack(split) | {"all": orbits.rows(split)}).items():
                s = validate(model, OrbitBatches(orbits, rows, where.device, size), distance=distance)
                found = f"{s.psnr:.2f} | {s.iou:.4f} | {s.elevation_error_deg:.2f}° | {s.elevation_mean_deg:.2f}°"
                print(f"| {folder} | {split} | {pack} | {s.orbits} | {found} | {s.perceptual:.4f} |", flush=True)
