"""Views that the user brings: a folder of pictures of an orbit, or a turntable video.

A folder holds `view_000.png` … or any pictures, taken in natural order, and optionally `orbit.json`. Without it the
azimuths are uniform, the first picture is the front, the field of view is 33.8°, and the elevation and the direction
of turn are unknown until `im3d.elevation` finds them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from im3d.errors import InputError
from im3d.framing import DEFAULT_RATIO, VISIBLE
from im3d.generators.base import Subject
from im3d.images import FORMATS, MAX_PIXELS, SUFFIXES, FloatArray, OrbitViews, as_rgba, opened, read_image, resized
from im3d.masks import Method, Segment, has_alpha, isolate
from im3d.orbit import DEFAULT_VIEWS, Orbit
from im3d.progress import Progress

# Larger views are reduced: beyond this they cost memory and tell the texture nothing.
MAX_SIDE = 1024
# A folder with more pictures than this is thinned evenly.
MAX_VIEWS = 64
MAX_FRAMES = 20_000
THUMBNAIL = 64


@dataclass(frozen=True)
class Brought:
    """What was read from the user's files.

    Attributes:
        views: The pictures, cut out and square, and their orbit.
        radius_known: Whether orbit.json gave the distance; otherwise the default is a guess.
        direction_known: Whether orbit.json gave the azimuths; otherwise the turn may be the other way round.
        mask_method: What the masks came from.
        warnings: What the user should know, a sentence each.
    """

    views: OrbitViews
    radius_known: bool
    direction_known: bool
    mask_method: Method
    warnings: tuple[str, ...]


class FilesGenerator:
    """The user's own views as a `Generator`: nothing is generated and nothing can be refined.

    Args:
        source: Folder or video.
        elevation_deg: Elevation of the views, if the user knows it; goes before that of orbit.json.
        views: Frames to take from a video.
        segment: A segmentation network for backgrounds that are not plain.

    Raises:
        InputError: See `read_orbit`.
    """

    name = "files"
    framing = DEFAULT_RATIO
    input_frame = 0
    can_refine = False
    refine_noise = 0.0
    network_calls = 0

    def __init__(
        self,
        source: Path,
        elevation_deg: float | None = None,
        views: int = DEFAULT_VIEWS,
        segment: Segment | None = None,
    ) -> None:
        self.brought = read_orbit(source, views, segment)
        self.orbit = self.brought.views.orbit
        if elevation_deg is not None:
            self.orbit = replace(self.orbit, elevation_deg=elevation_deg)
        self.size = self.brought.views.size

    def generate(self, subject: Subject | None, seed: int, progress: Progress) -> OrbitViews:
        """The user's views; `subject` and `seed` change nothing."""
        progress(1, 1, self.brought.views.rgba[0])
        return OrbitViews(self.brought.views.rgba, self.orbit)

    def refine(
        self, subject: Subject, renders: OrbitViews, noise: float, steps: int, seed: int, progress: Progress
    ) -> OrbitViews:
        """Always fails: given pictures cannot be drawn again."""
        raise InputError("Views from files cannot be refined.", "Set refine.rounds=0 or choose another generator.")

    def release(self) -> None:
        """Nothing to free."""


def read_orbit(source: Path, views: int = DEFAULT_VIEWS, segment: Segment | None = None) -> Brought:
    """Reads a folder of pictures or a turntable video and cuts the object out of every view.

    Args:
        source: Folder or file.
        views: Frames to take from a video.
        segment: A segmentation network for backgrounds that are not plain.

    Raises:
        InputError: Missing, unreadable, fewer than two views, views of different sizes, an orbit.json that does not
            fit, or no object to be seen in a view.
    """
    if not source.exists():
        raise InputError(f"{source} does not exist.", "Check the path.")
    pictures, orbit = _read_folder(source) if source.is_dir() else _read_video(source, views)
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
    cut, method, warnings = _isolated(pictures, segment)
    rgba, fov = _square(cut, orbit.fov_deg)
    return Brought(
        OrbitViews(rgba, replace(orbit, fov_deg=fov)),
        radius_known="radius" in keys,
        direction_known="azimuths_deg" in keys,
        mask_method=method,
        warnings=warnings,
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


def closes(thumbnails: Sequence[FloatArray]) -> bool:
    """Whether the last frame of a turn shows the first again.

    On an open turn the step from the last frame to the first is as large as any other; on a closed one only noise
    remains. A body of revolution shows the same in every frame, and is left alone.
    """
    if len(thumbnails) < 4:
        return False
    steps = [_difference(a, b) for a, b in pairwise(thumbnails)]
    return _difference(thumbnails[-1], thumbnails[0]) < 0.35 * float(np.median(steps))


def _difference(a: FloatArray, b: FloatArray) -> float:
    return float(np.abs(a - b).mean())


def _read_folder(folder: Path) -> tuple[list[FloatArray], Orbit]:
    files = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()]
    files = [p for p in files if p.name.startswith("view_")] or files
    files.sort(key=natural_order)
    if len(files) < 2:
        found = "only one picture" if files else "no pictures"
        raise InputError(f"{folder} holds {found}.", "Bring at least two views, better sixteen, of one full turn.")
    pictures: list[FloatArray] = []
    shape: tuple[int, ...] | None = None
    for file in files:
        picture = read_image(file)
        if shape is not None and picture.shape != shape:
            raise InputError(
                f"The views differ in size: {files[0].name} is {_dimensions(shape)}, {file.name} is "
                f"{_dimensions(picture.shape)}.",
                "Bring all views in one size.",
            )
        shape = picture.shape
        pictures.append(_reduced(picture))
    if not (folder / "orbit.json").exists() and closes([_thumbnail(p) for p in pictures]):
        pictures.pop()
    return pictures, Orbit.uniform(len(pictures))


