"""The torch steps of the mesh stage against the numba and scipy ones: on the CPU step by step, on a GPU as a whole.

Both compute the same in single precision, in another order. That moves a distance by some 1e-6, and where a number is
compared with a threshold or rounded to a pixel, single pixels and voxels may fall on the other side. The tests
therefore bound two things: the difference, and the share of places where it is larger.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import analytic
import numpy as np
import pytest
import torch
from scipy import ndimage
from splat_scenes import random_gaussians

from im3d.core.images import OrbitViews
from im3d.core.orbit import Cameras, Orbit
from im3d.mesh import build
from im3d.mesh.build import build_surface
from im3d.mesh.fusion import field, ops_numba, ops_torch, silhouettes
from im3d.mesh.fusion.field import Field, fused_field
from im3d.mesh.fusion.operations import operations_on
from im3d.mesh.fusion.silhouettes import Grid, pixels_for
from im3d.settings import MeshSettings, TextureSettings
from im3d.splats import depth_torch
from im3d.splats.depth import DepthMaps, seen_directions
from im3d.splats.gaussians import Gaussians

CPU = torch.device("cpu")
SIZE = 96
SETTINGS = MeshSettings(grid=64, virtual_views=8)


@functools.cache
def surface_splats(count: int = 12000, radius: float = 0.012) -> Gaussians:
    """Flat splats on the surface of the analytic object, as a converged fit leaves them."""
    rng = np.random.default_rng(0)
    points = rng.uniform(-0.55, 0.55, (8 * count, 3))
    for _ in range(30):
        points -= analytic.signed_distance(points)[:, None] * analytic.normals(points)
    points = points[np.abs(analytic.signed_distance(points)) < 1e-3][:count]
    n = torch.from_numpy(analytic.normals(points)).float()
    # The rotation that takes z to the normal: the axis is z × n, the quaternion (1 + cos, axis).
    quats = torch.stack([1 + n[:, 2], -n[:, 1], n[:, 0], torch.zeros(len(n))], dim=1)
    generator = torch.Generator().manual_seed(0)
    return Gaussians(
        torch.from_numpy(points).float(),
        quats,
        torch.tensor([radius, radius, 0.002]) * (0.7 + 0.6 * torch.rand(len(n), 1, generator=generator)),
        0.3 + 0.65 * torch.rand(len(n), generator=generator),
        torch.rand(len(n), 3, generator=generator),
    )


@pytest.fixture(scope="module")
def scene() -> tuple[Gaussians, OrbitViews]:
    return surface_splats(), analytic.orbit_views(SIZE, count=8)


@dataclasses.dataclass(frozen=True)
class Fusion:
    """What the fusion of the scene takes."""

    maps: DepthMaps
    cameras: Cameras
    real: int
    carves: np.ndarray
    hull: torch.Tensor
    grid: Grid
    truncation: float

    def votes(self, ops: Any) -> np.ndarray:
        arguments = (self.maps, self.cameras, self.real, self.carves, self.hull, self.grid, self.truncation, 0.15)
        return ops.fuse(*arguments).numpy()


@pytest.fixture(scope="module")
def fusion(scene: tuple[Gaussians, OrbitViews]) -> Fusion:
    gaussians, views = scene
    cameras = views.orbit.cameras(SIZE)
    outlines = silhouettes.all_signed_distances(views.rgba[..., 3])
    grid = silhouettes.hull_grid(outlines, cameras, views.orbit.radius, 64, 0.03)
    truncation = 8 * 63 / 191 * grid.step
    seen_from = seen_directions(gaussians, cameras, ops_numba.blending_weights(gaussians, cameras))
    virtual, carves = field.virtual_cameras(8, 15.0, views.orbit.radius, cameras)
    everyone = Cameras(np.concatenate([cameras.viewmats, virtual.viewmats]), cameras.focal, cameras.size)
    hull = torch.from_numpy(silhouettes.hull_field(outlines, cameras, grid, 1.01 * truncation))
    maps, may_carve = ops_numba.median_depth(gaussians, everyone, seen_from), np.concatenate([np.ones(8, bool), carves])
    return Fusion(maps, everyone, 8, may_carve, hull, grid, truncation)


class TestSilhouettes:
    @pytest.mark.parametrize("share", [0.01, 0.5, 0.99, 0.999])
    def test_distances_are_the_same_up_to_the_limit_and_beyond_it_beyond(self, share: float) -> None:
        mask = torch.rand(3, 70, 97, generator=torch.Generator().manual_seed(3)) < share
        for limit in (12, 200):  # the second needs 32 bits
            mine = ops_torch.distance_to_false(mask, limit).numpy()
            true = np.stack([ndimage.distance_transform_edt(m) for m in mask.numpy()])
            near = true <= limit
            np.testing.assert_allclose(mine[near], true[near], atol=1e-5)
            assert (mine[~near] > limit).all()

    def test_signed_distances_are_the_same(self) -> None:
        alpha = analytic.orbit_views(SIZE, count=8).rgba[:3, ..., 3].copy()
        true = np.stack([silhouettes.signed_distances(a) for a in alpha])
        mine = ops_torch.signed_distances(torch.from_numpy(alpha), 6.0)[0].numpy()
        near = np.abs(true) <= 6
        assert 0.2 < near.mean() < 0.8
        np.testing.assert_allclose(mine[near], true[near], atol=1e-5)
        assert (np.sign(mine) == np.sign(true)).all()
        assert (np.abs(mine[~near]) > 6).all()

    @pytest.mark.parametrize(("radius", "size"), [(2.0, SIZE), (0.7, 32)])  # at 0.7 points lie behind cameras
    def test_the_hull_is_the_same_as_far_as_it_counts(self, radius: float, size: int) -> None:
        views = analytic.orbit_views(size, count=8)
        cameras = dataclasses.replace(views.orbit, radius=radius).cameras(size)
        grid = Grid(np.array([-0.62, -0.6, -0.66]), 1.25 / 47, 48)
        cut = 0.06
        alpha = views.rgba[..., 3].copy()
        outlines = np.stack([silhouettes.signed_distances(a) for a in alpha])
        plain = silhouettes.hull_field(outlines, cameras, grid, cut)
        limit = pixels_for(cut, cameras, grid)
        assert (limit > size) == (radius < 1)
        distances, _ = ops_torch.signed_distances(torch.from_numpy(alpha), limit)
        mine = ops_torch.hull_field(distances, cameras, grid, cut).numpy()
        assert 0.01 < (np.abs(plain) < cut).mean() < 0.9
        # Numba stops a thousandth of a sample before the picture's border: a quarter of that in pixels, at the depth of
        # the farthest point.
        rounding = 3e-4 * (radius + 1) / cameras.focal
        np.testing.assert_allclose(mine.clip(-cut, cut), plain.clip(-cut, cut), atol=rounding)

    def test_a_limit_that_is_too_small_would_be_seen(self) -> None:
        views = analytic.orbit_views(SIZE, count=8)
        cameras = views.orbit.cameras(SIZE)
        grid = Grid(np.array([-0.62, -0.6, -0.66]), 1.25 / 47, 48)
        alpha = torch.from_numpy(views.rgba[..., 3].copy())
        limit = pixels_for(0.06, cameras, grid)
        assert limit < SIZE / 4
        fields = [
            ops_torch.hull_field(ops_torch.signed_distances(alpha, pixels)[0], cameras, grid, 0.06)
            for pixels in (limit, 2 * limit, limit / 4)
        ]
        enough, more, little = (f.clamp(-0.06, 0.06) for f in fields)
        assert torch.equal(enough, more)
        assert not torch.equal(enough, little)


class TestDepth:
    # 70 pixels end within a tile; the large splats of the third scene each cover many tiles.
    @pytest.mark.parametrize(("count", "spread", "size"), [(3000, 0.02, 96), (1500, 0.03, 70), (300, 0.2, 96)])
    def test_depth_coverage_and_facing_are_the_same(self, count: int, spread: float, size: int) -> None:
        gaussians = random_gaussians(count, spread, seed=count).detach()
        cameras = Orbit.uniform(3, 20.0, 40.0, 2.0).cameras(size)
        seen_from = torch.nn.functional.normalize(gaussians.means, dim=1)
        plain = ops_numba.median_depth(gaussians, cameras, seen_from)
        mine = ops_torch.median_depth(gaussians, cameras, seen_from)
        assert (plain.depth > 0).float().mean() > 0.1
        # A splat just at the 1/255 cut-off counts in one and not in the other: so much light it stops, and no more.
        assert (mine.alpha - plain.alpha).abs().max() < 1 / 255
        assert (mine.alpha - plain.alpha).abs().mean() < 1e-6
        # Facing is a mean over what was stopped; where next to nothing was, it says nothing.
        solid = plain.alpha > 0.1
        assert (mine.facing - plain.facing).abs()[solid].max() < 0.005
        # Where just half of the light is stopped, the next splat may be taken.
        assert ((mine.depth - plain.depth).abs() > 1e-5).float().mean() < 2e-4

    def test_depth_is_that_of_the_front_wall_and_slants_with_it(self, scene: tuple[Gaussians, OrbitViews]) -> None:
        gaussians, views = scene
        cameras = views.orbit.cameras(SIZE)
        toward = torch.zeros_like(gaussians.means)
        plain = ops_numba.median_depth(gaussians, cameras, toward).depth
        mine = ops_torch.median_depth(gaussians, cameras, toward).depth
        assert ((mine - plain).abs() > 1e-5).float().mean() < 1e-4
        flat = dataclasses.replace(gaussians, scales=gaussians.scales * 1e-3)
        assert (ops_torch.median_depth(flat, cameras, toward).depth - plain).abs().max() > 1e-2

    def test_groups_of_cameras_and_of_tiles_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gaussians = random_gaussians(800, 0.03, seed=4).detach()
        cameras = Orbit.uniform(5, 20.0, 40.0, 2.0).cameras(64)
        seen_from = torch.nn.functional.normalize(gaussians.means, dim=1)
        whole = ops_torch.median_depth(gaussians, cameras, seen_from)
        monkeypatch.setattr(depth_torch, "SPLATS_AT_ONCE", 1600)  # two cameras, two, and one
        monkeypatch.setattr(depth_torch, "TILES_AT_ONCE", 5)
        parts = ops_torch.median_depth(gaussians, cameras, seen_from)
        for name in ("depth", "alpha", "facing"):
            torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=0, atol=1e-5)

    def test_nothing_to_see_and_nobody_to_see_it(self) -> None:
        gaussians = random_gaussians(20, 0.03, seed=4).detach()
        cameras = Orbit.uniform(2, 20.0, 40.0, 2.0).cameras(48)
        behind = dataclasses.replace(gaussians, means=gaussians.means + torch.tensor([0.0, 0.0, 50.0]))
        for splats in (behind, gaussians[:0]):
            empty = ops_torch.median_depth(splats, cameras, splats.means)
            assert empty.depth.shape == (2, 48, 48)
            assert not empty.depth.any()
            assert not empty.alpha.any()
        assert ops_torch.median_depth(gaussians, cameras[:0], gaussians.means).depth.shape == (0, 48, 48)

    def test_blending_weights_are_the_same(self) -> None:
        gaussians = random_gaussians(2000, 0.03, seed=2).detach()
        cameras = Orbit.uniform(2, 20.0, 40.0, 2.0).cameras(96)
        plain = ops_numba.blending_weights(gaussians, cameras)
        mine = ops_torch.blending_weights(gaussians, cameras)
        # A pixel at the cut-off adds or lacks 1/255.
        torch.testing.assert_close(mine, plain, rtol=1e-3, atol=3 / 255)
        assert (mine - plain).abs().sum() / plain.sum() < 1e-4


class TestVolumes:
    @pytest.fixture
    def mask(self) -> np.ndarray:
        noise = np.random.default_rng(1).normal(size=(30, 25, 34))
        return ndimage.gaussian_filter(noise, 1.5) > 0.02

    @pytest.mark.parametrize("steps", [1, 3])
    def test_morphology_is_the_same(self, mask: np.ndarray, steps: int) -> None:
        before = torch.from_numpy(mask).clone()
        for change in (True, False):
            mine, plain = (ops.dilated(torch.from_numpy(mask), steps, change) for ops in (ops_torch, ops_numba))
            assert torch.equal(mine, plain)
            assert plain.sum() > before.sum()
            mine, plain = (ops.eroded(torch.from_numpy(mask), steps, change) for ops in (ops_torch, ops_numba))
            assert torch.equal(mine, plain)
            assert plain.sum() < before.sum()
        assert torch.equal(torch.from_numpy(mask), before)

    def test_what_is_connected_to_the_corner_is_found_around_bends(self, mask: np.ndarray) -> None:
        mask[0, 0, 0] = True
        mask[10:20, 5:15] = False
        mask[12:18, 7:13, 20:30] = True  # a room without a door
        mine, plain = (ops.connected_to_corner(torch.from_numpy(mask)) for ops in (ops_torch, ops_numba))
        assert torch.equal(mine, plain)
        assert not plain[12:18, 7:13, 20:30].any()
        assert 0.05 < plain.float().mean() < mask.mean()

    @pytest.mark.parametrize("deviation", [0.33, 1.0, 4.0])  # the last reaches beyond the shortest side
    def test_smoothing_is_the_same(self, deviation: float) -> None:
        volume = torch.randn(30, 12, 34, generator=torch.Generator().manual_seed(2))
        mine, plain = (ops.smoothed(volume, deviation) for ops in (ops_torch, ops_numba))
        torch.testing.assert_close(mine, plain, atol=2e-6, rtol=0)
        assert plain.std() < volume.std()


class TestFusion:
    def compare(self, plain: np.ndarray, mine: np.ndarray) -> None:
        """Equal but for rounding. Columns and rows in 16 pictures are known to some 5e-6 pixels, so that about
        2 · 16 · 5e-6 of the points fall between two pixels and may take either; that moves one vote of 16.
        """
        difference = np.abs(plain - mine)
        assert (difference > 1e-4).mean() < 2e-4
        assert difference.max() < 0.3

    def test_votes_are_the_same(self, fusion: Fusion) -> None:
        plain, mine = fusion.votes(ops_numba), fusion.votes(ops_torch)
        assert (np.abs(plain) < 0.9).mean() > 0.02
        # Every other camera looks along x = ±y: what lies there is just between its two middle columns of pixels.
        x = np.arange(fusion.grid.n) * fusion.grid.step + fusion.grid.low[0]
        y = np.arange(fusion.grid.n) * fusion.grid.step + fusion.grid.low[1]
        between = np.abs(np.abs(x)[:, None] - np.abs(y)) < 1e-6
        assert 0 < between.mean() < 0.05
        self.compare(plain[~between], mine[~between])
        assert (np.abs(plain - mine)[between] > 1e-4).mean() < 0.01

    def test_votes_on_torn_maps_and_at_borders_are_the_same(self, fusion: Fusion) -> None:
        """Random pictures: every rule is used everywhere, up to the rim, where depth is extrapolated."""
        rng = np.random.default_rng(0)
        shape = fusion.maps.depth.shape
        smooth = ndimage.gaussian_filter(rng.normal(size=shape), (0, 4, 4))
        depth = (fusion.grid.step * 40 * smooth / smooth.std() * 0.2 + 2).astype(np.float32)
        depth += (rng.random(shape) < 0.2) * np.float32(0.4)
        depth[rng.random(shape) < 0.05] = 0
        alpha = (ndimage.gaussian_filter(rng.random(shape), (0, 3, 3)) > 0.47).astype(np.float32)
        facing = rng.uniform(-1, 1, shape).astype(np.float32)
        # Nearer, so that the object fills more than the pictures; and off the planes of symmetry, whose points lie just
        # between two pixels of every other camera.
        close = Cameras(fusion.cameras.viewmats, fusion.cameras.focal * 2, SIZE)
        off = Grid(fusion.grid.low + np.array([0.0031, 0.0017, 0.0023]), fusion.grid.step, fusion.grid.n)
        maps = DepthMaps(*(torch.from_numpy(a) for a in (depth, alpha, facing)))
        hull = torch.full_like(fusion.hull, -1)
        torn = dataclasses.replace(fusion, maps=maps, cameras=close, grid=off, hull=hull)
        self.compare(torn.votes(ops_numba), torn.votes(ops_torch))

    def test_chunks_change_nothing(self, fusion: Fusion, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = fusion.votes(ops_torch)
        monkeypatch.setattr(ops_torch, "VOXELS_AT_ONCE", 10007)
        assert np.array_equal(fusion.votes(ops_torch), whole)

    def test_the_lowest_point_seen_is_that_of_the_object(self, fusion: Fusion) -> None:
        assert -0.6 < field._lowest_seen(fusion.maps, fusion.cameras, 8) < -0.4


def assert_same_field(mine: Field, plain: Field) -> None:
    """The whole chain: a voxel that is torn at a threshold (inside, reached, thin) may change sides as a whole."""
    np.testing.assert_allclose(mine.grid.low, plain.grid.low, atol=1e-6)
    assert mine.grid.step == pytest.approx(plain.grid.step, rel=1e-6)
    difference = np.abs(mine.values - plain.values)
    assert (difference > 1e-3).mean() < 1e-3
    assert difference.mean() < 5e-5
    assert ((mine.values < 0) != (plain.values < 0)).mean() < 1e-4


@pytest.fixture
def by_torch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Field]:
    """`fused_field` with torch's operations on the CPU."""

    def fused(*arguments: Any) -> Field:
        with monkeypatch.context() as patch:
            patch.setattr(field, "operations_on", lambda _: ops_torch)
            return fused_field(*arguments)

    return fused


