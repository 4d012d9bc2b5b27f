"""The scene as 3D Gaussians: plain tensors after their activations, as every rasteriser takes them."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussians:
    """N anisotropic Gaussians in world units.

    Attributes:
        means: (N, 3) centres.
        quats: (N, 4) rotations, wxyz; renderers normalise them.
        scales: (N, 3) standard deviations along the rotated axes, positive.
        opacities: (N,) in (0, 1).
        colors: (N, 3) sRGB in [0, 1]; no dependence on the view.
    """

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor

    def __len__(self) -> int:
        return len(self.means)

    @property
    def device(self) -> torch.device:
        return self.means.device

    def to(self, device: torch.device | str) -> Gaussians:
        return self._map(lambda t: t.to(device))

    def detach(self) -> Gaussians:
        return self._map(lambda t: t.detach())

    def __getitem__(self, index: Tensor | slice) -> Gaussians:
        """The Gaussians selected by a mask, an index tensor or a slice."""
        return self._map(lambda t: t[index].contiguous())

    def _map(self, change: object) -> Gaussians:
        assert callable(change)
        return Gaussians(**{f.name: change(getattr(self, f.name)) for f in fields(self)})
