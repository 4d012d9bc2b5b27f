"""The object before a background of one colour or a smooth gradient: where it stands out, and its outline's mixtures.

White things stand on white grounds, and both video and generators leave noise about an object that is as strong as its
faintest parts. Three thresholds tell them apart: near strong edges only what is clearly different counts; elsewhere the
background's own noise decides, for regions that are wider than such noise; what an outline encloses is object, however
white, except for pockets that look through to the background. Soft shadows on the ground are background.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from im3d.core.images import FloatArray
from im3d.errors import InputError
from im3d.views.framing import VISIBLE

BoolArray = NDArray[np.bool_]

# The share of the border that must follow the background model; the rest may be the object leaving the picture.
PLAIN_BORDER = 0.7
# Spread (sRGB) of a border that still counts as plain: JPEG and video noise stay below .02, paper and sheets below .05.
MAX_SPREAD = 0.05
# Distance (sRGB, largest channel) from the background at which a pixel is certainly not background.
MIN_CONTRAST = 0.035
# The least distance that is told from noise after smoothing, and the largest that noise about edges has.
FAINT, HALO = 3 / 255, 12 / 255
# What compression leaves about an edge: this share of its contrast, as far as a block of 8 pixels reaches.
HALO_SHARE, HALO_REACH = 0.1, 8
# Faint regions are object when a disc of this radius (pixels) fits into them; noise about edges is narrower.
WIDE = 3
# The outline lies where this share of the contrast behind it is reached, at most so many pixels inward.
RIM_SHARE, RIM = 0.1, 4
# Pockets smaller than this share of the picture are filled.
SMALL = 1e-4


@dataclass(frozen=True)
class Pocket:
    """A part inside the outline that has the background's colour: a hole, or something of that colour.

    Attributes:
        window: The rows and columns of the picture that it lies in.
        inside: (h, w) of the window.
        hard: Whether its rim is: white parts of the object shade off, what is seen through a hole ends at an edge.
        width: Of the largest disc in it, in pixels.
    """

    window: tuple[slice, slice]
    inside: BoolArray
    hard: bool
    width: float


@dataclass(frozen=True)
class Outline:
    """What was found in a picture.

    Attributes:
        background: (H, W, 3) its colour.
        distance: (H, W) of the picture from it, in the channel that differs most.
        solid: (H, W) the object with all its pockets filled.
        shadow: (H, W) what is darker than the background and was taken for a shadow on it.
        pockets: Where the object may have holes.
    """

    background: FloatArray
    distance: FloatArray
    solid: BoolArray
    shadow: BoolArray
    pockets: tuple[Pocket, ...]

    def open(self, pocket: Pocket, solid: BoolArray) -> None:
        """Takes a hole out of `solid`; its blurred rim goes when the outline is trimmed."""
        solid[pocket.window] &= ~ndimage.binary_dilation(pocket.inside)


def find_outline(rgb: FloatArray) -> Outline:
    """The object's outline by its distance from the background.

    Args:
        rgb: (H, W, 3) float32 in [0, 1].

    Raises:
        InputError: The border is not plain, or nothing stands out from it.
    """
    background, spread, plain = fit_background(rgb)
    if plain < PLAIN_BORDER or spread > MAX_SPREAD:
        raise InputError(
            "The object cannot be separated from this background.",
            "Use transparency, a plain background or a mask, or download the background remover.",
            "download isnet",
        )
    contrast = max(MIN_CONTRAST, 4 * spread)
    background, noise = _followed(rgb, background, contrast)
    difference = rgb - background
    distance = largest(np.abs(difference))
    smooth = largest(np.abs(np.stack([ndimage.uniform_filter(difference[..., c], 3) for c in range(3)], axis=-1)))
    faint = max(FAINT, 4 * noise)
    about = np.clip(HALO_SHARE * ndimage.maximum_filter(distance, 2 * HALO_REACH + 1), faint, max(HALO, contrast))
    shadow = _shadow(rgb, background, smooth < faint)
    clear = without_specks((distance > about) & ~shadow)
    solid = ~flooded(~clear)
    weak = ~flooded((smooth < faint) | shadow) & ~filled(solid)
    solid = filled(solid | opened(weak, WIDE))
    # Where a faint outline has a gap, what it encloses is open to the outside; narrow gaps themselves stay open.
    solid = without_specks(solid | _large(filled(closed(solid, WIDE)) & ~solid))
    if solid.mean() < 1e-3:
        raise InputError("No object found in the picture.", "Use another background, transparency, or a mask.")
    bare = (smooth < faint) | shadow
    pockets = _pockets(np.where(shadow, 0, distance), solid & bare, contrast, faint)
    return Outline(background, distance, solid, shadow & (distance > about), pockets)


def cut_out(rgb: FloatArray, outline: Outline, solid: BoolArray) -> FloatArray:
    """The picture with alpha: 1 inside, and along the outline the share of the object in each pixel's mixture.

    Args:
        rgb: (H, W, 3) float32 in [0, 1].
        outline: Of this picture.
        solid: (H, W) the object, as decided.

    Returns:
        (H, W, 4) float32, straight alpha, colours without the background's share.
    """
    return _unmixed(rgb, outline, _trimmed(solid, outline.distance))


def fit_background(rgb: FloatArray) -> tuple[FloatArray, float, float]:
    """The background's colour everywhere, a quadratic in x and y, from the picture's border.

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
    residual = largest(np.abs(b - start))
    keep = residual < max(0.1, float(np.quantile(residual, 0.5)))
    for _ in range(8):
        coefficients = np.linalg.lstsq(A[keep], b[keep], rcond=None)[0]
        residual = largest(np.abs(b - A @ coefficients))
        spread = 1.4826 * float(np.median(residual[keep]))
        kept, keep = keep, residual < max(0.02, 4 * spread)
        if keep.sum() < 2 * A.shape[1]:
            return np.broadcast_to(start, rgb.shape).astype(np.float32), 1.0, 0.0
        if np.array_equal(keep, kept):
            break
    return (terms @ coefficients).astype(np.float32), spread, float(keep.mean())


