"""The textured mesh as a glTF 2.0 binary: metres, +Y up, origin at the centre of the base, one PBR material."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from im3d import __version__
from im3d.core.orbit import GLTF_FROM_WORLD, orbit_from_glb
from im3d.core.storage import write_bytes
from im3d.core.threads import on_all_cores
from im3d.mesh.build import TexturedMesh

# glTF's numbers for component types, buffer targets and samplers.
FLOAT, UNSIGNED_INT = 5126, 5125
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
LINEAR, LINEAR_MIPMAP_LINEAR, CLAMP_TO_EDGE = 9729, 9987, 33071


def write_glb(path: Path, textured: TexturedMesh, name: str, height_m: float) -> NDArray[np.float64]:
    """Writes the mesh atomically.

    Args:
        path: The .glb file.
        textured: In world units.
        name: Of the node, the mesh and the material.
        height_m: Metres between the lowest and the highest point.

    Returns:
        (4, 4) the matrix from GLB coordinates back to the world: `orbit_from_glb` of the result.
    """
    vertices = textured.mesh.vertices.astype(np.float64)
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    metres_per_unit = height_m / float(high[2] - low[2])
    base = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
    turned = textured.tangents[:, :3] @ GLTF_FROM_WORLD.T

    textures = [pixels for pixels in (textured.base_color, textured.normal_map) if pixels is not None]
    files = on_all_cores(_png, textures)
    blob = _Blob()
    attributes = {
        "POSITION": blob.attribute((vertices - base) @ GLTF_FROM_WORLD.T * metres_per_unit, bounds=True),
        "NORMAL": blob.attribute(textured.normals @ GLTF_FROM_WORLD.T),
        "TANGENT": blob.attribute(np.concatenate([turned, textured.tangents[:, 3:]], axis=1)),
        "TEXCOORD_0": blob.attribute(textured.mesh.uv),
    }
    primitive = {"attributes": attributes, "indices": blob.indices(textured.mesh.faces), "material": 0}
    material: dict[str, Any] = {
        "name": name,
        "pbrMetallicRoughness": {
            "baseColorTexture": {"index": blob.texture(files[0], "base color")},
            "metallicFactor": 0.0,
            "roughnessFactor": 1.0,
        },
    }
    if textured.normal_map is not None:
        material["normalTexture"] = {"index": blob.texture(files[1], "normal")}
    document = {
        "asset": {"version": "2.0", "generator": f"IM-3D {__version__}"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"name": name, "mesh": 0}],
        "meshes": [{"name": name, "primitives": [primitive]}],
        "materials": [material],
        **blob.document(),
    }
    write_bytes(path, _container(document, bytes(blob.data)))
    return orbit_from_glb(metres_per_unit, base)


def _png(pixels: NDArray[np.float32]) -> bytes:
    """A PNG file of (S, S, 3) values in [0, 1]."""
    file = io.BytesIO()
    Image.fromarray((np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


class _Blob:
    """The binary buffer and the parts of the document that point into it."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []
        self.images: list[dict[str, Any]] = []

    def attribute(self, values: NDArray[Any], bounds: bool = False) -> int:
        """Index of a float accessor of (V, 2 … 4) values."""
        array = np.ascontiguousarray(values, dtype="<f4")
        kind = {2: "VEC2", 3: "VEC3", 4: "VEC4"}[array.shape[1]]
        accessor = {"componentType": FLOAT, "count": len(array), "type": kind}
        if bounds:
            accessor |= {"min": array.min(axis=0).tolist(), "max": array.max(axis=0).tolist()}
        return self._accessor(accessor, array.tobytes(), ARRAY_BUFFER)

    def indices(self, faces: NDArray[Any]) -> int:
        array = np.ascontiguousarray(faces, dtype="<u4")
        accessor = {"componentType": UNSIGNED_INT, "count": array.size, "type": "SCALAR"}
        return self._accessor(accessor, array.tobytes(), ELEMENT_ARRAY_BUFFER)

    def texture(self, png: bytes, name: str) -> int:
        """Index of a texture from the bytes of a PNG file."""
        self.images.append({"name": name, "mimeType": "image/png", "bufferView": self._view(png, None)})
        return len(self.images) - 1

    def document(self) -> dict[str, Any]:
        sampler = {
            "magFilter": LINEAR, "minFilter": LINEAR_MIPMAP_LINEAR, "wrapS": CLAMP_TO_EDGE, "wrapT": CLAMP_TO_EDGE,
        }  # fmt: skip
        return {
            "accessors": self.accessors,
            "bufferViews": self.views,
            "buffers": [{"byteLength": len(self.data)}],
            "images": self.images,
            "samplers": [sampler],
            "textures": [{"sampler": 0, "source": i} for i in range(len(self.images))],
        }

    def _accessor(self, accessor: dict[str, Any], data: bytes, target: int) -> int:
        self.accessors.append({"bufferView": self._view(data, target), **accessor})
        return len(self.accessors) - 1

    def _view(self, data: bytes, target: int | None) -> int:
        self.data += bytes(-len(self.data) % 4)
        view = {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(data)}
        self.views.append(view if target is None else {**view, "target": target})
        self.data += data
        return len(self.views) - 1


def _container(document: dict[str, Any], binary: bytes) -> bytes:
    """The GLB container: a header and two chunks padded to four bytes (glTF 2.0, section 4)."""
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 4)
    binary += bytes(-len(binary) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks
