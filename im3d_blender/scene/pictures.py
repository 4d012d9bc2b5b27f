"""Pictures on their way to the backend, which reads files: image data-blocks, renders of the camera, the clipboard."""

from __future__ import annotations

import contextlib
import hashlib
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bpy
import numpy as np
from mathutils import Matrix

from ...backend.im3d.shared.names import PICTURE_SUFFIXES


class PictureError(Exception):
    """There is no usable picture; the text is a sentence for the user."""


def image_file(text: str, inputs: Path) -> str:
    """The file for a file's path or an image data-block's name.

    Args:
        text: The path or the name.
        inputs: Folder for pictures that have no file of their own.

    Raises:
        PictureError: The data-block has no pixels.
    """
    path = Path(bpy.path.abspath(text))
    image = bpy.data.images.get(text)
    if image is None or path.is_file():
        return str(path)
    return str(export_image(image, inputs))


def export_image(image: bpy.types.Image, folder: Path) -> Path:
    """The data-block's own file when that shows the same, otherwise a PNG of its pixels, named by its content.

    Raises:
        PictureError: It has no pixels, or its file is gone before Blender read it.
    """
    own = Path(bpy.path.abspath(image.filepath, library=image.library)) if image.filepath else None
    is_file = image.source == "FILE" and not image.is_dirty and not image.packed_file
    if is_file and own is not None and own.is_file() and own.suffix.lower() in PICTURE_SUFFIXES:
        return own.absolute()
    width, height = image.size
    if not (width and height) or (not image.has_data and not len(image.pixels)):
        if image.source == "FILE" and not image.packed_file and own is not None and not own.is_file():
            raise PictureError(f"{own} does not exist any more. Choose the image again.")
        raise PictureError(f"The image {image.name} has no pixels.")
    pixels = np.empty(width * height * image.channels, np.float32)
    image.pixels.foreach_get(pixels)
    # Blender's rows go from the bottom to the top.
    pixels = pixels.reshape(height, width, image.channels)[::-1]
    if image.is_float:
        pixels = np.concatenate([_srgb(pixels[..., :3]), pixels[..., 3:]], axis=-1)
    png = encode_png(np.round(pixels.clip(0, 1) * 255).astype(np.uint8))
    path = folder / f"{hashlib.sha256(png).hexdigest()[:16]}.png"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png)
    return path


