"""A finished object as an asset: its picture, what it was made from and under which licence, in a library of choice."""

from __future__ import annotations

import os
import re
from pathlib import Path

import bpy
import numpy as np

from ..core.finished_jobs import FinishedJob
from ..core.model_facts import generator_label

# In the place of a library: the asset stays in the open file only.
THIS_FILE = "LOCAL"
PREVIEW_SIZE = 256
CATALOG_FILE = "blender_assets.cats.txt"
CATALOG_HEADER = "# This is an Asset Catalog Definition file for Blender.\n\nVERSION 1\n\n"
# The same in every library, so that objects of two libraries meet in one catalog.
CATALOG_ID = "3a9f1c52-6d7e-4b0a-9d27-5d1b5f2c7e31"
CATALOG = f"{CATALOG_ID}:IM-3D:IM-3D\n"


class AssetError(Exception):
    """The object could not be put into the library; the text is a sentence for the user."""


def mark_asset(obj: bpy.types.Object, job: FinishedJob, licence: str) -> None:
    """Marks the object; its metadata say what a person needs to use it again, or to make it again.

    Args:
        obj: The imported object.
        job: Where it comes from.
        licence: Licence of the model that made it, "" when none applies.
    """
    obj.asset_mark()
    data = obj.asset_data
    data.description = job.prompt or job.name
    data.author = f"IM-3D ({generator_label(job.generator)})"
    data.license = licence
    data.catalog_id = CATALOG_ID
    for tag in ("IM-3D", job.generator):
        data.tags.new(tag, skip_if_exists=True)
    for key, value in (("prompt", job.prompt), ("seed", str(job.seed)), ("generator", job.generator),
                       ("licence", licence), ("height_m", job.height_m)):  # fmt: skip
        data[f"im3d_{key}"] = value
    if job.preview is not None:
        _set_preview(obj, job.preview)


def save_to_library(context: bpy.types.Context, obj: bpy.types.Object, library: str) -> Path:
    """Writes the marked object, with all it needs, as a .blend of its own into an asset library.

    Args:
        library: Name of one of the user's asset libraries.

    Returns:
        The .blend file; one that is there already is not overwritten, the name gets a number.

    Raises:
        AssetError: There is no such library, or its folder cannot be written or made.
    """
    known = context.preferences.filepaths.asset_libraries.get(library)
    if known is None:
        raise AssetError(f"There is no asset library {library} in the preferences.")
    folder = Path(bpy.path.abspath(known.path))
    stem = re.sub(r'[<>:"/\\|?*\x00-\x1f]+', "_", obj.name).strip(". ") or "object"
    path = next(p for p in (folder / f"{stem}{(n and f'-{n}') or ''}.blend" for n in range(10000)) if not p.exists())
    try:
        folder.mkdir(parents=True, exist_ok=True)  # Blender's own library has none until something is saved
        _add_catalog(folder / CATALOG_FILE)
        bpy.data.libraries.write(str(path), {obj}, fake_user=True, compress=True)
    except (OSError, RuntimeError) as error:
        raise AssetError(f"The asset could not be written to {folder}: {error}.") from error
    return path


def _set_preview(obj: bpy.types.Object, picture: Path) -> None:
    """Works without a window, unlike Blender's own rendering of previews."""
    try:
        image = bpy.data.images.load(str(picture))
    except RuntimeError:
        return  # an asset without its picture is still an asset
    try:
        image.scale(PREVIEW_SIZE, PREVIEW_SIZE)
        pixels = np.empty(4 * PREVIEW_SIZE * PREVIEW_SIZE, np.float32)
        image.pixels.foreach_get(pixels)
    finally:
        bpy.data.images.remove(image)
    preview = obj.preview_ensure()
    preview.image_size = (PREVIEW_SIZE, PREVIEW_SIZE)
    preview.image_pixels_float.foreach_set(pixels)


def _add_catalog(path: Path) -> None:
    text = path.read_text(encoding="utf-8") if path.exists() else CATALOG_HEADER
    if CATALOG_ID in text:
        return
    part = path.with_suffix(".part")
    part.write_text(text.rstrip("\n") + "\n" * (1 + (text == CATALOG_HEADER)) + CATALOG, encoding="utf-8")
    os.replace(part, path)
