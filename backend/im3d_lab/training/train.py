"""Training of `mini` on rendered orbits, on one or several GPUs or on a CPU, resumable at any step.

The imagined volume is compared with the prop's occupancy grid, which is cheap: no view is rendered. The denoised views
are compared with the rendered ones (EDM's loss), a few of each orbit, with the volume trained along or left as it is.

Every random number of a step comes from a generator seeded with (seed, rank, step), so a run that is stopped and
resumed continues exactly as if it had not been.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from im3d.core.devices import fast_in_half
from im3d.errors import InputError
from im3d.generators.mini.generator import SIGMA_MAX
from im3d.generators.mini.layers import Attention, ResidualBlock, channels_last
from im3d.generators.mini.model import VolumeDenoiser, from_model, to_model
from im3d.generators.mini.shape import ELEVATION_SPREAD_DEG, Shape
from im3d_lab.training.data.batches import Batch, OrbitBatches
from im3d_lab.training.data.draws import Redrawing
from im3d_lab.training.data.orbits import OrbitSet
from im3d_lab.training.data.volumes import OrbitVolumes, VolumeTargets
from im3d_lab.training.deeper import with_depths
from im3d_lab.training.muon import Muon
from im3d_lab.training.picture_losses import PictureDistance, soft_iou_loss
from im3d_lab.training.train_settings import TrainSettings
from im3d_lab.training.validate import occupancy_loss, validate

# σ at 64 pixels above which the noisy views contain next to no information.
BLIND_FROM = 6.0
# Sampled in one step, as shipped, and in a few, which shows how well lower noise is denoised.
VALIDATION_STEPS = (1, 4)

LOSSES = ("occupancy", "color", "elevation", "rendered", "denoised", "mask", "perceptual")


@dataclass(frozen=True)
class DistributedContext:
    """This process among those that train together.

    Attributes:
        device: Its device.
        rank: Its global rank, from 0.
        world: The number of processes.
    """

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0


@contextmanager
def place() -> Iterator[DistributedContext]:
    """This process's context; it joins the others' group where torchrun or accelerate started it."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    if world == 1:
        yield DistributedContext(device)
        return
    dist.init_process_group("nccl" if cuda else "gloo", device_id=device if cuda else None)
    try:
        yield DistributedContext(device, dist.get_rank(), world)
    finally:
        dist.destroy_process_group()


