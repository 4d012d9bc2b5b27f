"""True views made inconsistent on purpose: a stand-in for a generator whose views do not agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from im3d.core.images import OrbitViews, premultiplied

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Warp:
    """How strong; every view gets a random distortion of its own.

    Attributes:
        shift_px: Root mean square of the displacement, in pixels of a 256² picture.
        scale_px: Length over which the displacement changes, likewise.
        gain: Standard deviation of the factor on each colour channel.
        offset: Standard deviation of what is added to each colour channel.
    """

    shift_px: float = 2.0
    scale_px: float = 24.0
    gain: float = 0.05
    offset: float = 0.02


def warped(views: OrbitViews, seed: int, warp: Warp | None = None) -> OrbitViews:
    """The views, each bent by a smooth random field and shifted in colour; the first one, the input, is left alone.

    Args:
        views: (K, S, S, 4) with straight alpha.
        seed: Same seed, same distortion.
        warp: Strengths; the defaults by default.
    """
    warp = warp or Warp()
    pictures = [views.rgba[0]]
    for k, rgba in enumerate(views.rgba[1:], start=1):
        pictures.append(_distorted(rgba, np.random.default_rng([seed, k]), warp))
    return OrbitViews(np.stack(pictures), views.orbit)


def _distorted(rgba: FloatArray, rng: np.random.Generator, warp: Warp) -> FloatArray:
    size = rgba.shape[0]
    field = np.stack([gaussian_filter(rng.standard_normal((size, size)), warp.scale_px * size / 256) for _ in range(2)])
    field *= warp.shift_px * size / 256 / np.sqrt((field**2).sum(axis=0).mean())
    where = np.indices((size, size)) + field
    channels = [
        map_coordinates(channel, where, order=1, mode="constant") for channel in np.moveaxis(premultiplied(rgba), -1, 0)
    ]
    bent = np.stack(channels, axis=-1)
    alpha = bent[..., 3:]
    colour = bent[..., :3] / np.maximum(alpha, 1 / 255)
    colour = colour * (1 + warp.gain * rng.standard_normal(3)) + warp.offset * rng.standard_normal(3)
    return np.concatenate([np.clip(colour, 0, 1), alpha], axis=-1).astype(np.float32)
