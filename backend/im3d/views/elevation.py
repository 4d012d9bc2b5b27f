"""The orbit that a set of views was taken from, where its maker did not say: elevation, direction of turn, distance.

The paper estimates the elevation with a small network on DINO features (3.3), trained on renders that are not public.
The masks tell it without one. Under the right cameras the visual hull of the masks fills every mask again; under wrong
ones the silhouettes carve too much. Where they cannot tell, the colours do: under the right cameras the views that see
a point of the hull agree on its colour.

Two shapes of ambiguity need the colours. A body of revolution has the same silhouettes from all around, and for each
elevation there is another body that fits. And reversing the turn, negating the elevation and mirroring the object in
depth leave every silhouette of an orthographic camera as it was (the Necker reversal): only perspective and what hides
what tell them apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from im3d.core.images import FloatArray, OrbitViews
from im3d.core.orbit import Cameras, Orbit, focal_length
from im3d.errors import InputError
from im3d.views.visual_hull import Hull, carve, colour_disagreement, silhouettes

Method = Literal["given", "masks", "colours", "fits", "prior"]
# Higher is better; the views' orbit carries the hypothesis. Meant for a short fit and its PSNR.
PhotometricScore = Callable[[OrbitViews], float]

LOWEST_DEG, HIGHEST_DEG = -20.0, 70.0
COARSE_STEP_DEG = 5.0
_ELEVATIONS = [float(e) for e in np.arange(LOWEST_DEG, HIGHEST_DEG + 1, COARSE_STEP_DEG)]
# Side of the working pictures in pixels, and cells of the hull's grid.
COARSE_SIZE, COARSE_CELLS = 64, 48**3
FINE_SIZE, FINE_CELLS = 96, 96**3
# What the root mean square disagreement of colours weighs against the share of the masks that the hull misses.
COLOUR_WEIGHT = 0.25
# Hypotheses whose hull is this much worse than the best one's are out.
MASK_TIE = 0.04
# Margins of the total error, between the answer and 10° off or the other turn, below which we do not know.
FIT_TIE = 0.002
SURE_MARGIN = 0.006
# Views whose outlines agree less than this under every hypothesis do not show one object.
LEAST_AGREEMENT = 0.3
# Below this (strictly) they are hardly one even turn: right orbits had .91 to 1, wrong ones .41 to .80.
EVEN_TURN = 0.85
# Error that the prior adds 30° outside the elevations people photograph from.
PRIOR_WEIGHT = 0.001
LIKELY_DEG = (0.0, 20.0)


@dataclass(frozen=True)
class OrbitEstimate:
    """What was found.

    Attributes:
        orbit: The views' orbit with elevation, direction and distance filled in.
        direction: +1: the views turn as `im3d.core.orbit` says; −1: the other way, and the azimuths were negated.
        elevation_confidence: In [0, 1]; below 0.5 the elevation is little more than a guess.
        direction_confidence: In [0, 1]; low also where both turns look the same and it does not matter.
        method: What decided: it was given, the masks alone, the colours on the hull, fits, or the prior.
        agreement: Mean intersection over union of the hull's silhouettes with the masks, of which two may err.
        strict_agreement: The same where none may.
        margin: Error that 10° more or less of elevation add; mask share plus weighted colour error.
    """

    orbit: Orbit
    direction: int
    elevation_confidence: float
    direction_confidence: float
    method: Method
    agreement: float
    strict_agreement: float
    margin: float

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user of the views should know, a sentence each."""
        if self.strict_agreement >= EVEN_TURN:
            return ()
        return (
            "The views do not fit one even turn: the result may be broken. Check that they go once around one still "
            "object, evenly, with none missing and none cropped.",
        )


@dataclass(frozen=True)
class _Hypothesis:
    elevation_deg: float
    direction: int
    agreement: float
    disagreement: float

    @property
    def error(self) -> float:
        outside = max(LIKELY_DEG[0] - self.elevation_deg, self.elevation_deg - LIKELY_DEG[1], 0.0)
        prior = PRIOR_WEIGHT * (outside / 30) ** 2
        return 1 - self.agreement + COLOUR_WEIGHT * self.disagreement + prior


