"""The subject placed in the picture the way an orbit camera would see it: centred, filling the frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from im3d.core.images import FloatArray, bled, resized
from im3d.errors import InputError

# Longest side of the subject over the side of the picture: SV3D and its successors were trained at about .9. Other
# generators say their own (`Generator.framing`).
DEFAULT_RATIO = 0.9
# Alpha from which a pixel counts for the bounding box: below lies the noise of soft masks.
VISIBLE = 0.05


@dataclass(frozen=True)
class Crop:
    """A square window of a picture, resampled to a square picture of `size` pixels.

    Attributes:
        left: x of the window's left edge in pixels of the picture; may be negative.
        top: y of its upper edge.
        side: Side of the window in pixels of the picture.
        size: Side of the result in pixels.
    """

    left: float
    top: float
    side: float
    size: int

    def apply(self, rgba: FloatArray) -> FloatArray:
        """The window of a picture (H, W, 4), straight alpha: (size, size, 4). Outside the picture it is transparent."""
        box = (self.left, self.top, self.left + self.side, self.top + self.side)
        return resized(bled(rgba), self.size, self.size, box)


def bounding_box(alpha: FloatArray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom (exclusive) of the visible pixels of (H, W) alpha.

    Raises:
        InputError: Nothing is visible.
    """
    rows, columns = np.nonzero(alpha > VISIBLE)
    if not len(rows):
        raise InputError("The mask is empty: the picture shows no object.", "Use a picture with a visible object.")
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def centring_crop(alpha: FloatArray, size: int, ratio: float = DEFAULT_RATIO) -> Crop:
    """The window that puts the bounding box of (H, W) alpha in the middle, its longer side `ratio` of the window's.

    Args:
        alpha: (H, W) in [0, 1].
        size: Side of the framed picture in pixels.
        ratio: In (0, 1].

    Raises:
        InputError: Nothing is visible.
    """
    left, top, right, bottom = bounding_box(alpha)
    side = max(right - left, bottom - top) / ratio
    return Crop((left + right - side) / 2, (top + bottom - side) / 2, side, size)


def whole_picture(shape: tuple[int, ...], size: int) -> Crop:
    """The square window about the middle of a picture (H, W, …) that holds all of it, for `--no-recenter`."""
    height, width = shape[:2]
    side = max(height, width)
    return Crop((width - side) / 2, (height - side) / 2, side, size)
