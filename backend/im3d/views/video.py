"""A turntable video, or an animated picture, as the views of one turn: upright, evenly spaced in time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence, UnidentifiedImageError

from im3d.core.images import FORMATS, MAX_PIXELS, FloatArray, as_rgba, opened
from im3d.errors import InputError

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

MAX_FRAMES = 20_000
THUMBNAIL = 64
# Frames that differ from the next by less than this share of a usual step stand still.
STILL = 0.1
# A first frame that is shown so many times longer than those after it is a still.
LONG = 5


@dataclass(frozen=True)
class _Frame:
    """A decoded frame, not converted yet.

    Attributes:
        time: Seconds from the start; None where the file does not say.
        picture: The frame as (H, W, 4), straight alpha, with its longer side at most as given.
        thumbnail: The frame as (64, 64, 4), premultiplied.
    """

    time: float | None
    picture: Callable[[int], FloatArray]
    thumbnail: Callable[[], FloatArray]


def read_turn(file: Path, views: int, longest: int) -> tuple[list[FloatArray], tuple[float, ...]]:
    """The views of one full turn, by two passes: the first finds the closing frame, the second keeps the chosen ones.

    Frames are chosen, and azimuths given, by their times: phones drop and stretch frames.

    Args:
        file: A video, or an animated GIF, WebP or PNG.
        views: Frames to take.
        longest: Frames with a longer side are reduced to it.

    Returns:
        The frames, (H, W, 4) float32, straight alpha; their azimuths in degrees, the first 0.

    Raises:
        InputError: Unreadable, too large or too long, or fewer than two views.
    """
    frames = [(frame.time, frame.thumbnail()) for frame in _frames(file)]
    if len(frames) < 2:
        raise InputError(f"{file} holds a single picture.", "Bring a turntable video, a folder of views, or a picture.")
    first, last = moving([thumbnail for _, thumbnail in frames])
    frames = frames[first : last + 1]
    closed = closes([thumbnail for _, thumbnail in frames])
    chosen, azimuths = spaced([time for time, _ in frames], closed, views)
    if len(chosen) < 2:
        raise InputError(f"{file} holds fewer than two different views.", "Bring a video of one full turn.")
    wanted = {first + index for index in chosen}
    pictures = [frame.picture(longest) for index, frame in enumerate(_frames(file)) if index in wanted]
    return pictures, azimuths


def spaced(times: Sequence[float | None], closed: bool, wanted: int) -> tuple[list[int], tuple[float, ...]]:
    """The frames nearest to `wanted` evenly spaced moments of one turn.

    Args:
        times: Of all frames, in seconds. Frames count as evenly spaced where a time is missing or out of order.
        closed: Whether the last frame shows the first again.
        wanted: Number of frames; all where there are fewer.

    Returns:
        Indices of the frames, each once, and their azimuths in degrees.
    """
    t = np.array([np.nan if time is None else time for time in times], dtype=np.float64)
    steps = np.diff(t)
    if not (steps > 0).all():  # not a number included
        t, steps = np.arange(len(times), dtype=np.float64), np.ones(len(times) - 1)
    # Animated pictures hold a still beginning in one long frame.
    usual = float(np.median(steps[1:4])) if len(steps) > 1 else steps[0]
    t -= t[1] - usual if steps[0] > LONG * usual else t[0]
    t[0] = 0.0
    # An open turn ends one step after its last frame: a step as they are there, since phones slow down in the dark.
    turn = t[-1] if closed else t[-1] + float(np.median(steps[-3:]))
    t = t[: len(t) - closed]
    if len(t) <= wanted:
        chosen = list(range(len(t)))
    else:
        moments = turn * np.arange(wanted) / wanted
        chosen = sorted({int(np.abs(t - moment).argmin()) for moment in moments})
    return chosen, tuple(float(360 * t[index] / turn) for index in chosen)


def moving(thumbnails: Sequence[FloatArray]) -> tuple[int, int]:
    """The first and the last frame of the turn itself, where the video stands still before or after it.

    Stillness at both ends is left alone: a plain mug whose handle is hidden there looks the same.
    """
    steps = np.array([_difference(a, b) for a, b in pairwise(thumbnails)])
    turning = np.flatnonzero(steps >= STILL * np.quantile(steps, 0.75))
    still_before, still_after = turning[0], len(steps) - 1 - turning[-1]
    if still_before and still_after:
        return 0, len(steps)
    return int(still_before), len(steps) - int(still_after)


def closes(thumbnails: Sequence[FloatArray]) -> bool:
    """Whether the last frame of a turn shows the first again.

    On an open turn the step from the last frame to the first is as large as any other; on a closed one only noise
    remains. A body of revolution shows the same in every frame, and is left alone.
    """
    if len(thumbnails) < 4:
        return False
    steps = [_difference(a, b) for a, b in pairwise(thumbnails)]
    return _difference(thumbnails[-1], thumbnails[0]) < 0.35 * float(np.median(steps))


def thumbnail(rgba: FloatArray) -> FloatArray:
    """(64, 64, 4), premultiplied, so that colours under transparent pixels do not count."""
    size = (THUMBNAIL, THUMBNAIL)
    channels = [rgba[..., c] * (rgba[..., 3] if c < 3 else 1) for c in range(4)]
    small = [np.asarray(Image.fromarray(c).resize(size, Image.Resampling.BOX)) for c in channels]
    return np.stack(small, axis=-1)


def _difference(a: FloatArray, b: FloatArray) -> float:
    return float(np.abs(a - b).mean())


def _frames(file: Path) -> Iterator[_Frame]:
    if _is_picture(file):
        yield from _picture_frames(file)
    else:
        yield from _video_frames(file)


def _is_picture(file: Path) -> bool:
    try:
        with Image.open(file, formats=FORMATS):
            return True
    except UnidentifiedImageError:
        return False
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return True  # `opened` explains


def _picture_frames(file: Path) -> Iterator[_Frame]:
    time = 0.0
    with opened(file) as image:
        for frame in ImageSequence.Iterator(image):
            rgba = frame.convert("RGBA")
            yield _Frame(
                time,
                lambda longest, rgba=rgba: as_rgba(rgba, longest),  # type: ignore[misc]
                lambda rgba=rgba: as_rgba(rgba.resize((THUMBNAIL, THUMBNAIL))),  # type: ignore[misc]
            )
            time += float(frame.info.get("duration") or 0) / 1000


def _video_frames(file: Path) -> Iterator[_Frame]:
    import av

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
                yield _Frame(
                    frame.time,
                    lambda longest, frame=frame: _upright(frame, _reduced_size(frame, longest)),  # type: ignore[misc]
                    lambda frame=frame: _upright(frame, (THUMBNAIL, THUMBNAIL)),  # type: ignore[misc]
                )
    except (av.FFmpegError, OSError, ValueError) as error:
        raise InputError(
            f"{file} is neither a picture nor a video that can be read.", "Use MP4, WebM or GIF, or a folder of views."
        ) from error


def _reduced_size(frame: VideoFrame, longest: int) -> tuple[int, int]:
    scale = min(1.0, longest / max(frame.width, frame.height))
    return max(1, round(frame.width * scale)), max(1, round(frame.height * scale))


def _upright(frame: VideoFrame, size: tuple[int, int]) -> FloatArray:
    """A frame scaled to `size` (width, height) and turned as its file says, (H, W, 4), opaque."""
    from av.video.reformatter import Colorspace

    # HD video is BT.709; the converter would otherwise take everything for BT.601.
    matrix = Colorspace.ITU709 if int(frame.colorspace) == int(Colorspace.ITU709) else None
    rgb = frame.reformat(*size, format="rgb24", src_colorspace=matrix).to_ndarray().astype(np.uint8, copy=False)
    rgb = turned(rgb, _display_matrix(frame))
    return np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)]).astype(np.float32) / 255


def _display_matrix(frame: VideoFrame) -> tuple[int, int, int, int]:
    """a, b, c, d of the file's display matrix: the pixel (x, y) is shown at (a·x + c·y, b·x + d·y), up to a shift."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")  # said to be a string
    if data is None:
        return 1, 0, 0, 1
    m = np.frombuffer(bytes(data)[:36], dtype=np.int32)
    return int(m[0]), int(m[1]), int(m[3]), int(m[4])


def turned(pixels: NDArray[np.uint8], matrix: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Pixels (H, W, C) as a player shows them: phones store what they see, and say how they were held or mirrored.

    Args:
        pixels: As stored.
        matrix: a, b, c, d: the pixel (x, y) is shown at (a·x + c·y, b·x + d·y), up to a shift and a scale. Angles
            between quarter turns count as the nearest one.
    """
    a, b, c, d = matrix
    across, down = a, d
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, across, down = pixels.swapaxes(0, 1), c, b
    if across < 0:
        pixels = pixels[:, ::-1]
    if down < 0:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
