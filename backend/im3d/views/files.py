"""Provided views: the user's own, from a folder of pictures of an orbit or a turntable video.

A folder holds `view_000.png` … or any pictures, taken in natural order, and optionally `orbit.json`. Without it the
azimuths are uniform, the first picture is the front, the field of view is 33.8°, and the elevation and the direction
of turn are unknown until `im3d.views.elevation` finds them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from im3d.core.images import FloatArray, OrbitViews, read_image
from im3d.core.orbit import DEFAULT_VIEWS, Orbit
from im3d.errors import InputError
from im3d.shared.names import pictures_in
from im3d.views.framing import VISIBLE
from im3d.views.masks import Method, Segment, has_alpha
from im3d.views.video import closes, read_turn, thumbnail
from im3d.views.view_masks import common_warnings, isolate_views

# Larger views are reduced: beyond this they cost memory and tell the texture nothing.
MAX_SIDE = 1024
# A folder with more pictures than this is thinned evenly.
MAX_VIEWS = 64


@dataclass(frozen=True)
class ProvidedViews:
    """The user's views and what is known about them.

    Attributes:
        views: (K, S, S, 4) cut-outs and their orbit, whose `elevation_deg` is None where orbit.json does not give it.
        radius_known: Whether orbit.json gives the camera distance; otherwise the orbit's is a default.
        direction_known: Whether orbit.json gives the azimuths; otherwise the turntable may turn the other way.
        mask_method: Where the masks came from.
        warnings: For the user, a sentence each.
    """

    views: OrbitViews
    radius_known: bool
    direction_known: bool
    mask_method: Method
    warnings: tuple[str, ...]


def read_provided_views(source: Path, views: int = DEFAULT_VIEWS, segment: Segment | None = None) -> ProvidedViews:
    """Reads a folder of pictures or a turntable video and cuts the object out of every view.

    Args:
        source: Folder or video file.
        views: Number of frames to take from a video.
        segment: Segmentation network for backgrounds that are not plain.

    Raises:
        InputError: Missing, unreadable, fewer than two views, views of different sizes, an orbit.json that does not
            fit, or no object to be seen in a view.
    """
    if not source.exists():
        raise InputError(f"{source} does not exist.", "Check the path.")
    read_warnings: tuple[str, ...] = ()
    if source.is_dir():
        pictures, orbit, read_warnings = _read_folder(source)
    else:
        pictures, azimuths = read_turn(source, views, MAX_SIDE)
        orbit = Orbit(azimuths)
    given = source / "orbit.json"
    described = Orbit.load(given, len(pictures)) if source.is_dir() and given.exists() else None
    keys = _described_keys(given) if described else set()
    if len(pictures) > MAX_VIEWS:
        chosen = evenly(len(pictures), MAX_VIEWS)
        pictures = [pictures[i] for i in chosen]
        full = described or orbit
        orbit = replace(full, azimuths_deg=tuple(full.azimuths_deg[i] for i in chosen))
    elif described:
        orbit = described
    cut, method, warnings = _isolated(pictures, orbit, "azimuths_deg" in keys, segment)
    rgba, fov = _square(cut, orbit.fov_deg)
    return ProvidedViews(
        OrbitViews(rgba, replace(orbit, fov_deg=fov)),
        radius_known="radius" in keys,
        direction_known="azimuths_deg" in keys,
        mask_method=method,
        warnings=read_warnings + warnings,
    )


def natural_order(path: Path) -> list[tuple[int, int, str]]:
    """Sort key that puts view_2 before view_10."""
    parts = re.findall(r"\d+|\D+", path.name.lower())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def evenly(count: int, wanted: int) -> list[int]:
    """`wanted` of `count` indices, evenly spaced about a closed turn; all of them if there are fewer."""
    if count <= wanted:
        return list(range(count))
    return [round(count * k / wanted) for k in range(wanted)]


def _read_folder(folder: Path) -> tuple[list[FloatArray], Orbit, tuple[str, ...]]:
    files = pictures_in(folder)
    files = [p for p in files if p.name.startswith("view_")] or files
    files.sort(key=natural_order)
    files, warnings = _without_copies(files)
    if len(files) < 2:
        found = "only one picture" if files else "no pictures"
        raise InputError(f"{folder} holds {found}.", "Bring at least two views, better sixteen, of one full turn.")
    pictures: list[FloatArray] = []
    shape: tuple[int, ...] | None = None
    for file in files:
        picture = read_image(file, MAX_SIDE)
        if shape is not None and picture.shape != shape:
            raise InputError(
                f"The views differ in size: {files[0].name} is {_dimensions(shape)}, {file.name} is "
                f"{_dimensions(picture.shape)}.",
                "Bring all views in one size.",
            )
        shape = picture.shape
        pictures.append(picture)
    if (folder / "orbit.json").exists():
        return pictures, Orbit.uniform(len(pictures)), warnings
    if closes([thumbnail(p) for p in pictures]):
        pictures.pop()
    azimuths, missing = numbered([file.stem for file in files[: len(pictures)]])
    return pictures, Orbit(azimuths), warnings + missing


def _without_copies(files: Sequence[Path]) -> tuple[list[Path], tuple[str, ...]]:
    """Each view once: of view_000.jpg and view_000.png the one that keeps transparency."""
    by_name: dict[str, list[Path]] = {}
    for file in files:
        by_name.setdefault(file.stem, []).append(file)
    copies = [sorted(same, key=lambda file: file.suffix.lower() in (".jpg", ".jpeg")) for same in by_name.values()]
    warnings: tuple[str, ...] = ()
    twice = [same for same in copies if len(same) > 1]
    if twice:
        kept, other = twice[0][:2]
        warnings = (f"Views that are there twice count once: {kept.name} was used, {other.name} was not.",)
    return [same[0] for same in copies], warnings


def numbered(names: Sequence[str]) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """Azimuths of one turn by the numbers of `view_NNN`, where some of an even sequence are missing.

    Args:
        names: Of the views, without suffix, in order.

    Returns:
        The azimuths in degrees, the first 0; even ones for other names. And a warning where numbers have gaps.
    """
    even = tuple(360.0 * k / len(names) for k in range(len(names)))
    found = [re.fullmatch(r"view_(\d{1,9})", name) for name in names]
    numbers = [int(match[1]) for match in found if match]
    if len(numbers) < max(3, len(names)) or len(set(numbers)) < len(numbers):
        return even, ()
    steps = [b - a for a, b in pairwise(numbers)]
    step = math.gcd(*steps)
    count = (numbers[-1] - numbers[0]) // step + 1
    if count == len(numbers):
        return even, ()
    warning = (
        f"The numbers of the views have gaps: {count - len(numbers)} of {count} views of an even turn are missing. The "
        "azimuths of the others follow their numbers."
    )
    return tuple(360.0 * (n - numbers[0]) / (count * step) for n in numbers), (warning,)


def _isolated(
    pictures: Sequence[FloatArray], orbit: Orbit, direction_known: bool, segment: Segment | None
) -> tuple[list[FloatArray], Method, tuple[str, ...]]:
    if any(has_alpha(p) for p in pictures) and not all(has_alpha(p) for p in pictures):
        raise InputError("Some of the views have transparency and some have none.", "Bring all views of one kind.")
    cut = isolate_views(pictures, orbit, segment, direction_known)
    methods: set[Method] = {view.method for view in cut}
    # A network steps in alone where the plain background failed; it then names the set.
    method: Method = "segmentation" if "segmentation" in methods else methods.pop()
    return [view.rgba for view in cut], method, common_warnings(cut)


def _square(pictures: Sequence[FloatArray], fov_deg: float) -> tuple[FloatArray, float]:
    """Pictures padded or cropped to a square about their centre, the optical centre, and its field of view.

    The square keeps the height unless the object reaches beyond it to the sides.

    Returns:
        (K, S, S, 4), and the full vertical angle of view in degrees.
    """
    height, width = pictures[0].shape[:2]
    reach = 0.0
    for picture in pictures:
        columns = np.flatnonzero((picture[..., 3] > VISIBLE).any(axis=0))
        reach = max(reach, abs(columns[0] - width / 2), abs(columns[-1] + 1 - width / 2))
    side = max(height, 2 * math.ceil(reach))
    side += (side - height) % 2
    left = (width - side) // 2
    square = np.zeros((len(pictures), side, side, 4), dtype=np.float32)
    top = (side - height) // 2
    into = slice(max(0, -left), max(0, -left) + min(width, side))
    out_of = slice(max(0, left), max(0, left) + min(width, side))
    for target, picture in zip(square, pictures, strict=True):
        target[top : top + height, into] = picture[:, out_of]
    fov = 2 * math.degrees(math.atan(math.tan(math.radians(fov_deg) / 2) * side / height))
    return square, fov if side != height else fov_deg


def _described_keys(orbit_json: Path) -> set[str]:
    return set(json.loads(orbit_json.read_text(encoding="utf-8-sig")))


def _dimensions(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
