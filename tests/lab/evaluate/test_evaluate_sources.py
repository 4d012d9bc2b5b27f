"""What an evaluation runs on: the draw of objects, their cameras' elevations, and distorted views."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from im3d.core.images import OrbitViews
from im3d.core.orbit import Orbit
from im3d.errors import InputError
from im3d.generators.mini.generator import MiniGenerator
from im3d.generators.sv3d.generator import Sv3dGenerator
from im3d.settings import parse_overrides, preset_settings
from im3d_lab.evaluate.ablation import variants
from im3d_lab.evaluate.objects import ELEVATIONS_DEG, draw_elevation, find_objects
from im3d_lab.evaluate.run import Plan
from im3d_lab.evaluate.warp import Warp, warped

CUBE = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 2 3\nf 1 2 4\nf 2 3 4\nf 1 3 4\n"


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    for folder, count in (("a", 6), ("b", 2)):
        (tmp_path / folder).mkdir()
        for i in range(count):
            (tmp_path / folder / f"{folder}_{i}.obj").write_text(CUBE)
    return [tmp_path / "a", tmp_path / "b"]


def test_samples_are_seeded_and_even(folders: list[Path]) -> None:
    def names(seed: int, count: int) -> list[str]:
        return [o.id for o in find_objects(folders, [], count, seed, "test")]

    assert names(1, 4) == names(1, 4)
    assert [n[0] for n in names(1, 4)] == ["a", "a", "b", "b"]
    assert set(names(1, 4)) < set(names(1, 6))
    assert any(names(1, 3) != names(s, 3) for s in range(2, 8))
    assert len(find_objects(folders, [], None, 0, None)) == 8


def test_ids_and_errors(folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = find_objects(folders, ["b_1.obj"], None, 0, "test")
    assert (found.id, found.name) == ("b_1.obj", "b 1")
    with pytest.raises(InputError, match="c_1"):
        find_objects(folders, ["c_1.obj"], None, 0, "test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no object"):
        find_objects([tmp_path / "empty"], [], None, 0, "test")
    monkeypatch.setenv("IM3D_HOME", str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="no --objects"):
        find_objects([], [], None, 0, "test")


def test_folder_names_are_safe_and_unique(folders: list[Path]) -> None:
    names = {o.folder_name for o in find_objects(folders, [], None, 0, None)}
    assert len(names) == 8
    assert all(set(n) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for n in names)


def test_elevations_cover_the_range() -> None:
    drawn = [draw_elevation(f"object {i}", 0) for i in range(300)]
    low, high = ELEVATIONS_DEG
    assert low <= min(drawn) < low + 1
    assert high - 1 < max(drawn) <= high
    assert drawn[:5] == [draw_elevation(f"object {i}", 0) for i in range(5)]
    assert drawn[:5] != [draw_elevation(f"object {i}", 1) for i in range(5)]


def disc(size: int = 128) -> OrbitViews:
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    rgba = np.zeros((4, size, size, 4), np.float32)
    rgba[..., :3] = 0.5
    rgba[..., 3] = x**2 + y**2 < (size / 4) ** 2
    return OrbitViews(rgba, Orbit.uniform(4, 10.0))


def test_warp_is_seeded_and_spares_the_input() -> None:
    views = disc()
    a, b, c = warped(views, 1), warped(views, 1), warped(views, 2)
    np.testing.assert_array_equal(a.rgba, b.rgba)
    assert np.abs(a.rgba - c.rgba).max() > 0.1
    np.testing.assert_array_equal(a.rgba[0], views.rgba[0])
    assert all(np.abs(a.rgba[k] - views.rgba[k]).max() > 0.1 for k in (1, 2, 3))


def test_warp_moves_by_what_it_says() -> None:
    """A ramp turns displacement into brightness: its error is one component of the shift, √½ of its length."""
    size, views = 128, disc()
    views.rgba[..., :3] = np.linspace(0.2, 0.8, size, dtype=np.float32)[:, None]
    views.rgba[..., 3] = 1
    moved = warped(views, 3, Warp(shift_px=4.0, gain=0, offset=0)).rgba[1:]
    error = (moved - views.rgba[1:])[:, 16:-16, 16:-16, 0] * (size - 1) / 0.6
    assert np.sqrt((error**2).mean()) == pytest.approx(4.0 * 0.5 * np.sqrt(0.5), rel=0.35)
    still = warped(views, 3, Warp(shift_px=0, gain=0, offset=0))
    np.testing.assert_allclose(still.rgba, views.rgba, atol=1e-6)


def test_variants_of_the_paper() -> None:
    plan = Plan("oracle", 16, 256, 0, "standard", ("fit.iterations=10",))
    assert [v.plan for v in variants(None, plan)] == [plan]
    losses = variants("losses", plan)
    shipped = preset_settings("standard", provided_views=True)
    weights = [parse_overrides(shipped, v.plan.settings).fit for v in losses]
    assert [(f.lpips, f.ms_ssim, f.mask, f.rgb) for f in weights] == [
        (10, 0.2, 1, 0),
        (0, 0.2, 1, 0),
        (0, 0.2, 1, 10),
        (10, 0, 1, 0),
        (10, 0.2, 0, 0),
    ]
    assert all(f.iterations == 10 for f in weights)
    assert len({v.name for v in losses}) == 5
    assert [v.plan.views for v in variants("frames", plan)] == [16, 8, 4]
    with pytest.raises(InputError, match="cannot be refined"):
        variants("iterations", plan)
    fewer = variants("frames", Plan("mini", 16, 256, 0, "standard"))
    assert [(v.plan.views, parse_overrides(shipped, v.plan.settings).mini.views) for v in fewer] == [
        (16, 16), (16, 8), (16, 4),
    ]  # fmt: skip
    with pytest.raises(InputError, match="views that it was trained with"):
        variants("frames", Plan("sv3d_u", 16, 256, 0, "standard"))


@pytest.mark.parametrize("source", ["mini", "sv3d_u", "sv3d_p"])
def test_variants_of_the_restarts_noise(source: str) -> None:
    plan = Plan(source, 16, 256, 0, "standard")
    restarts = [parse_overrides(preset_settings("standard"), v.plan.settings).refine for v in variants("noise", plan)]
    assert [r.rounds for r in restarts] == [0, 2, 2, 2, 2, 2, 2]
    noises = [r.noise for r in restarts[1:]]
    assert noises == sorted(noises)
    # The generators' own levels lie inside.
    for kind in (MiniGenerator, Sv3dGenerator):
        assert noises[0] < kind.refine_noise < noises[-1]
    assert Sv3dGenerator.refine_noise in noises
    with pytest.raises(InputError, match="cannot be refined"):
        variants("noise", Plan("oracle", 16, 256, 0, "standard"))