class Trainer:
    """A model, its averaged copy and its optimiser.

    Args:
        model: The network, with its starting weights.
        settings: How to train.
        where: This process among the others.
    """

    def __init__(self, model: VolumeDenoiser, settings: TrainSettings, where: DistributedContext) -> None:
        self.settings, self.where = settings, where
        channels_last(model.to(where.device)).train()
        model.shape.requires_grad_(not settings.frozen_shape)
        model.opacity.requires_grad_(not settings.frozen_shape)
        model.shape.recognition.requires_grad_(False)
        if settings.frozen_shape:
            model.shape.eval()
        self.model = model
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizers = optimizers(self.model, settings, where.device)
        self._distance = PictureDistance(where.device) if settings.perceptual_weight else None
        self.step = 0
        self.leg_start = 0
        self.orbits_seen = 0
        self.network: nn.Module = _Step(self.model)
        if settings.compile:
            # Blocks repeat, so compiling them one by one costs a fraction of compiling the whole network.
            torch._dynamo.config.recompile_limit = 64
            for block in self.model.modules():
                if isinstance(block, ResidualBlock | Attention):
                    block.compile(dynamic=False)
        if where.world > 1:
            self.network = DistributedDataParallel(
                self.network,
                device_ids=[where.device.index] if where.device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                find_unused_parameters=settings.rendered_views == 0 or settings.volume_first > 0,
            )

    def train_step(
        self, batch: Batch, targets: VolumeTargets | None, generator: torch.Generator, rate: float
    ) -> Tensor:
        """One optimiser step.

        Args:
            batch: The orbits, as large as the network's views; with `rendered_views` views besides the first.
            targets: What their volumes should hold; None where the shape is frozen.
            generator: Of the noise.
            rate: Learning rate.

        Returns:
            (7,): the losses in the order of `LOSSES`, not weighted.
        """
        s = self.settings
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        losses = self.losses(batch, targets, generator)
        shape = (s.volume_weight, s.color_weight, s.elevation_weight)
        weights = torch.tensor((*shape, s.coarse_weight, 1.0, s.mask_weight, s.perceptual_weight), device=losses.device)
        (losses * weights).sum().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.orbits_seen += len(batch.elevation) * self.where.world
        self._update_average()
        return losses.detach()

    def losses(self, batch: Batch, targets: VolumeTargets | None, generator: torch.Generator) -> Tensor:
        """(7,) in the order of `LOSSES`. The first view is given, so it does not count."""
        s, device = self.settings, batch.views.device
        elevation = batch.elevation + s.elevation_jitter * torch.randn(
            len(batch.elevation), generator=generator, device=device
        )
        sigma = self._noise_levels(len(elevation), generator)
        clean = to_model(batch.views[:, 1:])
        noise = torch.randn(clean.shape, generator=generator, device=device)
        noisy = clean + sigma.view(-1, 1, 1, 1, 1) * noise
        with torch.autocast(device.type, torch.bfloat16, enabled=fast_in_half(device)):
            shape, rendered, denoised = self.network(
                to_model(batch.views[:, 0]), elevation, batch.index[:, 1:], noisy if clean.shape[1] else None, sigma
            )
        nothing = torch.zeros((), device=device)
        parts = [nothing] * 3 if targets is None else [*_shape_losses(shape, targets, batch.elevation)]
        if rendered is None:
            parts += [nothing] * 4
        else:
            sd = self.model.config["sigma_data"]
            scaled = sigma.view(-1, 1, 1, 1, 1)
            # EDM's weight, (σ² + σ_d²)/(σ·σ_d)².
            weight = (scaled**2 + sd**2) / (scaled * sd) ** 2
            parts += [(rendered - batch.views[:, 1:]).square().mean(), (weight * (denoised - clean).square()).mean()]
            truth, finished = batch.views[:, 1:], from_model(denoised)
            parts.append(
                sum((soft_iou_loss(views[:, :, 3], truth[:, :, 3]) for views in (rendered, finished)), nothing)
            )
            parts.append(nothing if self._distance is None else self._distance(finished, truth, generator))
        return torch.stack(parts)

    def _noise_levels(self, count: int, generator: torch.Generator) -> Tensor:
        """σ for so many orbits: log-normal, or, in a share of `blind`, log-uniform over the ladder's last part."""
        s, device = self.settings, self.where.device
        seeing = s.noise_mean + s.noise_spread * torch.randn(count, generator=generator, device=device)
        low, high = math.log(BLIND_FROM), math.log(SIGMA_MAX)
        blind = low + (high - low) * torch.rand(count, generator=generator, device=device)
        chosen = torch.rand(count, generator=generator, device=device) < s.blind
        return torch.where(chosen, blind, seeing).exp() * (self.model.config["sample_size"] / 64)

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.settings.ema, self.step / (self.step + 9))
        averaged = list(self.average.parameters())
        torch._foreach_lerp_(averaged, list(self.model.parameters()), 1 - decay)

    def save(self, folder: Path) -> None:
        """Writes the whole state (`state.pt`) and the averaged weights in bfloat16 (`model/`)."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "leg_start": self.leg_start,
            "orbits_seen": self.orbits_seen,
        }
        torch.save(state, folder / "state.part")
        os.replace(folder / "state.part", folder / "state.pt")
        export(self.average, folder / "model", self.step, self.orbits_seen)

    def load(self, folder: Path) -> None:
        """Continues from what `save` wrote.

        Raises:
            InputError: There is no such state, or it belongs to another network.
        """
        try:
            state = torch.load(folder / "state.pt", map_location=self.where.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(kept)
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            raise InputError(
                f"{folder} holds no state of this network to resume.", "Use --init or start anew."
            ) from error
        self.step, self.leg_start = int(state["step"]), int(state["leg_start"])
        self.orbits_seen = int(state["orbits_seen"])


class _Step(nn.Module):
    """What one step asks of the network, as one module: only that is shared between processes."""

    def __init__(self, model: VolumeDenoiser) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, condition: Tensor, elevation: Tensor, index: Tensor, noisy: Tensor | None, sigma: Tensor
    ) -> tuple[Shape, Tensor | None, Tensor | None]:
        """The shape, the rendered views and the denoised ones; only the shape without noisy views."""
        shape = self.model.shape(condition)
        if noisy is None:
            return shape, None, None
        imagined = self.model.draw(shape, condition, elevation, index)
        return shape, imagined.views, self.model(noisy, sigma, condition, elevation, imagined, index)


def _shape_losses(shape: Shape, targets: VolumeTargets, elevation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    occupancy = F.binary_cross_entropy_with_logits(shape.logits, targets.occupancy)
    weight = targets.weight
    color = ((shape.color - targets.color).abs() * weight).sum() / (3 * weight.sum() + 1)
    return occupancy, color, ((shape.elevation_deg - elevation) / ELEVATION_SPREAD_DEG).square().mean()


def optimizers(model: nn.Module, settings: TrainSettings, device: torch.device) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the blocks' products where it is asked for."""
    chosen: dict[int, nn.Parameter] = {}
    if settings.muon:
        for block in model.modules():
            if isinstance(block, ResidualBlock | Attention):
                for name, parameter in block.named_parameters():
                    if parameter.ndim > 1 and parameter.requires_grad and "modulation" not in name:
                        chosen[id(parameter)] = parameter
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    rate, decay = settings.learning_rate, settings.weight_decay
    adamw = torch.optim.AdamW(rest, rate, betas=(0.9, 0.99), weight_decay=decay, fused=device.type == "cuda")
    return [adamw, Muon(chosen.values(), rate, weight_decay=decay)] if chosen else [adamw]


