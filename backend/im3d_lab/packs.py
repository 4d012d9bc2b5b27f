"""Packs of textured props: one .npz.xz file with the meshes, textures and licences of some hundred objects.

A pack's `index_json` lists the objects; part j of object i has the arrays `i.j.vertices` (int16 over the unit sphere),
`i.j.faces`, `i.j.uv` (float16, origin at the bottom left) and `i.j.texture_webp` (the bytes of a picture). Objects
stand in glTF's axes: Y up, front +Z.

The split is a property of the object, stable across machines and runs: objects of one group (variants of one model)
are ordered by the SHA-256 of the group's name; the first groups of at most `TEST_GROUP` members that fit make exactly
`TEST_OBJECTS` test objects (a large group would fill the test with one motif), of the others one in
`VALIDATION_ONE_IN` (by the same hash) validates and the rest trains.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from im3d.core.orbit import GLTF_FROM_WORLD
from im3d.core.storage import require_file
from im3d.errors import InputError
from im3d.shared.paths import cache_folder

Split = Literal["train", "validation", "test"]
TEST_OBJECTS = 40
TEST_GROUP = 2
VALIDATION_ONE_IN = 20

INT16_SCALE = np.float32(1 / 32767)


@dataclass(frozen=True)
class Part:
    """A mesh with one material.

    Attributes:
        vertices: (V, 3) float32 inside the unit sphere, Y up, front +Z.
        faces: (F, 3) int32.
        uv: (V, 2) float32 with the origin at the bottom left, repeating outside [0, 1], or None.
        color: Base colour of a part without texture, sRGB in [0, 1].
        texture: Bytes of a WebP picture, or None.
        alpha: Whether the texture's alpha cuts holes into the part (alpha-tested foliage, fences).
        opacity: The material's opacity in [0, 1]; renders here take every part as opaque.
    """

    vertices: NDArray[np.float32]
    faces: NDArray[np.int32]
    uv: NDArray[np.float32] | None
    color: tuple[float, float, float]
    texture: bytes | None
    alpha: bool
    opacity: float


@dataclass(frozen=True)
class Prop:
    """An object of a pack.

    Attributes:
        id: Unique in its pack.
        name: The author's name for it, in words.
        category: As in the source.
        licence: SPDX-like, e.g. "CC0-1.0".
        group: Shared by the variants of one model, which are never divided between splits.
        split: Where it belongs; see the module's text.
        parts: Its meshes.
    """

    id: str
    name: str
    category: str
    licence: str
    group: str
    split: Split
    parts: tuple[Part, ...]

    def world_vertices(self) -> list[NDArray[np.float32]]:
        """The parts' vertices, (V, 3) each, in this product's world: Z up, front −Y, centred, longest side 1."""
        return to_world([p.vertices for p in self.parts])


class Pack:
    """A pack on disk; the index is read at once, meshes and textures when they are asked for.

    `len(pack)`, `pack[i]` and iteration give `Prop`s in the order of the file. Not safe to share between threads or
    forked processes: each opens its own.

    Attributes:
        groups: The objects' groups, in order; see `Prop`.
        splits: Their splits, in order.
    """

    def __init__(self, arrays: Any, path: Path) -> None:
        self._arrays = arrays
        self.path = path
        self._index: list[dict[str, Any]] = json.loads(bytes(arrays["index_json"]))
        groups = [_group(entry) for entry in self._index]
        self.groups = groups
        self.splits: list[Split] = _splits(groups)
        self._row = {entry["id"]: i for i, entry in enumerate(self._index)}

    @classmethod
    def open(cls, path: Path | str, cache: Path | None = None) -> Pack:
        """Opens a `.npz` or `.npz.xz` pack.

        Unpacking xz takes seconds, so the plain npz is kept in `cache` (the user's cache folder by default), named
        by the size and time of the original.

        Raises:
            InputError: The file is absent or not a pack.
        """
        path = Path(path)
        require_file(path, "a .npz.xz pack")
        try:
            plain = path if path.suffix == ".npz" else _unpacked(path, cache or cache_folder() / "packs")
            return cls(np.load(plain, allow_pickle=False), path)
        except (OSError, lzma.LZMAError, ValueError, KeyError) as error:
            raise InputError(f"{path} cannot be read as a pack of props.", "Use a .npz.xz pack.") from error

    @property
    def ids(self) -> list[str]:
        """The objects' ids, in order."""
        return [entry["id"] for entry in self._index]

    def ids_of(self, split: Split) -> list[str]:
        """The ids of one split, in order."""
        return [entry["id"] for entry, s in zip(self._index, self.splits, strict=True) if s == split]

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[Prop]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key: int | str) -> Prop:
        """The object at a position or with an id.

        Raises:
            InputError: No object has this id.
        """
        if isinstance(key, str):
            if key not in self._row:
                raise InputError(f"{self.path.name} has no object {key}.", "Choose one of the pack's ids.")
            key = self._row[key]
        entry = self._index[key]
        return Prop(
            id=entry["id"],
            name=entry["name"],
            category=entry["category"],
            licence=entry["licence"],
            group=self.groups[key],
            split=self.splits[key],
            parts=tuple(self._part(f"{key}.{j}.", part) for j, part in enumerate(entry["parts"])),
        )

    def _part(self, prefix: str, entry: dict[str, Any]) -> Part:
        arrays = self._arrays
        uv = None
        if prefix + "uv" in arrays:
            uv = np.nan_to_num(arrays[prefix + "uv"].astype(np.float32), posinf=0, neginf=0)
        red, green, blue = entry["color"]
        return Part(
            vertices=arrays[prefix + "vertices"].astype(np.float32) * INT16_SCALE,
            faces=arrays[prefix + "faces"].astype(np.int32),
            uv=uv,
            color=(red, green, blue),
            texture=bytes(arrays[prefix + "texture_webp"]) if entry["textured"] else None,
            alpha=bool(entry.get("alpha", False)),
            opacity=float(entry.get("opacity", 1.0)),
        )


