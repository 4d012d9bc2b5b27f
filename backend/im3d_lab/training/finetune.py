"""Fine-tuning of a video model for orbits, as the paper does it (3.1, 3.2), on the public relative SV3D.

Everything is frozen but the temporal convolutions and the temporal attention: what a view looks like stays as it was,
how the views hang together is learned. A video's noise level is σ = exp(N(mean, spread)), and the loss is the squared
error of the network's own output F (v-prediction, `generators.sv3d`). In the paper's terms that is ‖ε̂ − ε‖² with the
weight σ² + 1.

Every random number comes from (seed, process, step), so that a resumed run continues as if it had not been stopped.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from im3d.core.orbit import Orbit
from im3d.errors import InputError
from im3d.generators.sv3d.generator import Name, Sv3dGenerator, in_model_order
from im3d.generators.sv3d.network import Sv3dConfig
from im3d.generators.sv3d.weights import UNET, load_networks, unet_name
from im3d_lab.training.data.batches import OrbitBatches, pictures
from im3d_lab.training.data.orbits import OrbitSet
from im3d_lab.training.train import DistributedContext

# Parts of a parameter's name that make it temporal: convolutions and attention across the views, the position of a view
# in the video, and the scalar that mixes both with the spatial layers. 656 of the U-Net's 1525 million parameters.
TEMPORAL = ("temporal_res_block.", "temporal_transformer_blocks.", "time_pos_embed.", "time_mixer.")
WEIGHTS = "temporal.safetensors"


@dataclass(frozen=True)
class FinetuneSettings:
    """How to fine-tune; batch and learning rate are the paper's.

    Attributes:
        size: Side of the views in pixels, a multiple of 64.
        batch: Videos in each optimiser step, over all GPUs; they pass one at a time.
        steps: Stop at this step; 0: no limit.
        minutes: Stop after that long; 0: no limit.
        learning_rate: AdamW's.
        noise_mean: Mean of ln σ.
        noise_spread: Standard deviation of ln σ.
        drop: Share of the videos whose image embedding is hidden, and, independently, whose input latent is.
        seed: Of everything random.
    """

    size: int = 512
    batch: int = 240
    steps: int = 0
    minutes: float = 0.0
    learning_rate: float = 1e-5
    noise_mean: float = 1.0
    noise_spread: float = 1.6
    drop: float = 0.1
    seed: int = 0


def is_temporal(parameter: str) -> bool:
    """Whether a parameter of the U-Net, by its name, is trained."""
    return any(part in parameter for part in TEMPORAL)


class Finetuner:
    """SV3D with its temporal layers unfrozen, and their optimiser.

    Args:
        name: `sv3d_u` or `sv3d_p`.
        checkpoint: The published weights to start from.
        config: Sizes of the networks in it.
        settings: How to train.
        where: This process's place.
    """

    def __init__(
        self, name: Name, checkpoint: Path, config: Sv3dConfig, settings: FinetuneSettings, where: DistributedContext
    ) -> None:
        self.settings, self.where = settings, where
        self._checkpoint = checkpoint
        networks = load_networks(checkpoint, config, dtype=torch.float32, vae_dtype=torch.float32)
        self.unet = networks.unet.to(where.device)
        self.unet.enable_gradient_checkpointing()
        # Conditioning and latents are made as they are when views are sampled. All networks stay on the GPU.
        self.generator = Sv3dGenerator(
            name, where.device, 0.0, size=settings.size, memory="24", config=config, networks=networks
        )
        self.trained = {n: p.requires_grad_(True) for n, p in self.unet.named_parameters() if is_temporal(n)}
        self.optimizer = torch.optim.AdamW(self.trained.values(), settings.learning_rate, weight_decay=0.01)
        self.step = 0

    def loss(self, views: Tensor, elevation_deg: float, generator: torch.Generator) -> Tensor:
        """The loss of one video.

        Args:
            views: (K, 4, S, S) premultiplied RGBA in [0, 1], the input view first.
            elevation_deg: Of all its cameras.
            generator: Of noise, its level and what is hidden; on the CPU.
        """
        s, device = self.settings, self.where.device
        rgb = pictures(views)
        with torch.no_grad():
            conditioning = self.generator.condition(rgb[0], Orbit.uniform(len(rgb), elevation_deg))
            z = self.generator.encode(in_model_order(rgb)).to(device)
        level, hide_context, hide_latent = torch.randn(1, generator=generator), *torch.rand(2, generator=generator)
        sigma = (level * s.noise_spread + s.noise_mean).exp().to(device)
        noise = torch.randn(z.shape, generator=generator).to(device)
        scale = (sigma**2 + 1).sqrt()
        context = conditioning.context * float(hide_context >= s.drop)
        latent = (conditioning.latent * float(hide_latent >= s.drop)).expand(len(z), -1, -1, -1)
        sample = torch.cat([(z + sigma * noise) / scale, latent], dim=1)[None]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            (predicted,) = self.unet(sample, sigma.log() / 4, context, conditioning.vectors[None])
        return (predicted.float() - (noise - sigma * z) / scale).square().mean()

    def train_step(self, views: Tensor, elevation_deg: Tensor, generator: torch.Generator) -> float:
        """One optimiser step over this process's share of the batch: (B, K, 4, S, S) and (B,); returns the loss."""
        total = 0.0
        for video, elevation in zip(views, elevation_deg.tolist(), strict=True):
            loss = self.loss(video, elevation, generator) / len(views)
            loss.backward()
            total += float(loss.detach())
        if self.where.world > 1:
            for parameter in self.trained.values():
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= self.where.world
        nn.utils.clip_grad_norm_(self.trained.values(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return total

    def save(self, folder: Path) -> None:
        """Writes state.pt, to continue from, and temporal.safetensors, to sample with: `--set sv3d.finetuned=FILE`."""
        folder.mkdir(parents=True, exist_ok=True)
        trained = {name: parameter.detach() for name, parameter in self.trained.items()}
        state = {"trained": trained, "optimizer": self.optimizer.state_dict(), "step": self.step}
        torch.save(state, folder / "state.part")
        os.replace(folder / "state.part", folder / "state.pt")
        with safe_open(self._checkpoint, framework="pt") as file:
            keys = {unet_name(k.removeprefix(UNET)): k for k in file.keys() if k.startswith(UNET)}  # noqa: SIM118
        tensors = {keys[n]: p.detach().half().cpu().contiguous() for n, p in self.trained.items()}
        save_file(tensors, folder / "temporal.part", metadata={"step": str(self.step)})
        os.replace(folder / "temporal.part", folder / WEIGHTS)

    def load(self, folder: Path) -> None:
        """Continues from what `save` wrote.

        Raises:
            InputError: There is no such state, or it belongs to other networks.
        """
        try:
            state = torch.load(folder / "state.pt", map_location=self.where.device, weights_only=True)
            with torch.no_grad():
                for name, parameter in self.trained.items():
                    parameter.copy_(state["trained"][name])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = int(state["step"])
        except (OSError, KeyError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
            raise InputError(f"{folder} holds no state of this model to resume.", "Leave --resume out.") from error


def finetune(
    trainer: Finetuner, orbits: OrbitSet, out: Path, started: float, on_loss: Callable[[int, float], None]
) -> None:
    """Trains until the settings' limit and leaves state and weights in `out`.

    Args:
        trainer: What to train.
        orbits: The rendered orbits; each process trains on its share of the training rows, held in main memory.
        out: Folder of the results.
        started: `time.monotonic()` at the start.
        on_loss: Called by the first process with each step's number and loss.

    Raises:
        InputError: The batch cannot be shared out, or there is nothing to train on.
    """
    s, where = trainer.settings, trainer.where
    rows = orbits.rows("train")[where.rank :: where.world]
    if not len(rows) or s.batch % where.world:
        raise InputError(
            f"{len(orbits.rows('train'))} orbits in batches of {s.batch} cannot be shared by {where.world} processes.",
            "Use a batch that the number of GPUs divides, and more props.",
        )
    batches = OrbitBatches(orbits, rows, torch.device("cpu"), s.size)
    generator = torch.Generator("cpu")
    while not (s.steps and trainer.step >= s.steps) and not _time_is_up(trainer, started):
        generator.manual_seed((s.seed * 1_000_003 + trainer.step) * 1_009 + where.rank)
        batch = batches.draw(s.batch // where.world, generator)
        loss = trainer.train_step(batch.views, batch.elevation, generator)
        if where.first:
            on_loss(trainer.step, loss)
    if where.first:
        trainer.save(out)


def _time_is_up(trainer: Finetuner, started: float) -> bool:
    """Whether all processes stop now, by the first one's clock."""
    if not trainer.settings.minutes:
        return False
    late = torch.tensor([float(time.monotonic() - started > 60 * trainer.settings.minutes)])
    if trainer.where.world > 1:
        late = late.to(trainer.where.device)
        dist.broadcast(late, 0)
    return bool(late.item())