def _read_video(file: Path, views: int) -> tuple[list[FloatArray], Orbit]:
    """Two passes: the first counts the frames and looks for the closing one, the second keeps the chosen ones."""
    thumbnails = [_thumbnail(frame) for frame in _frames(file, small=True)]
    if len(thumbnails) < 2:
        raise InputError(
            f"{file} holds a single picture.", "Bring a turntable video, or a folder of views; one picture is --image."
        )
    count = len(thumbnails) - closes(thumbnails)
    chosen = evenly(count, views)
    wanted = set(chosen)
    pictures = [_reduced(frame) for index, frame in enumerate(_frames(file)) if index in wanted]
    if len(pictures) < 2:
        raise InputError(f"{file} holds fewer than two different views.", "Bring a video of one full turn.")
    return pictures, Orbit(tuple(360.0 * index / count for index in chosen))


def _frames(file: Path, small: bool = False) -> Iterator[FloatArray]:
    """The frames of an animated picture or a video as (H, W, 4), straight alpha; `small`: as thumbnails."""
    if _is_picture(file):
        with opened(file) as image:
            for frame in ImageSequence.Iterator(image):
                rgba = frame.convert("RGBA")
                yield as_rgba(rgba.resize((THUMBNAIL, THUMBNAIL)) if small else rgba)
    else:
        yield from _video_frames(file, small)


def _is_picture(file: Path) -> bool:
    try:
        with Image.open(file, formats=FORMATS):
            return True
    except UnidentifiedImageError:
        return False
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return True  # `opened` explains


def _video_frames(file: Path, small: bool) -> Iterator[FloatArray]:
    import av
    from av.video.reformatter import Colorspace

    size = {"width": THUMBNAIL, "height": THUMBNAIL} if small else {}
    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise InputError(f"{file} has no picture track.", "Bring a video or a folder of pictures.")
            stream = container.streams.video[0]
            if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
                raise InputError(f"The frames of {file} are too large.", "Scale the video to 1024 pixels.")
            stream.thread_type = "AUTO"
            for index, frame in enumerate(container.decode(stream)):
                if index >= MAX_FRAMES:
                    raise InputError(f"{file} has more than {MAX_FRAMES} frames.", "Cut it to one turn.")
                # HD video is BT.709; the converter would otherwise take everything for BT.601.
                matrix = Colorspace.ITU709 if int(frame.colorspace) == int(Colorspace.ITU709) else None
                rgb = frame.reformat(format="rgb24", src_colorspace=matrix, **size).to_ndarray()
                yield np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)]).astype(np.float32) / 255
    except (av.FFmpegError, OSError, ValueError) as error:
        raise InputError(
            f"{file} is neither a picture nor a video that can be read.", "Use MP4, WebM or GIF, or a folder of views."
        ) from error


def _thumbnail(rgba: FloatArray) -> FloatArray:
    """(64, 64, 4), premultiplied, so that colours under transparent pixels do not count."""
    size = (THUMBNAIL, THUMBNAIL)
    channels = [rgba[..., c] * (rgba[..., 3] if c < 3 else 1) for c in range(4)]
    small = [np.asarray(Image.fromarray(c).resize(size, Image.Resampling.BOX)) for c in channels]
    return np.stack(small, axis=-1)


def _reduced(rgba: FloatArray) -> FloatArray:
    height, width = rgba.shape[:2]
    scale = MAX_SIDE / max(height, width)
    return rgba if scale >= 1 else resized(rgba, max(1, round(height * scale)), max(1, round(width * scale)))


def _isolated(
    pictures: Sequence[FloatArray], segment: Segment | None
) -> tuple[list[FloatArray], Method, tuple[str, ...]]:
    if any(has_alpha(p) for p in pictures) and not all(has_alpha(p) for p in pictures):
        raise InputError("Some of the views have transparency and some have none.", "Bring all views of one kind.")
    cut: list[FloatArray] = []
    methods: set[Method] = set()
    touching = 0
    for index, picture in enumerate(pictures):
        try:
            isolated = isolate(picture, segment=segment)
        except InputError as error:
            raise InputError(f"View {index}: {error.message}", error.hint) from error
        cut.append(isolated.rgba)
        methods.add(isolated.method)
        touching += bool(isolated.warnings)
    warnings: tuple[str, ...] = ()
    if touching:
        warnings = (f"In {touching} of {len(cut)} views the object touches the border and may be cut off.",)
    # A network steps in only where the plain background failed; it then names the set.
    method: Method = "segmentation" if "segmentation" in methods else methods.pop()
    return cut, method, warnings


def _square(pictures: Sequence[FloatArray], fov_deg: float) -> tuple[FloatArray, float]:
    """Pictures brought to one square about their centre, which is the optical centre, and the square's field of view.

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
    return set(json.loads(orbit_json.read_text(encoding="utf-8")))


def _dimensions(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