def encode_png(pixels: np.ndarray) -> bytes:
    """A PNG file of (H, W, C) bytes with 1 to 4 channels."""
    height, width, channels = pixels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # the first byte of a row: no filter
    rows[:, 1:] = pixels.reshape(height, -1)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows.tobytes(), 3)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def _srgb(linear: np.ndarray) -> np.ndarray:
    linear = linear.clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def picture_from_camera(context: bpy.types.Context, size: int, folder: Path) -> Path:
    """What the scene's camera sees, the background transparent, as a PNG file.

    In a window the viewport draws it, in a moment; without one the scene's render engine does.

    Args:
        size: Side of the square picture in pixels.
        folder: Where the file goes, under a name that is free.

    Raises:
        PictureError: There is nothing that could draw it, or nothing was rendered.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = next(n for n in range(1, 100000) if not (folder / f"camera_{n:04d}.png").exists())
    path = folder / f"camera_{number:04d}.png"
    if bpy.app.background:
        _render(context.scene, size, path)
    else:
        path.write_bytes(encode_png(_viewport_pixels(context, size)))
    return path


def _viewport_pixels(context: bpy.types.Context, size: int) -> np.ndarray:
    """(size, size, 4) bytes of what the viewport, shaded as it is, shows of the camera's view, or else of its own.

    Shaders that another shading needs would be compiled first, which takes minutes on some machines.
    """
    import gpu  # not there without a window

    areas = [context.area, *context.window.screen.areas]
    area = next((a for a in areas if a is not None and a.type == "VIEW_3D"), None)
    if area is None:
        raise PictureError("Open a 3D viewport: it renders the picture.")
    region = next(r for r in area.regions if r.type == "WINDOW")
    space, camera = area.spaces.active, context.scene.camera
    if camera is not None:
        view = camera.matrix_world.normalized().inverted()
        projection = camera.calc_matrix_camera(context.evaluated_depsgraph_get(), x=size, y=size)
    else:
        view, seen = space.region_3d.view_matrix, min(region.width, region.height)
        middle = Matrix.Diagonal((region.width / seen, region.height / seen, 1, 1))
        projection = middle @ space.region_3d.window_matrix
    canvas = gpu.types.GPUOffScreen(size, size)
    shading: dict[str, object] = {}
    if space.shading.type in ("SOLID", "WIREFRAME"):
        shading = {"type": "SOLID", "color_type": "TEXTURE"}
    elif space.shading.type == "RENDERED" and context.scene.render.engine == "CYCLES":
        shading = {"type": "MATERIAL"}  # Cycles draws on the screen only
    changes: list[tuple[Any, dict[str, object]]] = [(space.shading, shading), (space.overlay, {"show_overlays": False})]
    try:
        with _changed(changes):
            canvas.draw_view3d(
                context.scene, context.view_layer, space, region, view, projection, do_color_management=True,
                draw_background=False,
            )  # fmt: skip
        buffer = canvas.texture_color.read()
    finally:
        canvas.free()
    buffer.dimensions = size * size * 4
    pixels = np.array(buffer, dtype=np.float32).reshape(size, size, 4)[::-1]
    # The colours are multiplied with the alpha; a PNG's are not.
    pixels[..., :3] *= 255 / np.maximum(pixels[..., 3:], 1)
    return np.round(pixels.clip(0, 255)).astype(np.uint8)


def _render(scene: bpy.types.Scene, size: int, path: Path) -> None:
    if scene.camera is None:
        raise PictureError("The scene has no camera: add one, or look through one with Align Active Camera to View.")
    render, settings = scene.render, scene.render.image_settings
    changes = [(render, {"filepath": str(path), "resolution_x": size, "resolution_y": size,
                         "resolution_percentage": 100, "film_transparent": True, "use_file_extension": False,
                         "pixel_aspect_x": 1.0, "pixel_aspect_y": 1.0, "use_border": False})]  # fmt: skip
    if hasattr(settings, "media_type"):  # since 5.0: first the kind of medium, then its formats
        changes.append((settings, {"media_type": "IMAGE"}))
    changes.append((settings, {"file_format": "PNG", "color_mode": "RGBA", "color_depth": "8"}))
    with _changed(changes):
        bpy.ops.render.render(write_still=True)
    if not path.is_file():
        raise PictureError("Blender rendered no picture.")


@contextlib.contextmanager
def _changed(changes: list[tuple[bpy.types.bpy_struct, dict[str, object]]]) -> Iterator[None]:
    """Properties changed for a while; put back in the opposite order, because formats depend on each other."""
    before: list[tuple[bpy.types.bpy_struct, str, object]] = []
    try:
        for data, values in changes:
            for name, value in values.items():
                before.append((data, name, getattr(data, name)))
                setattr(data, name, value)
        yield
    finally:
        for data, name, value in reversed(before):
            # A format of another kind of medium is refused until the kind itself is back.
            with contextlib.suppress(TypeError):
                setattr(data, name, value)
        for data, name, value in before:
            setattr(data, name, value)


def image_from_clipboard(context: bpy.types.Context) -> bpy.types.Image:
    """The clipboard's picture, or the picture file whose path it holds, as an image data-block.

    Raises:
        PictureError: There is none.
    """
    text = context.window_manager.clipboard.strip().strip('"')
    if text and len(text) < 4096 and "\n" not in text:
        path = Path(text.removeprefix("file://"))
        if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file():
            return bpy.data.images.load(str(path), check_existing=True)
    before = set(bpy.data.images)
    if context.area is not None:
        area, kind = context.area, context.area.ui_type
        try:
            # Blender's operator puts the picture into an image editor, so there has to be one for a moment.
            area.ui_type = "IMAGE_EDITOR"
            with contextlib.suppress(RuntimeError), context.temp_override(area=area):
                bpy.ops.image.clipboard_paste()
        finally:
            area.ui_type = kind
    new = [image for image in bpy.data.images if image not in before]
    if not new:
        raise PictureError("The clipboard holds no picture that Blender can take.")
    return new[0]
