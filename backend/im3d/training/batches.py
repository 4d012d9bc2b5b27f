"""Training batches: orbits on the device, and augmentations that keep an orbit's views consistent.

All pictures here are premultiplied RGBA in [0, 1], (B, K, 4, S, S), view 0 the input view.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from im3d.training.orbits import OrbitSet

# Share of the training orbits that start at the rendered ring's first view, which for half of the rings is the front.
FRONT_SHARE = 0.3
_UPLOAD_ROWS = 512


class OrbitBatches:
    """Orbits of some rows, held on a device as bytes.

    Args:
        orbits: The rendered orbits.
        rows: The rows to hold.
        device: Where they are kept and batches are made.
        size: Side of the batches' pictures; the stored ones are averaged down to it.
    """

    def __init__(self, orbits: OrbitSet, rows: NDArray[np.int64], device: torch.device, size: int) -> None:
        if orbits.size % size:
            raise ValueError(f"orbits of {orbits.size} pixels cannot be averaged down to {size}")
        self._shrink = orbits.size // size
        self._views = torch.empty((len(rows), *orbits.views.shape[1:]), dtype=torch.uint8, device=device)
        for i in range(0, len(rows), _UPLOAD_ROWS):
            chunk = orbits.views[rows[i : i + _UPLOAD_ROWS]]
            self._views[i : i + len(chunk)] = torch.from_numpy(np.ascontiguousarray(chunk)).to(device)
        self._elevation = torch.from_numpy(orbits.elevation_deg[rows]).to(device)

    def __len__(self) -> int:
        return len(self._views)

    def take(self, index: Tensor | Sequence[int]) -> tuple[Tensor, Tensor]:
        """Orbits as they are stored: views (B, K, 4, S, S) and elevations (B,) in degrees."""
        index = torch.as_tensor(index, device=self._views.device)
        views = self._views[index].movedim(-1, 2).float() / 255
        if self._shrink > 1:
            views = F.avg_pool2d(views.flatten(0, 1), self._shrink).unflatten(0, views.shape[:2])
        return views, self._elevation[index]

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A random, augmented batch."""
        index = torch.randint(len(self), (count,), generator=generator, device=generator.device)
        views, elevation = self.take(index)
        views = random_start(views, generator)
        views = random_mirror(views, generator)
        return random_colour(views, generator), elevation


def rolled(views: Tensor, start: Tensor) -> Tensor:
    """The same rings beginning at view `start` (B,)."""
    B, K = views.shape[:2]
    order = (torch.arange(K, device=views.device)[None] + start[:, None]) % K
    return views[torch.arange(B, device=views.device)[:, None], order]


def mirrored(views: Tensor) -> Tensor:
    """The rings of the mirrored props: pictures flipped left to right, azimuths negated."""
    return torch.cat([views[:, :1], views[:, 1:].flip(1)], dim=1).flip(-1)


def random_start(views: Tensor, generator: torch.Generator) -> Tensor:
    """Rings that begin at a random view, or, in a share of `FRONT_SHARE`, at the stored one."""
    B, K = views.shape[:2]
    start = torch.randint(K, (B,), generator=generator, device=views.device)
    return rolled(views, torch.where(_chance(B, FRONT_SHARE, generator), 0, start))


def random_mirror(views: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the rings mirrored."""
    return torch.where(_chance(len(views), 0.5, generator).view(-1, 1, 1, 1, 1), mirrored(views), views)


def random_colour(views: Tensor, generator: torch.Generator) -> Tensor:
    """Colour channels exchanged in a quarter of the rings, and brightened or darkened in all; alpha is kept."""
    B = len(views)
    device = views.device
    keys = torch.rand(B, 3, generator=generator, device=device)
    identity = torch.arange(3, device=device).expand(B, 3)
    order = torch.where(_chance(B, 0.25, generator)[:, None], keys.argsort(dim=1), identity)
    rgb = torch.gather(views[:, :, :3], 2, order.view(B, 1, 3, 1, 1).expand_as(views[:, :, :3]))
    gain = 0.7 + 0.6 * torch.rand(B, 1, generator=generator, device=device)
    tint = 0.9 + 0.2 * torch.rand(B, 3, generator=generator, device=device)
    alpha = views[:, :, 3:]
    rgb = torch.minimum(rgb * (gain * tint).view(B, 1, 3, 1, 1), alpha)
    return torch.cat([rgb, alpha], dim=2)


def _chance(count: int, share: float, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, device=generator.device) < share


def pictures(views: Any) -> NDArray[np.float32]:
    """Premultiplied (…, 4, S, S) tensors as pictures over white, (…, S, S, 3) float32 in [0, 1]."""
    rgba = views.detach().float().cpu()
    rgb = (rgba[..., :3, :, :] + 1 - rgba[..., 3:, :, :]).clamp(0, 1)
    return rgb.movedim(-3, -1).numpy()