@pytest.mark.slow
@pytest.mark.parametrize("elevation", [15.0, 0.0])  # with the low ring of cameras, and without it
def test_the_whole_field_is_the_same(elevation: float, by_torch: Callable[..., Field]) -> None:
    views = analytic.orbit_views(64, 8, elevation)
    gaussians = surface_splats(4000, 0.018)
    plain = fused_field(gaussians, views, SETTINGS)
    assert (plain.values < 0).mean() > 0.05
    steps: list[int] = []
    assert_same_field(by_torch(gaussians, views, SETTINGS, lambda step, _: steps.append(step)), plain)
    assert steps == [1, 2, 3, 4, 5]


def test_every_tensor_is_made_on_the_device_of_the_others(by_torch: Callable[..., Field]) -> None:
    """One that is not would be made on the default device: on a GPU machine the CPU, here one that holds no numbers."""
    scene = surface_splats(4000, 0.018), analytic.orbit_views(48, count=4)
    settings = dataclasses.replace(SETTINGS, grid=32, virtual_views=2)
    with torch.device("meta"):
        mine = by_torch(*scene, settings)
    assert np.isfinite(mine.values).all()


def test_the_device_decides_who_fuses(scene: tuple[Gaussians, OrbitViews], monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba on the CPU, torch elsewhere; and a surface hands its device on."""
    assert operations_on(CPU) is ops_numba
    assert operations_on(torch.device("cuda")) is ops_torch

    def stop(device: torch.device) -> None:
        raise KeyboardInterrupt(device)  # enough is known

    monkeypatch.setattr(field, "operations_on", stop)
    with pytest.raises(KeyboardInterrupt, match="cuda"):
        build_surface(*scene, SETTINGS, device=torch.device("cuda"))


def test_the_texture_waits_for_its_atlas_and_loses_no_error(
    scene: tuple[Gaussians, OrbitViews], monkeypatch: pytest.MonkeyPatch
) -> None:
    surface = build_surface(*scene, dataclasses.replace(SETTINGS, faces=800, outline_rounds=0))
    settings = TextureSettings(size=64, polish=0)
    textured = build.texture_surface(surface, *scene, settings)
    assert np.array_equal(textured.mesh.uv, build.unwrap(surface.mesh, 64).uv)
    assert textured.base_color.shape == (64, 64, 3)

    def broken(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(build, "unwrap", broken)
    with pytest.raises(OSError, match="no space"):
        build.texture_surface(surface, *scene, settings)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="No CUDA device is visible to torch.")
@pytest.mark.parametrize("elevation", [15.0, 0.0])
def test_the_field_of_a_gpu_is_that_of_the_cpu(elevation: float) -> None:
    views = analytic.orbit_views(128, 16, elevation)
    gaussians = surface_splats()
    settings = MeshSettings(grid=96)
    assert_same_field(
        fused_field(gaussians, views, settings, device=torch.device("cuda")), fused_field(gaussians, views, settings)
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="No CUDA device is visible to torch.")
def test_textures_are_the_same_on_a_gpu(scene: tuple[Gaussians, OrbitViews]) -> None:
    surface = build_surface(*scene, dataclasses.replace(SETTINGS, faces=800, outline_rounds=0))
    settings = TextureSettings(size=128)
    on_cpu, on_gpu = (build.texture_surface(surface, *scene, settings, device=torch.device(d)) for d in ("cpu", "cuda"))
    assert on_gpu.unseen == on_cpu.unseen
    assert np.abs(on_gpu.base_color - on_cpu.base_color).mean() < 1e-3