def estimate_orbit(
    views: OrbitViews,
    radius_known: bool = False,
    direction_known: bool = False,
    photometric_score: PhotometricScore | None = None,
) -> OrbitEstimate:
    """Finds what the views' orbit leaves open.

    Args:
        views: K views. An elevation in their orbit is kept.
        radius_known: Whether the orbit's distance is the true one. Otherwise it is changed so that the object's
            longest side becomes 1: pictures alone do not tell a small near object from a large far one.
        direction_known: Whether the sign of the azimuths can be trusted.
        photometric_score: Called at most four times, to break ties that the colours on the hull leave.

    Raises:
        InputError: No elevation explains the masks: the views do not show one rigid object on one orbit.
    """
    orbit = views.orbit
    directions = (1,) if direction_known else (1, -1)
    if orbit.elevation_deg is not None and direction_known and radius_known:
        return OrbitEstimate(orbit, 1, 1.0, 1.0, "given", 1.0, 1.0, math.inf)

    best, tried, method, hull = _search(views, directions, photometric_score)
    longest = float(hull.extent().max())
    if best.agreement < LEAST_AGREEMENT or longest == 0:
        raise InputError(
            "The views do not fit together: no orbit about one object explains their outlines.",
            "Check that they show one full turn of one still object, in order.",
        )
    strict = _level_of_masks(views.rgba[..., 3], orbit, FINE_SIZE, FINE_CELLS, 0)
    elevation_given = orbit.elevation_deg is not None
    margin = math.inf if elevation_given else _elevation_margin(best, tried)
    turn_margin = min((h.error for h in tried if h.direction != best.direction), default=math.inf) - best.error
    found = replace(
        orbit,
        azimuths_deg=tuple(best.direction * a for a in orbit.azimuths_deg),
        elevation_deg=orbit.elevation_deg if elevation_given else round(best.elevation_deg, 2),
        radius=orbit.radius if radius_known else orbit.radius / longest,
    )
    return OrbitEstimate(
        orbit=found,
        direction=best.direction,
        elevation_confidence=_confidence(margin),
        direction_confidence=_confidence(turn_margin),
        method=method,
        agreement=best.agreement,
        strict_agreement=strict.judge(best.elevation_deg, best.direction, colours=False).agreement,
        margin=margin,
    )


