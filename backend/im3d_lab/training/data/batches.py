"""Training batches: orbits on the device, and augmentations that keep an orbit's views consistent.

All pictures here are premultiplied RGBA in [0, 1], (…, 4, S, S); an orbit begins with its input view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from im3d_lab.training.data.orbits import OrbitSet

# Share of the training orbits that start at the rendered ring's first view, which for half of the rings is the front.
FRONT_SHARE = 0.3
_UPLOAD_ROWS = 512


@dataclass(frozen=True)
class Changes:
    """What makes training orbits of stored ones.

    Attributes:
        rows: (B,) of the `OrbitSet`.
        start: (B,) which stored view is the input view.
        mirrored: (B,) bool, whether the prop is mirrored: pictures flipped left to right, azimuths negated.
        mix: (B, 3, 3) what colours are multiplied by.
    """

    rows: Tensor
    start: Tensor
    mirrored: Tensor
    mix: Tensor

    @classmethod
    def none(cls, rows: Tensor) -> Changes:
        """The stored orbits of `rows` as they are."""
        zeros = torch.zeros_like(rows)
        return cls(rows, zeros, zeros > 0, torch.eye(3, device=rows.device).expand(len(rows), -1, -1))

    def recolored(self, rgb: Tensor) -> Tensor:
        """Colours (B, 3, …) changed; they may leave [0, 1]."""
        return torch.bmm(self.mix, rgb.flatten(2)).view_as(rgb)


@dataclass(frozen=True)
class Batch:
    """Training orbits.

    Attributes:
        views: (B, 1 + K', 4, S, S): the input view and K' others.
        index: (B, 1 + K') where they stand on the ring, in steps from the input view; 0 first.
        elevation: (B,) degrees.
        changes: How they came from stored orbits.
    """

    views: Tensor
    index: Tensor
    elevation: Tensor
    changes: Changes


class OrbitBatches:
    """Orbits of some rows, held on a GPU as bytes, or on the CPU mapped from disk.

    Args:
        orbits: The rendered orbits.
        rows: The rows to hold.
        device: Where they are kept and batches are made.
        size: Side of the batches' pictures; the stored ones are averaged down to it.
        shares: (len(rows),) how often each is sampled, relative to the others; None: all as often.

    Attributes:
        rows: (N,) the rows, on the device.
    """

    def __init__(
        self,
        orbits: OrbitSet,
        rows: NDArray[np.int64],
        device: torch.device,
        size: int,
        shares: NDArray[np.float32] | None = None,
    ) -> None:
        if orbits.size % size:
            raise ValueError(f"orbits of {orbits.size} pixels cannot be averaged down to {size}")
        self._shrink = orbits.size // size
        self._stored = orbits.views
        self.rows = torch.from_numpy(rows).to(device)
        self._elevation = torch.from_numpy(orbits.elevation_deg[rows]).to(device)
        # In double precision: a million orbits still differ from their neighbours.
        even = np.ones(len(rows)) if shares is None else shares.astype(np.float64)
        self._upto = torch.from_numpy(np.cumsum(even / max(even.sum(), 1e-12))).to(device)
        self._views: Tensor | None = None
        if device.type != "cpu":
            self._views = torch.empty((len(rows), *orbits.views.shape[1:]), dtype=torch.uint8, device=device)
            self._upload(self._views, orbits, rows)

    def redrawn(self, orbits: OrbitSet) -> None:
        """From now on these are the orbits of another draw of the same props."""
        rows = self.rows.cpu().numpy()
        self._stored = orbits.views
        self._elevation.copy_(torch.from_numpy(orbits.elevation_deg[rows]))
        if self._views is not None:
            self._upload(self._views, orbits, rows)

    @staticmethod
    def _upload(views: Tensor, orbits: OrbitSet, rows: NDArray[np.int64]) -> None:
        for i in range(0, len(rows), _UPLOAD_ROWS):
            chunk = orbits.views[rows[i : i + _UPLOAD_ROWS]]
            views[i : i + len(chunk)] = torch.from_numpy(np.ascontiguousarray(chunk)).to(views.device)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def ring(self) -> int:
        """Views of a ring."""
        return int(self._stored.shape[1])

    def take(self, index: Tensor | Sequence[int]) -> tuple[Tensor, Tensor]:
        """Orbits as they are stored: views (B, K, 4, S, S) and elevations (B,) in degrees."""
        index = torch.as_tensor(index, device=self.rows.device)
        ring = torch.arange(self.ring, device=index.device).expand(len(index), -1)
        return self._pictures(index, ring), self._elevation[index]

    def draw(self, count: int, generator: torch.Generator, others: int | None = None) -> Batch:
        """A random, augmented batch.

        Args:
            count: B.
            generator: Of everything random, on the device of the batches.
            others: How many views besides the input view, chosen at random; None: all of them in order.
        """
        device, K = generator.device, self.ring
        chance = torch.rand(count, generator=generator, device=device, dtype=torch.float64)
        index = torch.searchsorted(self._upto, chance, right=True).clamp_max(len(self) - 1)
        start = torch.randint(K, (count,), generator=generator, device=device)
        start = torch.where(_chance(count, FRONT_SHARE, generator), 0, start)
        steps = torch.arange(1, K, device=device).expand(count, -1)
        if others is not None:
            chosen = torch.rand(count, K - 1, generator=generator, device=device).argsort(dim=1)[:, :others]
            steps = steps.gather(1, chosen)
        steps = torch.cat([torch.zeros_like(start)[:, None], steps], dim=1)
        changes = _random_changes(self.rows[index], start, generator)
        flip = changes.mirrored[:, None]
        views = self._pictures(index, (start[:, None] + torch.where(flip, -steps, steps)) % K)
        views = torch.where(flip[:, :, None, None, None], views.flip(-1), views)
        alpha = views[:, :, 3:]
        rgb = changes.recolored(views[:, :, :3].transpose(1, 2)).transpose(1, 2)
        views = torch.cat([torch.minimum(rgb.clamp_min(0), alpha), alpha], dim=2)
        return Batch(views, steps, self._elevation[index], changes)

    def _pictures(self, index: Tensor, which: Tensor) -> Tensor:
        """Stored views `which` (B, K') of orbits `index` (B,): (B, K', 4, S, S)."""
        if self._views is not None:
            found = self._views[index[:, None], which]
        else:
            found = torch.from_numpy(self._stored[self.rows[index][:, None].numpy(), which.numpy()])
        views = found.movedim(-1, 2).float() / 255
        if self._shrink > 1:
            views = F.avg_pool2d(views.flatten(0, 1), self._shrink).unflatten(0, views.shape[:2])
        return views


def _random_changes(rows: Tensor, start: Tensor, generator: torch.Generator) -> Changes:
    """Half of the props mirrored; saturation changed in half, channels exchanged in a quarter, brightness and tint."""
    B, device = len(rows), generator.device

    def uniform(low: float, high: float, *size: int) -> Tensor:
        return low + (high - low) * torch.rand(B, *size, generator=generator, device=device)

    mirrored = _chance(B, 0.5, generator)
    keys = uniform(0, 1, 3)
    exchanged = _chance(B, 0.25, generator)[:, None]
    order = torch.where(exchanged, keys.argsort(dim=1), torch.arange(3, device=device).expand(B, 3))
    saturation = torch.where(_chance(B, 0.5, generator), uniform(0.2, 1.5), 1.0)[:, None, None]
    mix = saturation * F.one_hot(order, 3).float() + (1 - saturation) / 3
    gain = uniform(0.6, 1.35, 1, 1) * uniform(0.85, 1.15, 3, 1)
    return Changes(rows, start, mirrored, gain * mix)


def _chance(count: int, share: float, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, device=generator.device) < share


def pictures(views: Any) -> NDArray[np.float32]:
    """Premultiplied (…, 4, S, S) tensors as pictures over white, (…, S, S, 3) float32 in [0, 1]."""
    rgba = views.detach().float().cpu()
    rgb = (rgba[..., :3, :, :] + 1 - rgba[..., 3:, :, :]).clamp(0, 1)
    return rgb.movedim(-3, -1).numpy()
