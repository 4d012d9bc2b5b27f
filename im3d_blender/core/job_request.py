"""Requests of jobs, checked before they are queued. No bpy here.

The result is what the backend keeps as request.json. The backend checks everything again; the checks here report a
mistake at once, next to the button.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from ...backend.im3d.shared.names import MAX_ELEVATION_DEG, PICTURE_SUFFIXES, default_name, pictures_in

# (identifier, label, description); the descriptions say what each needs.
GENERATORS = [
    ("auto", "Automatic", "The best generator that is installed and fits the memory"),
    ("mini", "Mini (coarse)", "Ships with IM-3D and works offline, also without a GPU; best for simple props"),
    ("sv3d_p", "SV3D + elevation", "Stable Video 3D at a given camera elevation; needs a download and a GPU with 8 GB"),
    ("sv3d_u", "SV3D", "Stable Video 3D, choosing the elevation itself; needs a download and a GPU with 8 GB"),
]
# Takes the user's own views, so it is not offered for a prompt or a picture.
VIEWS_GENERATOR = "files"
PRESETS = [
    ("draft", "Draft", "To see whether the idea works: less than half the time of Standard, and less memory"),
    ("standard", "Standard", "For work"),
    ("high", "High", "More splats and iterations than Standard; slower"),
    ("paper", "Paper", "The published method, for comparison; Standard and High make better meshes"),
]
VIDEOS = frozenset({".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ogv", ".wmv"})
MAX_SEED = 2**31 - 1  # as far as Blender's integer properties go
RANDOM_SEEDS = 1_000_000  # random seeds stay below: six digits are easy to read out and to type
MAX_HEIGHT = 1000.0


class RequestError(Exception):
    """The request cannot be run; the text is a sentence for the user."""


def make_request(
    *,
    prompt: str = "",
    image: str = "",
    views: str = "",
    mask: str = "",
    name: str = "",
    generator: str = "auto",
    preset: str = "standard",
    seed: int | None = None,
    height: float = 1.0,
    faces: int = 0,
    texture_size: int = 0,
    recenter: bool = True,
    elevation: float | None = None,
    settings: str = "",
) -> dict[str, Any]:
    """A job request in the backend's format.

    Args:
        prompt: A sentence; it may accompany an image.
        image: Picture file.
        views: Folder of pictures, one of the pictures in it, or a turntable video.
        mask: The user's own mask of `image`.
        name: Name of the object; empty takes the prompt's or the file's.
        generator: "auto" or a generator's name.
        preset: One of `PRESETS`.
        seed: From 0 to 2^31 - 1; None: a random one.
        height: Metres.
        faces: Triangles at most; 0 keeps the preset's.
        texture_size: Side in pixels; 0 keeps the preset's.
        recenter: False: the picture is framed as an orbit view already.
        elevation: Degrees, within ±`MAX_ELEVATION_DEG`; None: estimated.
        settings: More settings, "section.name=value" separated by spaces.

    Raises:
        RequestError: Contradictory, out of range, or naming a file that is not there.
    """
    prompt = " ".join(prompt.split())
    if image and views:
        raise RequestError("Give an image or orbit views, not both.")
    if not (image or views or prompt):
        raise RequestError("There is nothing to start from: write a prompt, or choose an image or orbit views.")
    if mask and not image:
        raise RequestError("A mask needs the image that it belongs to.")
    _check_choice("generator", generator, [*[g[0] for g in GENERATORS], VIEWS_GENERATOR])
    _check_choice("preset", preset, [p[0] for p in PRESETS])
    if views and generator not in ("auto", VIEWS_GENERATOR):
        raise RequestError(f"The generator {generator} makes views; yours are given already.")
    if not views and generator == VIEWS_GENERATOR:
        raise RequestError("The generator files needs orbit views.")
    seed = random_seed() if seed is None else seed
    _check_range("seed", seed, 0, MAX_SEED)
    _check_range("height", height, 0.001, MAX_HEIGHT)
    if faces:
        _check_range("number of faces", faces, 100, 1_000_000)
    if texture_size:
        _check_range("texture size", texture_size, 64, 8192)
    if elevation is not None:
        _check_range("elevation", elevation, -MAX_ELEVATION_DEG, MAX_ELEVATION_DEG)
    return {
        "name": " ".join(name.split()) or default_name(prompt, views or image),
        "prompt": prompt,
        "image": _picture(image) if image else None,
        "views": _views(views) if views else None,
        "mask": _picture(mask) if mask else None,
        "generator": generator,
        "preset": preset,
        "seed": seed,
        "recenter": recenter,
        "elevation_deg": elevation,
        "height_m": height,
        "settings": _settings(settings, faces, texture_size),
    }


def random_seed() -> int:
    """A seed of at most six digits."""
    return random.randrange(RANDOM_SEEDS)


def _check_choice(what: str, value: str, choices: list[str]) -> None:
    if value not in choices:
        raise RequestError(f"There is no {what} {value}; choose one of: {', '.join(choices)}.")


def _check_range(what: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise RequestError(f"The {what} {value:g} is out of range: it goes from {low:g} to {high:g}.")


def _picture(text: str) -> str:
    path = Path(text).absolute()
    if not path.is_file():
        raise RequestError(f"There is no file {path}.")
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise RequestError(f"{path.name} is not a picture that IM-3D reads.")
    return str(path)


def _views(text: str) -> str:
    """A folder or a video; a picture stands for the folder that it is in, because file browsers choose files."""
    path = Path(text).absolute()
    if path.is_file() and path.suffix.lower() in PICTURE_SUFFIXES - {".gif"}:
        path = path.parent
    if not path.exists():
        raise RequestError(f"There is no folder or video {path}.")
    if path.is_dir() and len(pictures_in(path)) < 2:
        raise RequestError(f"The folder {path} holds no orbit: it needs two pictures or more.")
    return str(path)


def _settings(text: str, faces: int, texture_size: int) -> dict[str, dict[str, Any]]:
    settings: dict[str, dict[str, Any]] = {}
    for assignment in text.split():
        name, equals, value = assignment.partition("=")
        section, dot, field = name.partition(".")
        if not (equals and dot and section and field and value):
            raise RequestError(f"{assignment} is not a setting; write section.name=value.")
        settings.setdefault(section, {})[field] = value
    if faces:
        settings.setdefault("mesh", {})["faces"] = faces
    if texture_size:
        settings.setdefault("texture", {})["size"] = texture_size
    return settings
