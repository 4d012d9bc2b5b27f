"""Names that both sides use: presets, stages, files of a job, suffixes of pictures, default names of objects, the limit
of the elevation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, get_args

Preset = Literal["draft", "standard", "high", "paper"]
PRESETS: tuple[Preset, ...] = get_args(Preset)
# In the order in which a job begins them.
STAGES = ("load", "image", "orbit", "fit", "refine", "mesh", "texture", "export")

# Files in the folder of a job: the request as the add-on queued it, as the backend checked it, where the object goes.
QUEUED_FILE = "queued.json"
REQUEST_FILE = "request.json"
PLACEMENT_FILE = "placement.json"
INPUT_FOLDER = "input"
# Beside the views of an orbit: their cameras.
ORBIT_FILE = "orbit.json"

PICTURE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".tga", ".ppm"},
)
NAME_LENGTH = 40
# The paper's orbits lie at elevations in [0°, 45°] (3.2); beyond ±80° the camera's up vector degenerates.
MAX_ELEVATION_DEG = 80.0


def pictures_in(folder: Path) -> list[Path]:
    """The picture files in a folder, in no order; hidden ones, as macOS puts beside each file, do not count.

    Raises:
        OSError: The folder cannot be read.
    """
    return [p for p in folder.iterdir() if is_picture(p.name) and p.is_file()]


def is_picture(name: str) -> bool:
    """Whether a file of this name counts as one of its folder's pictures."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES


def printable(text: str) -> str:
    """Text with a mark in the place of what is not UTF-8, as it comes from file names and command lines."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def default_name(prompt: str, source: str | None) -> str:
    """Name of an object from its prompt or its file, at most `NAME_LENGTH` characters, cut at a word."""
    text = prompt.strip() or (Path(os.path.abspath(source)).stem if source else "")
    words = " ".join(printable(text).split())
    if len(words) > NAME_LENGTH:
        words = words[: NAME_LENGTH + 1].rsplit(" ", 1)[0][:NAME_LENGTH]
    return words or "IM-3D object"
