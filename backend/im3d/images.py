"""Pictures as arrays: the orbit views that every stage exchanges, and how they are read, written and composited."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from im3d.orbit import Orbit

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class OrbitViews:
    """K square pictures of one object and the cameras that saw it.

    Attributes:
        rgba: (K, S, S, 4) float32 in [0, 1], sRGB, straight alpha.
        orbit: The K cameras; the elevation may still be unknown.
    """

    rgba: FloatArray
    orbit: Orbit

    def __post_init__(self) -> None:
        if self.rgba.ndim != 4 or self.rgba.shape[3] != 4 or self.rgba.shape[1] != self.rgba.shape[2]:
            raise ValueError(f"views must be (K, S, S, 4), not {self.rgba.shape}")
        if len(self.rgba) != len(self.orbit):
            raise ValueError(f"{len(self.rgba)} pictures for an orbit of {len(self.orbit)} cameras")

    @property
    def size(self) -> int:
        """Image side in pixels."""
        return int(self.rgba.shape[1])


def premultiplied(rgba: FloatArray) -> FloatArray:
    """Straight alpha (…, 4) to premultiplied."""
    return np.concatenate([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], axis=-1)


def over(rgba: FloatArray, background: float = 1.0) -> FloatArray:
    """Straight-alpha pictures (…, 4) composited over a grey background: (…, 3)."""
    alpha = rgba[..., 3:]
    return rgba[..., :3] * alpha + (1 - alpha) * np.float32(background)
