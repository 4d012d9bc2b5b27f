"""The object cut out of all views of an orbit, each with knowledge of the others.

A white part before a white ground looks like a hole in one view. From other sides the same place is shaded, or there is
something behind it. The space that all outlines leave to the object therefore decides what a picture alone cannot:
whether one looks through a pocket, and whether what only the background or only the network holds to be object is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np

from im3d.core.images import FloatArray
from im3d.core.orbit import Orbit
from im3d.core.threads import on_all_cores
from im3d.errors import InputError
from im3d.views.elevation import agreed_silhouettes
from im3d.views.masks import Isolated, Reading, Segment, read_picture
from im3d.views.plain_background import BoolArray

Result = TypeVar("Result")

# Fewer views, or outlines that fit less well together, say nothing about one another.
LEAST_VIEWS, LEAST_AGREEMENT = 8, 0.8
# Views that may hold an object's place to be empty: the one in question, and white parts in another.
MISSES = 1


def isolate_views(
    pictures: Iterable[FloatArray], orbit: Orbit, segment: Segment | None = None, direction_known: bool = True
) -> list[Isolated]:
    """Cuts the object out of every view.

    Args:
        pictures: K pictures, (H, W, 4) float32, straight alpha, of one size; they may come one by one.
        orbit: Of the views; the elevation may be unknown.
        segment: A segmentation network, where one is installed.
        direction_known: Whether the sign of the azimuths can be trusted.

    Raises:
        InputError: A view cannot be cut out; the message begins with its number.
    """

    def read(item: tuple[int, FloatArray]) -> Reading:
        return _named(item[0], lambda: read_picture(item[1], None, segment))

    readings = on_all_cores(read, enumerate(pictures))
    seen = _seen(readings, orbit, direction_known)

    def cut(index: int) -> Isolated:
        solid = readings[index].decided(None if seen is None else seen[index])
        return _named(index, lambda: readings[index].cut(solid))

    return on_all_cores(cut, range(len(readings)))


def common_warnings(views: Sequence[Isolated]) -> tuple[str, ...]:
    """The views' warnings, each kind once, with the number of views that have it; single views' odd pieces left out."""
    kinds: dict[str, int] = {}
    touching = "the object touches the border and may be cut off."
    for view in views:
        for warning in view.warnings:
            kind = touching if warning.startswith("The object touches") else warning
            kinds[kind] = kinds.get(kind, 0) + 1
    warnings = [f"In {kinds[touching]} of {len(views)} views {touching}"] if touching in kinds else []
    return (*warnings, *(kind for kind, count in kinds.items() if kind != touching and 2 * count > len(views)))


def _named(index: int, work: Callable[[], Result]) -> Result:
    try:
        return work()
    except InputError as error:
        raise InputError(f"View {index}: {error.message}", error.hint, error.remedy) from error


def _seen(readings: Sequence[Reading], orbit: Orbit, direction_known: bool) -> list[BoolArray] | None:
    """Where the views together hold the object to be, (H, W) for each; None where that decides or tells nothing."""
    open_questions = any(r.network is not None or (r.outline and r.outline.pockets) for r in readings)
    if len(readings) < LEAST_VIEWS or not open_questions:
        return None
    masks = [reading.undecided() for reading in readings]
    height, width = masks[0].shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.zeros((len(masks), side, side), dtype=bool)
    square[:, top : top + height, left : left + width] = masks
    try:
        silhouettes, agreement = agreed_silhouettes(square, orbit, direction_known, MISSES)
    except InputError:  # an empty mask: `cut` says so
        return None
    if agreement < LEAST_AGREEMENT:
        return None
    return list(silhouettes[:, top : top + height, left : left + width])
