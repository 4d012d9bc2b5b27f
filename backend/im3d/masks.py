"""The object cut out of its picture: from its alpha, the user's mask, a plain background, or a segmentation network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from im3d.errors import InputError
from im3d.framing import VISIBLE
from im3d.images import FloatArray, bled, read_image, resized

Method = Literal["mask file", "alpha", "plain background", "segmentation"]
# (H, W, 3) sRGB in [0, 1] → (H, W) alpha: the IS-Net that the paper uses (3.3), where its weights are installed.
Segment = Callable[[FloatArray], FloatArray]
BoolArray = NDArray[np.bool_]

# The share of the border that must follow the background model; the rest may be the object leaving the picture.
PLAIN_BORDER = 0.7
# Spread (sRGB) of a border that still counts as plain: JPEG and video noise stay below .02, paper and sheets below .05.
MAX_SPREAD = 0.05
# Least distance (sRGB, largest channel) from the background at which a pixel is certainly not background.
MIN_CONTRAST = 0.035
MIN_SHARE, MAX_SHARE = 0.001, 0.97


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


def isolate(rgba: FloatArray, mask: FloatArray | None = None, segment: Segment | None = None) -> Isolated:
    """Cuts the object out by the first means there is: mask, the picture's alpha, plain background, network.

    Args:
        rgba: (H, W, 4) float32, straight alpha.
        mask: (H, W) the user's own mask in [0, 1].
        segment: A segmentation network, where one is installed.

    Raises:
        InputError: Nothing works: the mask is empty or full, or the background is not plain and there is no network.
    """
    if mask is not None:
        return _checked(np.dstack([rgba[..., :3], mask]), "mask file")
    if has_alpha(rgba):
        return _checked(rgba, "alpha")
    try:
        return _checked(remove_plain_background(rgba[..., :3]), "plain background")
    except InputError:
        if segment is None:
            raise
    return _checked(np.dstack([rgba[..., :3], segment(rgba[..., :3])]), "segmentation")


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


def remove_plain_background(rgb: FloatArray) -> FloatArray:
    """Removes a background of one colour or a smooth gradient.

    The background's colour is a quadratic in x and y fitted robustly to the border. What follows it and is connected
    with the border is background, and so are enclosed holes of exactly its colour. Along the outline alpha is the
    share of the nearest inner colour in the pixel's mixture with the background.

    Args:
        rgb: (H, W, 3) float32 in [0, 1].

    Returns:
        (H, W, 4) float32, straight alpha, colours without the background's share.

    Raises:
        InputError: The border is not plain, or nothing stands out from it.
    """
    background, spread, plain = fit_background(rgb)
    if plain < PLAIN_BORDER or spread > MAX_SPREAD:
        raise InputError(
            "The background is not plain, so the object cannot be told from it.",
            "Use transparency or a plain background, give a mask, or get the network that finds the object: "
            "im3d models download isnet (177 MB).",
        )
    distance = _largest(np.abs(rgb - background))
    contrast = max(MIN_CONTRAST, 4 * spread)
    solid = _without_specks(~_flooded(distance, contrast, spread))
    if solid.mean() < MIN_SHARE:
        raise InputError(
            "Nothing stands out from the picture's background.", "Use another background, transparency, or a mask."
        )
    return _unmixed(rgb, background, distance, solid)


def fit_background(rgb: FloatArray) -> tuple[FloatArray, float, float]:
    """The background's colour everywhere, from the picture's border.

    Returns:
        The background (H, W, 3); the border's spread about it (robust standard deviation); the share of the border
        that follows it, in [0, 1].
    """
    height, width = rgb.shape[:2]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = 2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
    margin = max(2, min(height, width) // 64)
    border = np.ones((height, width), dtype=bool)
    border[margin:-margin, margin:-margin] = False
    A, b = terms[border], rgb[border]
    # The commonest colour of the border starts the fit: an object that leaves the picture must not pull it.
    bins = (b * 15.999).astype(int) @ (256, 16, 1)
    start = np.median(b[bins == np.bincount(bins).argmax()], axis=0)
    residual = _largest(np.abs(b - start))
    keep = residual < max(0.1, float(np.quantile(residual, 0.5)))
    for _ in range(8):
        coefficients = np.linalg.lstsq(A[keep], b[keep], rcond=None)[0]
        residual = _largest(np.abs(b - A @ coefficients))
        spread = 1.4826 * float(np.median(residual[keep]))
        kept, keep = keep, residual < max(0.02, 4 * spread)
        if keep.sum() < 2 * A.shape[1]:
            return np.broadcast_to(start, rgb.shape).astype(np.float32), 1.0, 0.0
        if np.array_equal(keep, kept):
            break
    return (terms @ coefficients).astype(np.float32), spread, float(keep.mean())


def _flooded(distance: FloatArray, contrast: float, spread: float) -> BoolArray:
    """Background: connected with the border through pixels near its colour, or an enclosed hole of exactly its colour.

    A bright spot or a painted eye also resembles a white background, but shades off; a hole is flat and hard-edged.
    """
    near = distance < contrast
    labels, count = ndimage.label(near)
    outside = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    background = np.isin(labels, outside[outside > 0])
    exact = max(2.5 / 255, 3 * spread)
    for label, window in enumerate(ndimage.find_objects(labels, count), start=1):
        if window is None or label in outside:
            continue
        inside = labels[window] == label
        if inside.sum() < 2e-4 * distance.size:
            continue
        core = ndimage.binary_erosion(inside)
        if not core.any() or np.quantile(distance[window][core], 0.95) > exact:
            continue
        grown = tuple(slice(max(0, s.start - 2), s.stop + 2) for s in window)
        inside = labels[grown] == label
        rim = ndimage.binary_dilation(inside, iterations=2) & ~ndimage.binary_dilation(inside)
        if np.median(distance[grown][rim]) > 3 * contrast:
            background[grown] |= inside
    return background


def _without_specks(solid: BoolArray) -> BoolArray:
    labels, count = ndimage.label(solid, structure=np.ones((3, 3)))
    if count == 0:
        return solid
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    return (areas >= max(4, 5e-4 * areas.max()))[labels]


def _unmixed(rgb: FloatArray, background: FloatArray, distance: FloatArray, solid: BoolArray) -> FloatArray:
    """Alpha and colour of the outline's pixels C = α·F + (1 − α)·B, with F from the nearest pixel inside.

    Args:
        distance: (H, W) from the background, in the channel that differs most.
        solid: (H, W) the object, its outline included.
    """
    inner = ndimage.binary_erosion(solid, structure=np.ones((3, 3)), iterations=2, border_value=1)
    # Thin parts have no inside: their least mixed pixels stand in for it.
    ridge = solid & (distance >= ndimage.maximum_filter(distance, 3)) & ~ndimage.binary_dilation(inner, iterations=4)
    sure = inner | ridge
    if not sure.any():
        sure = solid
    rows, columns = ndimage.distance_transform_edt(~sure, return_distances=False, return_indices=True)
    band = ndimage.binary_dilation(solid, structure=np.ones((3, 3))) & ~sure
    # Only the band, a few per cent of the picture, is a mixture.
    C, B, F = rgb[band], background[band], rgb[rows[band], columns[band]]
    span = F - B
    share = ((C - B) * span).sum(axis=-1) / np.maximum((span * span).sum(axis=-1), 1e-4)
    a = np.clip(share, 0, 1).astype(np.float32)
    a[a < VISIBLE / 2] = 0
    result = np.dstack([rgb, sure.astype(np.float32)])
    result[band, 3] = a
    a = a[:, None]
    own = (C - (1 - a) * B) / np.maximum(a, 0.1)
    # The less of the object a pixel holds, the less its own colour is worth.
    result[band, :3] = np.where(a > 0, np.clip(a * own + (1 - a) * F, 0, 1), C)
    return result


def _largest(values: FloatArray) -> FloatArray:
    """The largest of three channels, (…, 3) → (…). numpy's own reduction is slow over so short an axis."""
    result: FloatArray = np.maximum(np.maximum(values[..., 0], values[..., 1]), values[..., 2])
    return result


def _checked(rgba: FloatArray, method: Method) -> Isolated:
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
    warnings = (f"The object touches the {' and '.join(cut)} of the picture and may be cut off.",) if cut else ()
    return Isolated(bled(np.ascontiguousarray(rgba, dtype=np.float32)), method, warnings)