def _followed(rgb: FloatArray, background: FloatArray, contrast: float) -> tuple[FloatArray, float]:
    """The background corrected by what is seen of it inside the picture, and the noise that is left (one sigma).

    Generators' grounds are a level or two off about the object; a border does not tell.
    """
    height, width = rgb.shape[:2]
    difference = rgb - background
    ground = flooded(largest(np.abs(difference)) < contrast)
    step = max(1, min(height, width) // 72)
    weight = _blocks(ground.astype(np.float32), step)
    near = ndimage.gaussian_filter(weight, 2.0)
    result = background.copy()
    for c in range(3):
        mean = ndimage.gaussian_filter(_blocks(difference[..., c] * ground, step), 2.0) / np.maximum(near, 0.02)
        mean[near < 0.02] = 0
        offset = ndimage.zoom(mean, step, order=1, grid_mode=True, mode="nearest")
        result[..., c] += np.pad(offset, ((0, step), (0, step)), mode="edge")[:height, :width]
    left = largest(np.abs(rgb - result))[ground]
    return result, 1.4826 * float(np.median(left)) if len(left) else 0.0


def _blocks(values: FloatArray, step: int) -> FloatArray:
    """Means of blocks of step × step pixels; what does not fill a block is left out."""
    height, width = (n // step * step for n in values.shape)
    blocks: FloatArray = values[:height, :width].reshape(height // step, step, width // step, step).mean(axis=(1, 3))
    return blocks


def _shadow(rgb: FloatArray, background: FloatArray, ground: BoolArray) -> BoolArray:
    """Soft shadows on the ground: the background darkened without another hue and without an edge, below the object.

    Args:
        rgb: (H, W, 3).
        background: (H, W, 3) its colour.
        ground: (H, W) what looks like the bare background.
    """
    height = rgb.shape[0]
    share = (rgb * background).sum(axis=-1) / np.maximum((background * background).sum(axis=-1), 1e-3)
    hue = largest(np.abs(rgb - share[..., None] * background))
    light = ndimage.gaussian_filter(share, 1.0)
    slope = np.hypot(*np.gradient(light))
    # A shadow fades over an eighth of the picture or more, an outline over a few pixels: four levels in each.
    soft = (hue < FAINT + 0.04 * (1 - share)) & (share > 0.3) & (share < 1.02) & (slope < min(7 / height, 0.014))
    outside = flooded(ground)
    rows = np.flatnonzero((~outside).any(axis=1))
    if not len(rows):
        return np.zeros_like(ground)
    foot = rows[-1] - 0.45 * (rows[-1] - rows[0])
    soft[: int(foot)] = False
    # Not through gaps in a faint outline.
    result: BoolArray = flooded(opened(outside | soft, WIDE)) & ~outside
    return result


def _large(parts: BoolArray) -> BoolArray:
    """The parts of (H, W) that are more than SMALL."""
    labels, _ = ndimage.label(parts)
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    result: BoolArray = (areas >= SMALL * parts.size)[labels]
    return result


def _pockets(distance: FloatArray, bare: BoolArray, contrast: float, faint: float) -> tuple[Pocket, ...]:
    labels, count = ndimage.label(bare)
    found: list[Pocket] = []
    for label, window in enumerate(ndimage.find_objects(labels, count), start=1):
        grown = tuple(slice(max(0, s.start - 2 * RIM), s.stop + 2 * RIM) for s in window)
        inside = labels[grown] == label
        if inside.sum() < SMALL * distance.size:
            continue
        # Drawn edges are sharp; those of videos and generators are as wide as their blur.
        one, three, five, eight = (ndimage.binary_dilation(inside, iterations=n) for n in (1, 3, 5, 8))
        near, far = (float(np.median(distance[grown][rim])) for rim in (three & ~one, eight & ~five))
        # A highlight shades off inside; the background is as flat as it is elsewhere.
        flat = float(np.quantile(distance[grown][inside], 0.75)) < 0.8 * faint
        hard = flat and (near > 2 * contrast or far > 4 * contrast)
        width = 2 * float(ndimage.distance_transform_edt(np.pad(inside, 1)).max())
        found.append(Pocket((grown[0], grown[1]), inside, hard, width))
    return tuple(found)


def _trimmed(solid: BoolArray, distance: FloatArray) -> BoolArray:
    """The object without the blur and the noise about its outline."""
    top = ndimage.maximum_filter(np.where(solid, distance, 0), 7)
    near = ndimage.distance_transform_edt(np.pad(solid, 1, mode="edge"))[1:-1, 1:-1] <= RIM
    blur = solid & near & (distance < RIM_SHARE * top)
    labels, count = ndimage.label(blur | ~solid)
    reached = np.zeros(count + 1, dtype=bool)
    reached[labels[~solid]] = True
    trimmed = solid & ~reached[labels]
    # Faint tufts that are left sit on the outline like burrs.
    return trimmed & (opened(trimmed, WIDE) | (distance > 0.1))


def _unmixed(rgb: FloatArray, outline: Outline, solid: BoolArray) -> FloatArray:
    """Alpha and colour of the outline's pixels C = α·F + (1 − α)·B, with F from the nearest pixel inside."""
    background, distance = outline.background, outline.distance
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
    square = (span * span).sum(axis=-1)
    a = np.clip(((C - B) * span).sum(axis=-1) / np.maximum(square, 1e-4), 0, 1).astype(np.float32)
    # White before white has no mixture to measure: the outline itself says how much of a pixel is object.
    coverage = ndimage.uniform_filter(solid.astype(np.float32), 3)[band]
    trust = np.clip((np.sqrt(square) - 0.1) / 0.2, 0, 1).astype(np.float32)
    a = trust * a + (1 - trust) * coverage
    a[a < VISIBLE / 2] = 0
    result = np.dstack([rgb, sure.astype(np.float32)])
    result[band, 3] = a
    a = a[:, None]
    own = (C - (1 - a) * B) / np.maximum(a, 0.1)
    # The less of the object a pixel holds, the less its own colour is worth.
    result[band, :3] = np.where(a > 0, np.clip(a * own + (1 - a) * F, 0, 1), C)
    return result


def flooded(free: BoolArray) -> BoolArray:
    """What of `free` (H, W) is connected with the picture's border."""
    labels, _ = ndimage.label(free)
    edge = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    reached = np.zeros(int(labels.max()) + 1, dtype=bool)
    reached[edge[edge > 0]] = True
    result: BoolArray = reached[labels]
    return result


def filled(solid: BoolArray) -> BoolArray:
    """`solid` (H, W) with what it encloses."""
    return ~flooded(~solid)


def closed(solid: BoolArray, radius: int) -> BoolArray:
    """`solid` (H, W) with gaps bridged that are narrower than a disc of `radius` pixels."""
    padded = np.pad(solid, radius + 1)
    grown = ndimage.distance_transform_edt(~padded) <= radius
    result: BoolArray = (ndimage.distance_transform_edt(grown) > radius)[
        radius + 1 : -radius - 1, radius + 1 : -radius - 1
    ]
    return result | solid


def opened(solid: BoolArray, radius: int) -> BoolArray:
    """The parts of `solid` (H, W) into which a disc of `radius` pixels fits."""
    if not solid.any():
        return solid
    core = ndimage.distance_transform_edt(np.pad(solid, 1, mode="edge"))[1:-1, 1:-1] > radius
    if not core.any():
        return core
    result: BoolArray = (ndimage.distance_transform_edt(~core) <= radius) & solid
    return result


def without_specks(solid: BoolArray) -> BoolArray:
    """`solid` (H, W) without pieces far smaller than the largest."""
    labels, count = ndimage.label(solid, structure=np.ones((3, 3)))
    if count == 0:
        return solid
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    result: BoolArray = (areas >= max(4, 5e-4 * areas.max()))[labels]
    return result


def largest(values: FloatArray) -> FloatArray:
    """The largest of three channels, (…, 3) → (…). numpy's own reduction is slow over so short an axis."""
    result: FloatArray = np.maximum(np.maximum(values[..., 0], values[..., 1]), values[..., 2])
    return result
