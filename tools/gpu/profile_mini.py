"""Where a training step of `mini` spends its time: the dearest kernels.

    python tools/gpu/profile_mini.py --batch 64

Random orbits stand for rendered ones. Prints orbits a second, the share of the bf16 rate measured in the same
run, and torch's table of kernels.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from im3d.generators.mini.model import VolumeDenoiser
from im3d_lab.training.data.batches import Batch, Changes
from im3d_lab.training.data.volumes import VolumeTargets
from im3d_lab.training.train import DistributedContext, Trainer
from im3d_lab.training.train_settings import TrainSettings


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Mean over `repeats` calls after two that do not count."""
    for _ in range(2):
        work()
    _wait()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    _wait()
    return (time.perf_counter() - start) / repeats


def matrix_rate(device: torch.device) -> float:
    """FLOP/s of a large bf16 matrix product."""
    n = 8192 if device.type == "cuda" else 1024
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16)
    return 2 * n**3 / seconds(lambda: a @ a, 10)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def random_batch(model: VolumeDenoiser, count: int, views: int, device: torch.device) -> tuple[Batch, VolumeTargets]:
    """Orbits and targets of the right shapes."""
    size, depths = int(model.config["sample_size"]), int(model.config["depths"])
    pictures = torch.rand(count, 1 + views, 4, size, size, device=device)
    index = torch.arange(1 + views, device=device).expand(count, -1)
    changes = Changes.none(torch.zeros(count, dtype=torch.long, device=device))
    occupancy = (torch.rand(count, depths, size // 2, size // 2, device=device) > 0.9).float()
    weight = torch.ones(count, 1, depths // 2, size // 2, size // 2, device=device)
    targets = VolumeTargets(occupancy, weight.expand(-1, 3, -1, -1, -1) / 2, weight)
    return Batch(pictures, index, torch.rand(count, device=device) * 45, changes), targets


def main() -> None:
    parser = argparse.ArgumentParser(description="Profile a training step of mini.")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rendered-views", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--eager", action="store_true", help="do not compile the blocks")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    settings = TrainSettings(batch=args.batch, rendered_views=args.rendered_views, compile=not args.eager, muon=True)
    trainer = Trainer(VolumeDenoiser(), settings, DistributedContext(device))
    generator = torch.Generator(device)
    batch, targets = random_batch(trainer.model, args.batch, args.rendered_views, device)

    def step() -> None:
        trainer.train_step(batch, targets, generator, 1e-5)

    with FlopCounterMode(display=False) as counter:
        trainer.losses(*random_batch(trainer.model, 1, args.rendered_views, device), generator)
    taken = seconds(step, args.repeats)
    work = 3 * counter.get_total_flops() * args.batch
    print(f"{args.batch / taken:.0f} orbits/s, {work / taken / matrix_rate(device):.0%} of the matrix rate")
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as record:
        step()
        _wait()
    by = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(record.key_averages().table(sort_by=by, row_limit=40, max_name_column_width=70))


if __name__ == "__main__":
    main()