def to_world(parts: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Vertices of one object in glTF's axes (Y up, front +Z) moved to the world of `im3d.core.orbit`.

    Args:
        parts: (V, 3) arrays that share one coordinate system.

    Returns:
        As many arrays: Z up, front −Y, common bounding box centred at the origin, its longest side 1.
    """
    turned = [p.astype(np.float64) @ GLTF_FROM_WORLD for p in parts]
    low = np.min([p.min(axis=0) for p in turned], axis=0)
    high = np.max([p.max(axis=0) for p in turned], axis=0)
    return [((p - (low + high) / 2) / (high - low).max()).astype(np.float32) for p in turned]


def _unpacked(path: Path, cache: Path) -> Path:
    stat = path.stat()
    plain = cache / f"{path.name.removesuffix('.npz.xz')}-{stat.st_size}-{int(stat.st_mtime)}.npz"
    if not plain.exists():
        cache.mkdir(parents=True, exist_ok=True)
        # Several processes may meet here; each writes its own file and the last rename wins.
        with tempfile.NamedTemporaryFile(dir=cache, suffix=".part", delete=False) as partial:
            partial.write(lzma.decompress(path.read_bytes()))
        os.replace(partial.name, plain)
    return plain


def _group(entry: dict[str, Any]) -> str:
    """The pack's own group, or the letters of the model's folder name: "male01" and "male02" are one group."""
    if "group" in entry:
        return str(entry["group"])
    path = entry["id"].split("/")
    name = path[-2] if len(path) > 1 else path[-1]
    return re.sub(r"[^a-z]", "", name.lower()) or name


def _splits(groups: Sequence[str]) -> list[Split]:
    members: dict[str, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    digest = {group: int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") for group in members}
    splits: list[Split] = ["train"] * len(groups)
    wanted = TEST_OBJECTS
    for group in sorted(members, key=lambda g: digest[g]):
        split: Split = "train"
        if len(members[group]) <= min(wanted, TEST_GROUP):
            split = "test"
            wanted -= len(members[group])
        elif digest[group] % VALIDATION_ONE_IN == 0:
            split = "validation"
        for i in members[group]:
            splits[i] = split
    return splits
