"""The pack reader: decoding, axes, and a split that nobody can shift by accident."""

from __future__ import annotations

import io
import json
import lzma
from pathlib import Path

import numpy as np
import pytest

from im3d.errors import InputError
from im3d_lab.packs import TEST_OBJECTS, Pack, to_world


def write_pack(path: Path, objects: int, groups: int | None) -> Path:
    index, arrays = [], {}
    for i in range(objects):
        entry = {"id": f"set/prop{i}/prop{i}.obj", "name": f"prop {i}", "category": "Test", "licence": "CC0-1.0"}
        entry["parts"] = [{"color": [0.2, 0.4, 0.6], "opacity": 1.0, "textured": i % 2 == 1, "alpha": True}]
        if groups is not None:
            entry["group"] = f"g{i % groups}"
        index.append(entry)
        arrays[f"{i}.0.vertices"] = np.array([[32767, 0, 0], [0, 32767, 0], [0, 0, -16384 - i]], np.int16)
        arrays[f"{i}.0.faces"] = np.array([[0, 1, 2]], np.uint16)
        arrays[f"{i}.0.uv"] = np.array([[0, 0], [1, 0], [np.inf, 1]], np.float16)
        if i % 2 == 1:
            arrays[f"{i}.0.texture_webp"] = np.frombuffer(b"RIFF" + bytes([i % 256]), np.uint8)
    arrays["index_json"] = np.frombuffer(json.dumps(index).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    path.write_bytes(lzma.compress(buffer.getvalue(), preset=0) if path.suffix == ".xz" else buffer.getvalue())
    return path


def test_decodes_parts(tmp_path: Path) -> None:
    pack = Pack.open(write_pack(tmp_path / "two.npz.xz", 2, None), cache=tmp_path / "cache")
    assert len(pack) == 2
    plain, textured = pack[0].parts[0], pack["set/prop1/prop1.obj"].parts[0]
    np.testing.assert_allclose(plain.vertices, [[1, 0, 0], [0, 1, 0], [0, 0, -16384 / 32767]], rtol=1e-6)
    assert plain.texture is None
    assert plain.color == (0.2, 0.4, 0.6)
    assert textured.texture == b"RIFF\x01"
    assert textured.alpha
    assert textured.uv is not None
    assert np.isfinite(textured.uv).all()


def test_unpacked_copy_is_reused(tmp_path: Path) -> None:
    path, cache = write_pack(tmp_path / "p.npz.xz", 3, None), tmp_path / "cache"
    Pack.open(path, cache=cache)
    (copy,) = cache.iterdir()
    before = copy.stat().st_mtime_ns
    assert Pack.open(path, cache=cache).ids == Pack.open(copy).ids
    assert copy.stat().st_mtime_ns == before


def test_split_is_exact_and_keeps_groups(tmp_path: Path) -> None:
    pack = Pack.open(write_pack(tmp_path / "p.npz", 400, 267))
    assert pack.splits.count("test") == TEST_OBJECTS
    assert 5 <= pack.splits.count("validation") <= 60
    of_group: dict[str, set[str]] = {}
    for prop in pack:
        of_group.setdefault(prop.group, set()).add(prop.split)
    assert all(len(splits) == 1 for splits in of_group.values())


def test_split_does_not_change_between_versions(tmp_path: Path) -> None:
    """A model trained by one release is tested by the next on what it has not seen."""
    pack = Pack.open(write_pack(tmp_path / "p.npz", 200, 100))
    test = {pack[i].group for i in pack.ids_of("test")}
    assert sorted(test)[:5] == ["g11", "g21", "g26", "g28", "g36"]


def test_numbered_folders_are_one_group(tmp_path: Path) -> None:
    pack = Pack.open(write_pack(tmp_path / "p.npz", 3, None))
    assert {prop.group for prop in pack} == {"prop"}


def test_world_axes() -> None:
    """glTF's up (+Y) becomes +Z, its front (+Z) becomes −Y; centred, longest side 1."""
    box = np.array([[-1, 0, -2], [1, 8, 2]], np.float32)
    nose = np.array([[0, 4, 2]], np.float32)
    corners, front = to_world([box, nose])
    np.testing.assert_allclose(corners.min(axis=0), [-0.125, -0.25, -0.5], atol=1e-7)
    np.testing.assert_allclose(corners.max(axis=0), [0.125, 0.25, 0.5], atol=1e-7)
    np.testing.assert_allclose(front[0], [0, -0.25, 0], atol=1e-7)


@pytest.mark.parametrize("content", [None, b"no pack"])
def test_bad_files_are_explained(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bad.npz.xz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="pack"):
        Pack.open(path, cache=tmp_path)


def test_unknown_id(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        Pack.open(write_pack(tmp_path / "p.npz", 1, None))["nowhere"]
