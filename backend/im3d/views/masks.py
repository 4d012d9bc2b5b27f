"""The object cut out of its picture: from its alpha, the user's mask, a plain background, or a segmentation network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import ndimage

from im3d.core.images import FloatArray, bled, read_image, resized
from im3d.errors import InputError
from im3d.views.framing import VISIBLE
from im3d.views.plain_background import WIDE, BoolArray, Outline, Pocket, cut_out, filled, find_outline, opened

Method = Literal["mask file", "alpha", "plain background", "segmentation"]
# (H, W, 3) sRGB in [0, 1] → (H, W) alpha: the IS-Net that the paper uses (3.3), where its weights are installed.
Segment = Callable[[FloatArray], FloatArray]

MIN_SHARE, MAX_SHARE = 0.001, 0.97
# Share of the object that others of a set's views show through a pocket: below the first one looks through it, above
# the second certainly not.
THROUGH, COVERED = 0.7, 0.97
# A network's mask that is enough where the other views hold the place to be object.
TRANSLUCENT = 0.2
# Pieces of at least this share of the largest count as objects of their own; letters are more and smaller ones.
ANOTHER, LETTER, LETTERS = 0.25, 0.04, 6


@dataclass(frozen=True)
class Isolated:
    """A picture with its background removed.

    Attributes:
        rgba: (H, W, 4) float32, straight alpha; colours are free of the background and extended beyond the object.
        method: What the mask came from.
        warnings: What the user should know, a sentence each.
    """

    rgba: FloatArray
    method: Method
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """What a picture says about its object, before it is decided what belongs to it.

    Attributes:
        rgba: (H, W, 4), its alpha final where neither of the following is there.
        method: What the mask comes from.
        outline: What stands out from a plain background.
        network: (H, W) a segmentation network's mask.
        warnings: A sentence each.
    """

    rgba: FloatArray
    method: Method
    outline: Outline | None = None
    network: FloatArray | None = None
    warnings: tuple[str, ...] = ()

    def decided(self, seen: BoolArray | None = None) -> BoolArray:
        """What is object, (H, W).

        Args:
            seen: (H, W) where the other views of a set hold the object to be, coarse; None where they cannot tell.
        """
        outline, network = self.outline, self.network
        if outline is None:
            return self.rgba[..., 3] > 0.5 if network is None else _by_network(network, seen)
        solid = outline.solid.copy()
        if seen is not None:  # a pale foot before a pale ground looks like a shadow, but not from all sides
            solid |= outline.shadow & ndimage.binary_erosion(seen, iterations=2)
        if network is not None:
            either = solid | opened((network > 0.5) & ~solid, WIDE)
            solid = either if seen is None else either & ~_contradicted(outline.solid, network > 0.5, seen)
        for pocket in outline.pockets:
            if self._is_hole(pocket, seen):
                outline.open(pocket, solid)
        return solid if network is None else solid | (filled(solid) & (network > 0.5))

    def undecided(self) -> BoolArray:
        """What is object if every pocket is a hole, (H, W)."""
        solid = self.decided()
        for pocket in self.outline.pockets if self.outline else ():
            solid[pocket.window] &= ~pocket.inside
        return solid

    def cut(self, solid: BoolArray) -> Isolated:
        """The picture with alpha, by what was decided.

        Raises:
            InputError: There is no object, or nothing but it.
        """
        if self.outline is not None:
            rgba = cut_out(self.rgba[..., :3], self.outline, solid)
        elif self.network is not None:
            rgba = np.dstack([self.rgba[..., :3], _with_soft_rim(solid, self.network)])
        else:
            rgba = self.rgba
        return _checked(rgba, self.method, self.warnings)

    def _is_hole(self, pocket: Pocket, seen: BoolArray | None) -> bool:
        if self.network is not None and self.network[pocket.window][pocket.inside].mean() > 0.5:
            return False
        # What is narrower than two pixels of the coarse silhouettes is beyond what they can tell.
        if seen is None or pocket.width < seen.shape[0] / 72:
            return pocket.hard
        covered = float(seen[pocket.window][pocket.inside].mean())
        return covered < THROUGH or (pocket.hard and covered < COVERED)


def isolate(rgba: FloatArray, mask: FloatArray | None = None, segment: Segment | None = None) -> Isolated:
    """Cuts the object out: by the user's mask, by the picture's alpha, or by its background and the network together.

    Before a plain background both the background and the network speak, where there is one: what either holds to be
    object is. Views of a set are better cut out together (`view_masks`).

    Args:
        rgba: (H, W, 4) float32, straight alpha.
        mask: (H, W) the user's own mask in [0, 1].
        segment: A segmentation network, where one is installed.

    Raises:
        InputError: Nothing works: the mask is empty or full, or the background is not plain and there is no network.
    """
    reading = read_picture(rgba, mask, segment)
    return reading.cut(reading.decided())


def read_picture(rgba: FloatArray, mask: FloatArray | None = None, segment: Segment | None = None) -> Reading:
    """What a picture says about its object; arguments and errors as for `isolate`."""
    if mask is not None:
        return Reading(np.dstack([rgba[..., :3], mask]), "mask file")
    if has_alpha(rgba):
        if (rgba[..., 3] > 0.5).mean() <= MAX_SHARE:
            return _by_alpha(rgba)
        # A screenshot's round corners: what is behind them is the background too.
        rgba = bled(np.dstack([rgba[..., :3], np.where(rgba[..., 3] > 0.5, 1, 0)]).astype(np.float32))
    rgb = np.ascontiguousarray(rgba[..., :3])
    try:
        outline = find_outline(rgb)
    except InputError:
        if segment is None:
            raise
        return Reading(rgba, "segmentation", network=segment(rgb))
    return Reading(rgba, "plain background", outline, None if segment is None else segment(rgb))


def _by_alpha(rgba: FloatArray) -> Reading:
    """A picture with transparency. An object of glass, half transparent everywhere, is made solid."""
    alpha = rgba[..., 3]
    inner = alpha[ndimage.binary_erosion(alpha > VISIBLE, iterations=2)]
    strength = float(np.quantile(inner, 0.9)) if len(inner) else 1.0
    # What is left where nothing is solid is a noise floor or a shadow, not an object.
    if not 2 * VISIBLE < strength < 0.75:
        return Reading(rgba, "alpha")
    solid = np.dstack([rgba[..., :3], np.clip(alpha / strength, 0, 1)])
    return Reading(solid, "alpha", warnings=("The object is translucent in the picture; it becomes solid.",))


def _by_network(network: FloatArray, seen: BoolArray | None) -> BoolArray:
    """A network's soft mask as a decision; what it encloses, and what the other views confirm, needs less."""
    sure = network > 0.5
    likely = network > TRANSLUCENT
    return sure | (likely & filled(sure)) if seen is None else sure | opened(likely & seen, WIDE)