def export(
    model: VolumeDenoiser, folder: Path, step: int, orbits_seen: int, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Writes weights for use: safetensors and config.json as diffusers reads them, and training.json."""
    copy.deepcopy(model).to(dtype).save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps({"step": step, "orbits_seen": orbits_seen}), encoding="utf-8")


def initial_model(folder: Path | None, seed: int, **config: Any) -> tuple[VolumeDenoiser, int, int]:
    """A network with fresh weights or those of `export`; with the step and the orbits that they have seen.

    Args:
        folder: Of `export`; None: fresh weights.
        seed: Of fresh weights.
        config: The network's sizes, where they differ from the defaults. With `folder`, only `depths` and `samples`
            may be given (`with_depths`).

    Raises:
        InputError: The folder holds no such weights, or they cannot have such sizes.
    """
    if folder is None:
        torch.manual_seed(seed)
        return VolumeDenoiser(**config), 0, 0
    try:
        model = VolumeDenoiser.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
        counts = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder} holds no weights of mini.", "Name a folder that training exported.") from error
    depths, samples = (int(config.pop(k, model.config[k])) for k in ("depths", "samples"))
    if config:
        raise InputError(
            f"The weights in {folder} have their own {', '.join(config)}.", "Start from fresh weights, without --init."
        )
    return with_depths(model, depths, samples), int(counts["step"]), int(counts["orbits_seen"])


def train(
    trainer: Trainer,
    orbits: OrbitSet,
    volumes: OrbitVolumes | None,
    out: Path,
    started: float,
    on_loss: Callable[[int, float], None] | None = None,
    redrawing: Redrawing | None = None,
    shares: NDArray[np.float32] | None = None,
) -> None:
    """Trains until the settings' limit and leaves state, weights, validation pictures and log in `out`.

    Args:
        trainer: What to train.
        orbits: The rendered orbits; each process trains on its share of the training rows.
        volumes: The targets of their volumes; None where the shape is frozen.
        out: Folder of the results.
        started: `time.monotonic()` at the start of the run.
        on_loss: Called by the first process with each step's number and loss; costs a wait for the GPU.
        redrawing: Fresh random orbits of the training props, used as they become ready; for one process alone.
        shares: Of `balanced_shares`; None: every orbit is sampled equally often.
    """
    s, where = trainer.settings, trainer.where
    size, depths = int(trainer.model.config["sample_size"]), int(trainer.model.config["depths"])
    rows = orbits.rows("train")[where.rank :: where.world]
    batches = OrbitBatches(orbits, rows, where.device, size, None if shares is None else shares[rows])
    by_pack = orbits.rows_by_pack("validation") if where.first else {}
    held_out = {pack: OrbitBatches(orbits, rows, where.device, size) for pack, rows in by_pack.items()}
    log = _Log(out / "log.jsonl", where.first)
    log.write(event="run", step=trainer.step, orbits=len(batches) * where.world, settings=dataclasses.asdict(s))

    def prepared(step: int) -> tuple[Batch, VolumeTargets | None, torch.Generator]:
        generator = torch.Generator(where.device)
        generator.manual_seed((s.seed * 1_000_003 + step) * 1_009 + where.rank)
        others = 0 if _progress(s, step, started) < s.volume_first else s.rendered_views
        batch = batches.draw(s.batch // where.world, generator, others)
        targets = volumes.at(batch.changes, size // 2, depths) if volumes is not None else None
        return batch, targets, generator

    # The next batch is made while the network works on this one.
    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(prepared, trainer.step)
        begin = last = time.monotonic()
        checked, done, sums = begin, False, torch.zeros(len(LOSSES), device=where.device)
        while not done:
            batch, targets, generator = coming.result()
            if redrawing is not None and redrawing.ready:
                # No batch is being made just now.
                draw = redrawing.take()
                batches.redrawn(draw.orbits)
                if volumes is not None:
                    volumes.redrawn(draw.orbits, draw.azimuth, draw.to_prop)
                log.write(
                    event="draw", step=trainer.step, draw=draw.orbits.draw, minutes=(time.monotonic() - started) / 60
                )
                redrawing.discard(draw)
            coming = ahead.submit(prepared, trainer.step + 1)
            losses = trainer.train_step(batch, targets, generator, learning_rate(trainer, started))
            sums += losses
            if on_loss is not None:
                on_loss(trainer.step, float(losses.sum()))
            if trainer.step % 100 == 0:
                mean, now = (sums / 100).tolist(), time.monotonic()
                rate = 100 * s.batch / (now - last)
                entry = dict(zip(LOSSES, mean, strict=True))
                log.write(step=trainer.step, **entry, orbits_per_s=rate, minutes=(now - started) / 60)
                last = now
                sums.zero_()
            done = _agreed(trainer, started)
            if s.validate_minutes and not done and trainer.step % 50 == 0:
                due = _from_first(time.monotonic() - checked > 60 * s.validate_minutes, where)
                if due:
                    # A run that is cut off loses what came after its last validation.
                    if where.first:
                        trainer.save(out)
                    _validated(trainer, held_out, volumes, out, log)
                    checked = last = time.monotonic()
    if where.device.type == "cuda":
        log.write(event="memory", gigabytes=torch.cuda.max_memory_allocated() / 1e9)
    if where.first:
        trainer.save(out)
    _validated(trainer, held_out, volumes, out, log)


def learning_rate(trainer: Trainer, started: float) -> float:
    """Warm-up, then constant, then a linear fall over the last share of the run."""
    s = trainer.settings
    rate = s.learning_rate * min(1.0, (trainer.step - trainer.leg_start + 1) / max(1, s.warmup))
    return rate * max(0.02, min(1.0, (1 - _progress(s, trainer.step, started)) / s.decay)) if s.decay else rate


def _progress(s: TrainSettings, step: int, started: float) -> float:
    """How much of the run is over, by steps or minutes, whichever is further; 0 without a limit."""
    progress = [step / s.steps] if s.steps else []
    if s.minutes:
        progress.append((time.monotonic() - started) / (60 * s.minutes))
    return max(progress, default=0.0)


def _agreed(trainer: Trainer, started: float) -> bool:
    """Whether all processes stop now; the clock is the first one's, looked at every tenth step."""
    s = trainer.settings
    if s.steps and trainer.step >= s.steps:
        return True
    if not s.minutes or trainer.step % 10:
        return False
    return _from_first(time.monotonic() - started > 60 * s.minutes, trainer.where)


def _from_first(value: bool, where: DistributedContext) -> bool:
    if where.world == 1:
        return value
    flag = torch.tensor([float(value)], device=where.device)
    dist.broadcast(flag, 0)
    return bool(flag.item())


def _validated(
    trainer: Trainer, held_out: dict[str, OrbitBatches], volumes: OrbitVolumes | None, out: Path, log: _Log
) -> None:
    """Scores of each pack, for they differ in what they ask."""
    limit, counts = trainer.settings.validate_orbits, {"step": trainer.step, "orbits_seen": trainer.orbits_seen}
    for pack, batches in held_out.items():
        if volumes is not None:
            loss = occupancy_loss(trainer.average, batches, volumes, limit)
            log.write(event="validation", pack=pack, **counts, occupancy=loss)
        picture = out / f"validation-{trainer.step:06d}-{pack.split('.')[0]}.png"
        for steps in VALIDATION_STEPS:
            scores = validate(trainer.average, batches, steps, limit=limit, picture=picture)
            log.write(event="validation", pack=pack, **counts, steps=steps, **dataclasses.asdict(scores))
    if trainer.where.world > 1:
        dist.barrier()


class _Log:
    """Lines of JSON, on disk and on the screen, by the first process."""

    def __init__(self, path: Path, active: bool) -> None:
        self._path, self._active = path, active
        if active:
            path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, **entry: object) -> None:
        if not self._active:
            return
        line = json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in entry.items()})
        print(line, flush=True)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