@dataclass(frozen=True)
class _Level:
    """The views at one working resolution: a window about the optical centre that just holds the object."""

    orbit: Orbit
    rgb: FloatArray
    masks: NDArray[np.uint8]
    focal: float
    cells: int
    misses: int

    def cameras(self, elevation_deg: float, direction: int) -> Cameras:
        orbit = replace(
            self.orbit,
            azimuths_deg=tuple(direction * a for a in self.orbit.azimuths_deg),
            elevation_deg=elevation_deg,
        )
        size = self.masks.shape[1]
        return Cameras(orbit.cameras(size).viewmats, self.focal, size)

    def hull(self, elevation_deg: float, direction: int) -> tuple[Hull, Cameras]:
        cameras = self.cameras(elevation_deg, direction)
        low, high = self._bounds(elevation_deg)
        return carve(self.masks, cameras, low, high, self.cells, self.misses), cameras

    def judge(self, elevation_deg: float, direction: int, colours: bool) -> _Hypothesis:
        hull, cameras = self.hull(elevation_deg, direction)
        again = silhouettes(hull, cameras).astype(bool)
        masks = self.masks.astype(bool)
        both, either = (again & masks).sum(axis=(1, 2)), (again | masks).sum(axis=(1, 2))
        agreement = float((both / np.maximum(either, 1)).mean())
        disagreement = colour_disagreement(hull, cameras, self.rgb, self.masks) if colours else 0.0
        return _Hypothesis(elevation_deg, direction, agreement, disagreement)

    def _bounds(self, elevation_deg: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """A box that holds everything the masks can hold at this elevation."""
        half, r = self.masks.shape[1] / 2, self.orbit.radius
        rows = np.flatnonzero(self.masks.any(axis=(0, 2)))
        columns = np.flatnonzero(self.masks.any(axis=(0, 1)))
        side = max(half - columns[0], columns[-1] + 1 - half) / self.focal
        reach = r * math.sin(math.atan(side))
        top, bottom = (half - rows[0]) / self.focal, (half - rows[-1] - 1) / self.focal
        sin, cos = math.sin(math.radians(elevation_deg)), math.cos(math.radians(elevation_deg))
        # Height z at which a point s nearer to the camera than the axis projects to the tangent t.
        heights = [
            (t * r + s * (sin - t * cos)) / max(cos + t * sin, 0.1) for t in (top, bottom) for s in (-reach, reach)
        ]
        limit = 1.4 * r * max(side, abs(top), abs(bottom))
        low = np.array([-reach, -reach, max(min(heights), -limit)])
        high = np.array([reach, reach, min(max(heights), limit)])
        return low, high


def _level(views: OrbitViews, size: int, cells: int, misses: int = 0) -> _Level:
    alpha = views.rgba[..., 3]
    level = _level_of_masks(alpha, views.orbit, size, cells, misses)
    box = _window(alpha)
    coverage = np.stack([_small(a, size, box) for a in alpha])
    light = np.stack([np.stack([_small(v[..., c] * v[..., 3], size, box) for c in range(3)], -1) for v in views.rgba])
    return replace(level, rgb=light / np.maximum(coverage, 1e-3)[..., None])


def _level_of_masks(alpha: FloatArray, orbit: Orbit, size: int, cells: int, misses: int) -> _Level:
    """A level without colours, of (K, S, S) alpha."""
    box = _window(alpha)
    masks = np.stack([_small(a, size, box) > 0.5 for a in alpha]).astype(np.uint8)
    focal = focal_length(orbit.fov_deg, alpha.shape[1]) * size / (box[2] - box[0])
    return _Level(orbit, np.empty(0, np.float32), masks, focal, cells, misses)


def _window(alpha: FloatArray) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the square about the middle that just holds what (K, S, S) alpha shows."""
    solid = alpha > 0.5
    empty = np.flatnonzero(~solid.any(axis=(1, 2)))
    if len(empty):
        raise InputError(f"View {empty[0]} shows no object.", "Bring views that all show the object.")
    rows, columns = np.flatnonzero(solid.any(axis=(0, 2))), np.flatnonzero(solid.any(axis=(0, 1)))
    centre = alpha.shape[1] / 2
    reach = max(centre - rows[0], rows[-1] + 1 - centre, centre - columns[0], columns[-1] + 1 - centre)
    reach = min(1.02 * reach, centre)
    return centre - reach, centre - reach, centre + reach, centre + reach


def _small(channel: FloatArray, size: int, box: tuple[float, float, float, float]) -> NDArray[np.float32]:
    image = Image.fromarray(np.ascontiguousarray(channel))
    return np.asarray(image.resize((size, size), Image.Resampling.BOX, box=box))


def agreed_silhouettes(
    masks: NDArray[np.bool_], orbit: Orbit, direction_known: bool, misses: int, size: int = 144, cells: int = 112**3
) -> tuple[NDArray[np.bool_], float]:
    """The silhouettes of the space that at most `misses` views see empty, under the elevation that fits best.

    Args:
        masks: (K, S, S) of the object; a few may have holes.
        orbit: Of the views. Where the elevation is unknown, steps of 5° are tried.
        direction_known: Whether the sign of the azimuths can be trusted.
        misses: Views that may be wrong.
        size: Side of the working pictures.
        cells: Of the hull's grid.

    Returns:
        The silhouettes (K, S, S), coarse; their agreement with the masks, mean intersection over union, in [0, 1].

    Raises:
        InputError: A mask is empty.
    """
    alpha = masks.astype(np.float32)
    rough = _level_of_masks(alpha, orbit, COARSE_SIZE, COARSE_CELLS, misses)
    elevations = _ELEVATIONS if orbit.elevation_deg is None else [orbit.elevation_deg]
    tried = [rough.judge(e, d, colours=False) for d in ((1,) if direction_known else (1, -1)) for e in elevations]
    best = max(tried, key=lambda h: h.agreement)
    level = _level_of_masks(alpha, orbit, size, cells, misses)
    hull, cameras = level.hull(best.elevation_deg, best.direction)
    seen = silhouettes(hull, cameras).astype(bool)
    left, _, right, _ = _window(alpha)
    at = np.floor((np.arange(masks.shape[1]) + 0.5 - left) * size / (right - left)).astype(int)
    there = (at >= 0) & (at < size)
    at = at.clip(0, size - 1)
    return seen[:, at][:, :, at] & there[:, None] & there, best.agreement


def _search(
    views: OrbitViews, directions: Sequence[int], photometric_score: PhotometricScore | None
) -> tuple[_Hypothesis, list[_Hypothesis], Method, Hull]:
    """The best hypothesis, everything that was judged finely, what decided, and the best hypothesis' hull."""
    given = views.orbit.elevation_deg
    grid = _ELEVATIONS if given is None else [given]
    # Masks of real pictures fit exactly; generated ones drift by a pixel, which would carve thin parts away.
    tolerances = (0, 1, 2) if len(views.rgba) >= 12 else (0,)
    coarse = _level_of_masks(views.rgba[..., 3], views.orbit, COARSE_SIZE, COARSE_CELLS, 0)
    levels = [replace(coarse, misses=misses) for misses in tolerances]
    sweeps = [[level.judge(e, d, colours=False) for d in directions for e in grid] for level in levels]
    misses = int(np.argmax([max(h.agreement for h in sweep) for sweep in sweeps]))
    rough, fine = sweeps[misses], _level(views, FINE_SIZE, FINE_CELLS, misses)
    limit = max(h.agreement for h in rough) - MASK_TIE
    tried = [fine.judge(h.elevation_deg, h.direction, colours=True) for h in rough if h.agreement >= limit]
    if given is None:
        step = COARSE_STEP_DEG / 2
        while step > 0.5:
            for d in sorted({h.direction for h in tried}):
                centre = min((h for h in tried if h.direction == d), key=lambda h: h.error).elevation_deg
                tried += [fine.judge(centre + s, d, colours=True) for s in (-step, step)]
            step /= 2
    best = min(tried, key=lambda h: h.error)
    method: Method = "masks" if best.agreement >= max(h.agreement for h in tried) - 1e-3 else "colours"
    tied = _apart([h for h in tried if h.error < best.error + FIT_TIE])
    if len(tied) > 1 and photometric_score is not None:
        scores = [photometric_score(replace(views, orbit=_hypothetical(views.orbit, h))) for h in tied]
        best, method = tied[int(np.argmax(scores))], "fits"
    elif len(tied) > 1:
        method = "prior"
    return best, tried, method, fine.hull(best.elevation_deg, best.direction)[0]


def _apart(hypotheses: Sequence[_Hypothesis], least_deg: float = 7.5, most: int = 4) -> list[_Hypothesis]:
    """The best of the hypotheses that differ in direction or by a visible angle."""
    chosen: list[_Hypothesis] = []
    for h in sorted(hypotheses, key=lambda h: h.error):
        if all(h.direction != c.direction or abs(h.elevation_deg - c.elevation_deg) >= least_deg for c in chosen):
            chosen.append(h)
    return chosen[:most]


def _hypothetical(orbit: Orbit, h: _Hypothesis) -> Orbit:
    azimuths = tuple(h.direction * a for a in orbit.azimuths_deg)
    return replace(orbit, azimuths_deg=azimuths, elevation_deg=h.elevation_deg)


def _elevation_margin(best: _Hypothesis, tried: Sequence[_Hypothesis]) -> float:
    others = [
        h.error for h in tried if h.direction == best.direction and abs(h.elevation_deg - best.elevation_deg) >= 7.5
    ]
    # Hypotheses that were not judged finely had lost by their masks already.
    return min(others, default=best.error + MASK_TIE) - best.error


def _confidence(margin: float) -> float:
    return 1.0 if math.isinf(margin) else 1 - 0.5 ** (max(margin, 0.0) / SURE_MARGIN)
