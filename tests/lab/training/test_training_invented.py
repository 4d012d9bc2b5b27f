"""Props made of training props: of those alone, inside the unit sphere, in a pack that training can use."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from training_props import box

from im3d_lab.packs import Pack
from im3d_lab.training.data.grids import AT_SURFACE, distance_grid
from im3d_lab.training.data.invented import _joined, _Piece, bent, invented_pack


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 boxes, each of a colour of its own."""
    path = tmp_path_factory.mktemp("pack") / "props.npz"
    index, arrays = [], {}
    for i in range(120):
        part = box()
        entry = {"id": str(i), "name": str(i), "category": "", "licence": "CC0-1.0", "group": f"g{i}"}
        index.append({**entry, "parts": [{"color": [i / 120, 0.0, 0.0], "opacity": 1.0, "textured": False}]})
        arrays[f"{i}.0.vertices"] = (part.vertices * 32767 / 2).astype(np.int16)
        arrays[f"{i}.0.faces"] = part.faces
    arrays["index_json"] = np.frombuffer(json.dumps(index).encode(), np.uint8)
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def test_the_pack_is_made_of_training_props_alone_and_made_once(pack: Path, tmp_path: Path) -> None:
    path = invented_pack([pack], tmp_path, 40, seed=0)
    made, source = Pack.open(path), Pack.open(pack)
    assert len(made) == 40
    assert set(made.splits) == {"train"}
    colours = {part.color for i in source.ids_of("train") for part in source[i].parts}
    used = [part.color for prop in made for part in prop.parts]
    assert set(used) <= colours
    assert len(set(used)) > 10
    counts = [len(prop.parts) / len(source[0].parts) for prop in made]
    assert {1, 2} <= set(counts) <= {1, 2, 3}
    written = path.stat().st_mtime_ns
    assert invented_pack([pack], tmp_path, 40, seed=0) == path
    assert path.stat().st_mtime_ns == written
    other = Pack.open(invented_pack([pack], tmp_path, 40, seed=1))
    assert any(len(a.parts) != len(b.parts) for a, b in zip(made, other, strict=True))


def test_props_fill_the_unit_sphere_and_have_an_inside(pack: Path, tmp_path: Path) -> None:
    for prop in Pack.open(invented_pack([pack], tmp_path, 6, seed=0)):
        radius = np.linalg.norm(np.concatenate([part.vertices for part in prop.parts]), axis=1).max()
        assert radius == pytest.approx(1, abs=1e-3)
        grid, _ = distance_grid(prop)
        assert (grid[..., 3] > AT_SURFACE).any()


def test_bending_moves_vertices_alike_and_keeps_both_sides_alike() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (200, 3))
    points = np.concatenate([points, points * [-1, 1, 1]])
    symmetric = 0
    for seed in range(20):
        (first, second) = bent([points[:200], points[200:]], np.random.default_rng(seed))
        (together,) = bent([points], np.random.default_rng(seed))
        np.testing.assert_allclose(np.concatenate([first, second]), together)
        assert not np.allclose(together, points, atol=0.01)
        symmetric += np.allclose(first * [-1, 1, 1], second, atol=1e-9)
    assert 5 < symmetric < 18


def test_joined_props_touch() -> None:
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)
    for seed in range(30):
        piece = _joined(_Piece((), [corners]), _Piece((), [corners * [0.5, 2, 1]]), np.random.default_rng(seed))
        low, high = piece.vertices[1].min(axis=0), piece.vertices[1].max(axis=0)
        assert (low <= 1 + 1e-9).all()
        assert (high >= -1 - 1e-9).all()
