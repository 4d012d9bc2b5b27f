"""Pictures as arrays: the views that every stage exchanges, and how they are read, written, resized, composited."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from scipy.ndimage import distance_transform_edt

from im3d.core.orbit import Orbit
from im3d.core.storage import make_folder, write_bytes, write_json
from im3d.core.threads import on_all_cores
from im3d.errors import InputError

FloatArray = NDArray[np.float32]

# A picture is decoded only below this size: a small file can claim any number of pixels.
MAX_PIXELS = 64_000_000
MIN_SIDE = 16
# A job's picture is reduced to this, as views are: cutting out takes time by the pixel, generators make at most 576.
LONGEST_SIDE = 1024
# Plain raster formats. Pillow's others hand the file to external programs (EPS) or hold no single picture.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "TGA", "PPM")

# Phones' pictures, which our libraries do not read: the brands in the first bytes of the file.
_HEIC = (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypheim", b"ftypmif1", b"ftypmsf1")

_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


@dataclass(frozen=True)
class OrbitViews:
    """K square pictures of one object and the cameras that saw it.

    Attributes:
        rgba: (K, S, S, 4) float32 in [0, 1], sRGB, straight alpha.
        orbit: The K cameras; the elevation may still be unknown.
    """

    rgba: FloatArray
    orbit: Orbit

    def __post_init__(self) -> None:
        if self.rgba.ndim != 4 or self.rgba.shape[3] != 4 or self.rgba.shape[1] != self.rgba.shape[2]:
            raise ValueError(f"views must be (K, S, S, 4), not {self.rgba.shape}")
        if len(self.rgba) != len(self.orbit):
            raise ValueError(f"{len(self.rgba)} pictures for an orbit of {len(self.orbit)} cameras")

    @property
    def size(self) -> int:
        """Image side in pixels."""
        return int(self.rgba.shape[1])

    def resized(self, size: int) -> OrbitViews:
        """The same views with pictures of another side."""
        if size == self.size:
            return self
        return OrbitViews(np.stack(on_all_cores(lambda view: resized(view, size, size), self.rgba)), self.orbit)


def premultiplied(rgba: FloatArray) -> FloatArray:
    """Straight alpha (…, 4) to premultiplied."""
    return np.concatenate([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], axis=-1)


def over(rgba: FloatArray, background: float = 1.0) -> FloatArray:
    """Straight-alpha pictures (…, 4) composited over a grey background: (…, 3)."""
    alpha = rgba[..., 3:]
    return rgba[..., :3] * alpha + (1 - alpha) * np.float32(background)


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """A picture file, identified and of a sane size, its pixels not decoded yet.

    Raises:
        InputError: Missing, not a picture, damaged (also while it is decoded inside the block), or too large or small.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would keep us waiting
            raise InputError(f"{path} is not a file that can be read.", "Check the path.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            with Image.open(path, formats=FORMATS) as image:
                _check_size(path, *image.size)
                yield image
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist.", "Check the path.") from error
    except (IsADirectoryError, PermissionError) as error:
        raise InputError(f"{path} is not a file that can be read.", "Check the path and its permissions.") from error
    except Image.DecompressionBombError as error:
        raise _too_large(path) from error
    except UnidentifiedImageError as error:
        with path.open("rb") as file:
            if file.read(12)[4:] in _HEIC:
                raise InputError(f"{path} is a HEIC picture.", "Save it as JPEG or PNG.") from error
        raise InputError(f"{path} is not a picture.", "Use a PNG, JPEG or WebP file.") from error
    except _DAMAGED as error:
        raise InputError(f"{path} is damaged or cut short.", "Save or download the picture again.") from error


def read_image(path: Path, longest: int | None = None) -> FloatArray:
    """A picture of any common kind as sRGB with straight alpha.

    16-bit, greyscale, palette and CMYK files are converted, an embedded colour profile is converted to sRGB, the EXIF
    orientation is applied, and an animation gives its first frame. Files without transparency get alpha 1.

    Args:
        path: The file.
        longest: Pictures with a longer side are reduced to it, before they become numbers: a phone's 48 megapixels
            take 0.8 GB as float32.

    Returns:
        (H, W, 4) float32 in [0, 1].

    Raises:
        InputError: As for `opened`.
    """
    with opened(path) as image:
        if longest is not None:
            image.draft(None, (longest, longest))  # JPEG: decoded at an eighth to a half, never below what is wanted
        return as_rgba(image, longest)


def as_rgba(image: Image.Image, longest: int | None = None) -> FloatArray:
    """A Pillow image (its current frame) as (H, W, 4) float32 in [0, 1]: sRGB, straight alpha, upright.

    Args:
        image: The image.
        longest: As for `read_image`.
    """
    if longest is not None and max(image.size) > longest:
        image = _reduced(image, longest)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        grey = np.asarray(image, dtype=np.float32)
        grey = np.clip(grey if image.mode == "F" else grey / 65535, 0, 1)
        return np.dstack([grey, grey, grey, np.ones_like(grey)])
    image = _to_srgb(image)
    return np.asarray(image.convert("RGBA"), dtype=np.float32) / 255


def encode_png(rgba: FloatArray) -> bytes:
    """A picture (H, W, 3 or 4) float32 in [0, 1] as an 8-bit PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(to_bytes(rgba)).save(buffer, "PNG")
    return buffer.getvalue()


def to_bytes(rgba: FloatArray) -> NDArray[np.uint8]:
    """Values in [0, 1] rounded to 0 … 255."""
    return np.rint(np.clip(rgba, 0, 1) * 255).astype(np.uint8)


def write_png(path: Path, rgba: FloatArray) -> None:
    """Replaces `path` by an 8-bit PNG of (H, W, 3 or 4) float32 in [0, 1], at once.

    Raises:
        DiskError: The disk is full.
        InputError: The folder cannot be written.
    """
    write_bytes(path, encode_png(rgba))


def write_views(folder: Path, views: OrbitViews) -> None:
    """Writes `view_000.png` … and, last, `orbit.json`: a folder without it is not finished.

    Raises:
        DiskError: The disk is full.
        InputError: The folder cannot be written.
    """
    make_folder(folder)
    for index, rgba in enumerate(views.rgba):
        write_png(folder / f"view_{index:03d}.png", rgba)
    write_json(folder / "orbit.json", views.orbit.to_json())


def read_views(folder: Path) -> OrbitViews:
    """Reads what `write_views` wrote: RGBA pictures and their orbit.

    Raises:
        InputError: A file is missing or damaged, or the pictures differ in size or are not square.
    """
    orbit = Orbit.load(folder / "orbit.json")
    pictures = [read_image(folder / f"view_{index:03d}.png") for index in range(len(orbit))]
    if len({picture.shape for picture in pictures}) > 1 or pictures[0].shape[0] != pictures[0].shape[1]:
        raise InputError(f"The pictures in {folder} are not square and of one size.", "Write the views again.")
    return OrbitViews(np.stack(pictures), orbit)


def resized(
    rgba: FloatArray, height: int, width: int, box: tuple[float, float, float, float] | None = None
) -> FloatArray:
    """A straight-alpha picture resampled without halos: Lanczos on premultiplied colours.

    Args:
        rgba: (H, W, 4) float32.
        height: Rows of the result.
        width: Columns of the result.
        box: Left, top, right and bottom of the part to resample, in pixels of the source; all of it by default. It may
            reach beyond the picture, where everything is transparent.

    Returns:
        (height, width, 4) float32 in [0, 1]; transparent pixels carry the colour of the nearest opaque one.
    """
    left, top, right, bottom = box or (0, 0, rgba.shape[1], rgba.shape[0])
    # Pillow wants the box inside the image: pad by whole pixels, with the filter's reach.
    reach = 3 * max(1.0, (right - left) / width, (bottom - top) / height)
    before = [max(0, int(np.ceil(reach - edge))) for edge in (top, left)]
    after = [max(0, int(np.ceil(edge + reach - n))) for edge, n in zip((bottom, right), rgba.shape[:2], strict=True)]
    padding = ((before[0], after[0]), (before[1], after[1])) if box else ((0, 0), (0, 0))
    window = (left + padding[1][0], top + padding[0][0], right + padding[1][0], bottom + padding[0][0])
    channels = [
        Image.fromarray(np.pad(channel, padding)).resize((width, height), Image.Resampling.LANCZOS, box=window)
        for channel in np.moveaxis(premultiplied(rgba), -1, 0)
    ]
    result = np.stack([np.asarray(channel) for channel in channels], axis=-1)
    alpha = np.clip(result[..., 3:], 0, 1)
    colour = result[..., :3] / np.maximum(result[..., 3:], 1 / 255)
    return bled(np.concatenate([np.clip(colour, 0, 1), alpha], axis=-1).astype(np.float32))


def bled(rgba: FloatArray, solid: float = 0.5) -> FloatArray:
    """The colours of nearly transparent pixels replaced by those of the nearest solid pixel; alpha unchanged.

    Keeps the colour that an editor left under transparent pixels, often black or white, out of resampling and texture
    baking.

    Args:
        rgba: (H, W, 4) float32, straight alpha.
        solid: Alpha from which a colour is trusted. Pixels between 8/255 and this keep their own.
    """
    alpha = rgba[..., 3]
    trusted = alpha >= min(solid, float(alpha.max()))
    lost = alpha < 8 / 255
    if not lost.any() or not alpha.any():
        return rgba
    rows, columns = distance_transform_edt(~trusted, return_distances=False, return_indices=True)
    there = np.flatnonzero(lost)
    nearest = rows.ravel()[there] * alpha.shape[1] + columns.ravel()[there]
    # Whole pixels of a flat picture are copied faster than colours by row and column.
    pixels = rgba.reshape(-1, 4)
    moved = pixels.take(nearest, axis=0)
    moved[:, 3] = pixels[there, 3]
    result = pixels.copy()
    result[there] = moved
    return result.reshape(rgba.shape)


def _reduced(image: Image.Image, longest: int) -> Image.Image:
    """The image with its longer side `longest`; what it says about orientation and colours stays with it."""
    scale = longest / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if image.mode in ("1", "P", "PA"):
        image = image.convert("RGBA" if image.mode != "1" else "L")  # colours are mixed, indices cannot be
    elif image.mode.startswith("I;"):
        image = image.convert("I")
    small = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0 if image.mode != "I" else None)
    small.info.update(image.info)
    exif = image.getexif()
    if exif:
        small.info["exif"] = exif.tobytes()
    return small


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise _too_large(path, f" ({width} x {height})")
    if min(width, height) < MIN_SIDE:
        raise InputError(f"{path} is too small ({width} x {height}).", f"Use at least {MIN_SIDE} pixels a side.")


def _too_large(path: Path, size: str = "") -> InputError:
    return InputError(
        f"{path} is too large{size}.", f"Scale it below {MAX_PIXELS // 1_000_000} megapixels; 1024 x 1024 is plenty."
    )


def _to_srgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image
    mode = "RGBA" if image.mode == "RGBA" else "RGB"
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError):
        return image  # a damaged profile is no reason to refuse the picture
    return converted or image
