"""How well a generator turns props it never saw: PSNR, mask IoU and elevation error on held-out orbits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from im3d.core.devices import fast_in_half
from im3d.generators.mini.generator import DEFAULT_STEPS, sample_orbit
from im3d.generators.mini.model import VolumeDenoiser, to_model
from im3d_lab.training.data.batches import Changes, OrbitBatches, pictures
from im3d_lab.training.data.volumes import OrbitVolumes
from im3d_lab.training.picture_losses import PictureDistance


@dataclass(frozen=True)
class Scores:
    """Means over orbits unless stated otherwise; view 0, which the generator is given, is left out.

    Attributes:
        psnr: dB over white, from each orbit's squared error over its views.
        psnr_view: dB over white, from each view's squared error.
        iou: Intersection over union of the masks, alpha above one half.
        elevation_error_deg: Median absolute error.
        elevation_mean_deg: Mean absolute error.
        copy_psnr: What copying the input view to all others would reach, as `psnr`.
        orbits: How many were compared.
        perceptual: `PictureDistance` of the views, where it was asked for.
    """

    psnr: float
    psnr_view: float
    iou: float
    elevation_error_deg: float
    elevation_mean_deg: float
    copy_psnr: float
    orbits: int
    perceptual: float | None = None


@torch.no_grad()
def validate(
    model: VolumeDenoiser,
    batches: OrbitBatches,
    steps: int = DEFAULT_STEPS,
    limit: int = 0,
    picture: Path | None = None,
    batch: int = 32,
    seed: int = 0,
    distance: PictureDistance | None = None,
) -> Scores:
    """Scores of a model on held-out orbits.

    Args:
        model: The denoiser.
        batches: The orbits, as large as the network's views.
        steps: Network evaluations an orbit.
        limit: How many orbits, spread evenly over all; 0 takes all.
        picture: Where a sheet of pictures is written: rows of truth above rows of results.
        batch: Orbits generated at once.
        seed: Of the noise.
        distance: What measures how the views look.
    """
    count = min(limit or len(batches), len(batches))
    rows = np.linspace(0, len(batches) - 1, count).round().astype(int).tolist()
    table: list[list[Tensor]] = []
    sheet = []
    looks = 0.0
    for i in range(0, count, batch):
        truth, elevation = batches.take(rows[i : i + batch])
        noise = torch.Generator(truth.device).manual_seed(seed + i)
        with torch.autocast(truth.device.type, torch.bfloat16, enabled=fast_in_half(truth.device)):
            views, guess = sample_orbit(model, truth[:, 0], steps, noise)
        table.append([*_compare(views, truth), (guess - elevation).abs().cpu()])
        if distance is not None:
            looks += len(truth) * float(distance(views[:, 1:], truth[:, 1:], noise))
        step = max(1, count // 16)
        sheet += [(truth[j], views[j]) for j in range(len(truth)) if (i + j) % step == 0]
    if picture is not None:
        save_sheet(sheet[:16], picture)
    psnr, psnr_view, iou, copied, error = (torch.cat(column) for column in zip(*table, strict=True))
    return Scores(
        psnr=float(psnr.mean()),
        psnr_view=float(psnr_view.mean()),
        iou=float(iou.mean()),
        elevation_error_deg=float(error.median()),
        elevation_mean_deg=float(error.mean()),
        copy_psnr=float(copied.mean()),
        orbits=count,
        perceptual=None if distance is None else looks / count,
    )


@torch.no_grad()
def occupancy_loss(
    model: VolumeDenoiser, held_out: OrbitBatches, volumes: OrbitVolumes, limit: int, batch: int = 32
) -> float:
    """The cross entropy of occupancy, as while training but on held-out orbits: what is learnt by heart shows here.

    Args:
        model: The network.
        held_out: The orbits.
        volumes: Of all orbits.
        limit: How many orbits, spread evenly over all; 0 takes all.
        batch: Orbits at once.
    """
    device = held_out.rows.device
    count = min(limit or len(held_out), len(held_out))
    chosen = torch.linspace(0, len(held_out) - 1, count, device=device).round().long()
    size, depths = int(model.config["sample_size"]), int(model.config["depths"])
    total = 0.0
    for index in chosen.split(batch):
        views, _ = held_out.take(index)
        targets = volumes.at(Changes.none(held_out.rows[index]), size // 2, depths)
        with torch.autocast(device.type, torch.bfloat16, enabled=fast_in_half(device)):
            logits = model.shape(to_model(views[:, 0])).logits
        total += float(F.binary_cross_entropy_with_logits(logits, targets.occupancy)) * len(index)
    return total / count


def _compare(views: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def errors(a: Tensor) -> Tensor:
        a, b = (t[:, 1:, :3] + 1 - t[:, 1:, 3:] for t in (a, truth))
        return (a.clamp(0, 1) - b.clamp(0, 1)).square().mean(dim=(2, 3, 4)).clamp(min=1e-10)

    mse = errors(views)
    a, b = views[:, 1:, 3] > 0.5, truth[:, 1:, 3] > 0.5
    iou = (a & b).sum(dim=(2, 3)) / (a | b).sum(dim=(2, 3)).clamp(min=1)
    copied = errors(truth[:, :1].expand_as(truth)).mean(dim=1)
    psnr, psnr_view, copied = -10 * mse.mean(dim=1).log10(), -10 * mse.log10().mean(dim=1), -10 * copied.log10()
    return psnr.cpu(), psnr_view.cpu(), iou.mean(dim=1).cpu(), copied.cpu()


def save_sheet(pairs: list[tuple[Tensor, Tensor]], path: Path, every: int = 2) -> None:
    """A picture of orbits, each as two rows (truth above, result below) that begin with the input view."""
    rows = []
    for truth, views in pairs:
        given = truth[:1]
        for orbit in (truth, views):
            rows.append(np.concatenate(list(pictures(torch.cat([given, orbit[::every]]))), axis=1))
    half = (len(rows) + 3) // 4 * 2
    if len(rows) > half:
        blank = [np.ones_like(rows[0])] * (2 * half - len(rows))
        left, right = np.concatenate(rows[:half]), np.concatenate(rows[half:] + blank)
        sheet = np.concatenate([left, right], axis=1)
    else:
        sheet = np.concatenate(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((sheet * 255).round().astype(np.uint8)).save(path)