def _contradicted(stands_out: BoolArray, network: BoolArray, seen: BoolArray) -> BoolArray:
    """What the background and the network do not agree on, and no other view knows."""
    near = ndimage.binary_dilation(seen, iterations=2 * WIDE)
    return opened((stands_out ^ network) & ~near, WIDE)


def _with_soft_rim(solid: BoolArray, network: FloatArray) -> FloatArray:
    """Alpha (H, W): 1 inside, 0 outside, the network's own within two pixels of the outline."""
    inner = ndimage.binary_erosion(solid, iterations=2, border_value=1)
    outer = ndimage.binary_dilation(solid, iterations=2)
    rim = np.where(solid, np.maximum(network, 0.5), np.minimum(network, 0.5))
    return np.where(inner, 1, np.where(outer, rim, 0)).astype(np.float32)


def has_alpha(rgba: FloatArray) -> bool:
    """Whether the alpha of (…, 4) says something: a visible share of the pixels is transparent."""
    return float((rgba[..., 3] < 0.5).mean()) > MIN_SHARE


def read_mask(path: Path, shape: tuple[int, ...]) -> FloatArray:
    """The user's mask for a picture of (H, W, …): its alpha if it has one, otherwise its brightness, white the object.

    Returns:
        (H, W) float32 in [0, 1].

    Raises:
        InputError: Unreadable, or of another shape than the picture.
    """
    height, width = shape[:2]
    rgba = read_image(path, max(height, width))
    if abs(rgba.shape[0] * width - rgba.shape[1] * height) > 0.01 * rgba.shape[0] * width:
        raise InputError(
            f"The mask {path} is {rgba.shape[1]} x {rgba.shape[0]}, the picture {width} x {height}.",
            "Make the mask as large as the picture.",
        )
    values = rgba[..., 3] if has_alpha(rgba) else rgba[..., :3].mean(axis=-1)
    if rgba.shape[:2] != (height, width):
        values = resized(np.dstack([np.zeros((*values.shape, 3), np.float32), values]), height, width)[..., 3]
    return values.astype(np.float32)


def _checked(rgba: FloatArray, method: Method, warnings: tuple[str, ...]) -> Isolated:
    alpha = rgba[..., 3]
    visible = alpha > VISIBLE
    if visible.mean() < MIN_SHARE:
        raise InputError(
            f"The mask is empty: by its {method} the picture shows no object.", "Use a picture with a visible object."
        )
    if (alpha > 0.5).mean() > MAX_SHARE:
        raise InputError(
            f"The mask is full: by its {method} the object covers the whole picture.",
            "Use a picture that shows all of the object with some background around it.",
        )
    sides = {"top": visible[0], "bottom": visible[-1], "left": visible[:, 0], "right": visible[:, -1]}
    # A few pixels may graze the border; more means that something is cut off.
    cut = [side for side, pixels in sides.items() if pixels.mean() > 0.01]
    if cut:
        warnings += (f"The object touches the {' and '.join(cut)} of the picture and may be cut off.",)
    warnings += several_objects(alpha)
    return Isolated(bled(np.ascontiguousarray(rgba, dtype=np.float32)), method, warnings)


def several_objects(alpha: FloatArray) -> tuple[str, ...]:
    """A warning where (H, W) alpha shows several objects, or words."""
    labels, _ = ndimage.label(alpha > 0.5, structure=np.ones((3, 3)))
    areas = np.sort(np.bincount(labels.ravel())[1:])[::-1]
    if len(areas) > LETTERS and areas[LETTERS] > LETTER * areas[0]:
        return (f"The picture shows {int((areas > LETTER * areas[0]).sum())} separate pieces, like letters.",)
    if len(areas) > 1 and areas[1] > ANOTHER * areas[0]:
        return (
            f"The picture shows {int((areas > ANOTHER * areas[0]).sum())} separate objects; they become one model. "
            "Use a picture of a single object.",
        )
    return ()
