"""The torch steps of the mesh stage against the numba and scipy ones: on the CPU step by step, on a GPU as a whole.

Both compute the same in single precision, in another order. That moves a distance by some 1e-6, and where a number is
compared with a threshold or rounded to a pixel, single pixels and voxels may fall on the other side. The tests
therefore bound two things: the difference, and the share of places where it is larger.
"""

from __future__ import annotations

import dataclasses
import functools

import analytic
import numpy as np
import pytest
import torch
from scipy import ndimage
from splat_scenes import random_gaussians

from im3d.core.images import OrbitViews
from im3d.core.orbit import Cameras, Orbit
from im3d.core.progress import silent
from im3d.mesh import build
from im3d.mesh.build import build_surface
from im3d.mesh.fusion import field, field_torch, silhouettes, silhouettes_torch, volume_torch
from im3d.mesh.fusion.field import Field, fused_field
from im3d.mesh.fusion.silhouettes import Grid
from im3d.settings import MeshSettings, TextureSettings
from im3d.splats import depth_torch
from im3d.splats.depth import DepthMaps, median_depth, seen_directions
from im3d.splats.depth_torch import DepthTensors
from im3d.splats.gaussians import Gaussians
from im3d.splats.render import blending_weights

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
    hull: np.ndarray
    grid: Grid
    truncation: float

    @property
    def tensors(self) -> DepthTensors:
        return DepthTensors(*(torch.from_numpy(a) for a in vars(self.maps).values()))


@pytest.fixture(scope="module")
def fusion(scene: tuple[Gaussians, OrbitViews]) -> Fusion:
    gaussians, views = scene
    cameras = views.orbit.cameras(SIZE)
    outlines = np.stack([silhouettes.signed_distances(a) for a in views.rgba[..., 3]])
    grid = silhouettes.hull_grid(outlines, cameras, views.orbit.radius, 64, 0.03)
    truncation = 8 * 63 / 191 * grid.step
    seen_from = seen_directions(gaussians, cameras, blending_weights(gaussians, cameras, "cpu"))
    virtual, carves = field.virtual_cameras(8, 15.0, views.orbit.radius, cameras)
    everyone = Cameras(np.concatenate([cameras.viewmats, virtual.viewmats]), cameras.focal, cameras.size)
    hull = silhouettes.hull_field(outlines, cameras, grid, 1.01 * truncation)
    return Fusion(median_depth(gaussians, everyone, seen_from), everyone, 8, carves, hull, grid, truncation)


def fused_by_both(f: Fusion) -> tuple[np.ndarray, np.ndarray]:
    plain = field._fuse(f.maps, f.cameras, f.real, f.carves, f.hull, f.grid, f.truncation, 0.15)
    arguments = (f.tensors, f.cameras, f.real, f.carves, torch.from_numpy(f.hull), f.grid, f.truncation, 0.15)
    return plain, field_torch.fuse(*arguments).numpy()


class TestSilhouettes:
    @pytest.mark.parametrize("share", [0.01, 0.5, 0.99, 0.999])
    def test_distances_are_the_same_up_to_the_limit_and_beyond_it_beyond(self, share: float) -> None:
        mask = torch.rand(3, 70, 97, generator=torch.Generator().manual_seed(3)) < share
        for limit in (12, 200):  # the second needs 32 bits
            mine = silhouettes_torch.distance_to_false(mask, limit).numpy()
            true = np.stack([ndimage.distance_transform_edt(m) for m in mask.numpy()])
            near = true <= limit
            np.testing.assert_allclose(mine[near], true[near], atol=1e-5)
            assert (mine[~near] > limit).all()

    def test_signed_distances_are_the_same(self) -> None:
        alpha = analytic.orbit_views(SIZE, count=8).rgba[:3, ..., 3].copy()
        true = np.stack([silhouettes.signed_distances(a) for a in alpha])
        mine = silhouettes_torch.signed_distances(torch.from_numpy(alpha), 6.0).numpy()
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
        limit = silhouettes_torch.pixels_for(cut, cameras, grid)
        assert (limit > size) == (radius < 1)
        mine = silhouettes_torch.hull_field(
            silhouettes_torch.signed_distances(torch.from_numpy(alpha), limit), cameras, grid
        ).numpy()
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
        limit = silhouettes_torch.pixels_for(0.06, cameras, grid)
        assert limit < SIZE / 4
        fields = [
            silhouettes_torch.hull_field(silhouettes_torch.signed_distances(alpha, pixels), cameras, grid)
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
        plain = median_depth(gaussians, cameras, seen_from)
        mine = depth_torch.median_depth(gaussians, cameras, seen_from)
        assert (plain.depth > 0).mean() > 0.1
        # A splat just at the 1/255 cut-off counts in one and not in the other: so much light it stops, and no more.
        assert np.abs(mine.alpha.numpy() - plain.alpha).max() < 1 / 255
        assert np.abs(mine.alpha.numpy() - plain.alpha).mean() < 1e-6
        # Facing is a mean over what was stopped; where next to nothing was, it says nothing.
        solid = plain.alpha > 0.1
        assert np.abs(mine.facing.numpy() - plain.facing)[solid].max() < 0.005
        # Where just half of the light is stopped, the next splat may be taken.
        differs = np.abs(mine.depth.numpy() - plain.depth) > 1e-5
        assert differs.mean() < 2e-4

    def test_depth_is_that_of_the_front_wall_and_slants_with_it(self, scene: tuple[Gaussians, OrbitViews]) -> None:
        gaussians, views = scene
        cameras = views.orbit.cameras(SIZE)
        toward = torch.zeros_like(gaussians.means)
        plain = median_depth(gaussians, cameras, toward).depth
        mine = depth_torch.median_depth(gaussians, cameras, toward).depth.numpy()
        assert np.mean(np.abs(mine - plain) > 1e-5) < 1e-4
        flat = dataclasses.replace(gaussians, scales=gaussians.scales * 1e-3)
        assert np.abs(depth_torch.median_depth(flat, cameras, toward).depth.numpy() - plain).max() > 1e-2

    def test_groups_of_cameras_and_of_tiles_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gaussians = random_gaussians(800, 0.03, seed=4).detach()
        cameras = Orbit.uniform(5, 20.0, 40.0, 2.0).cameras(64)
        seen_from = torch.nn.functional.normalize(gaussians.means, dim=1)
        whole = depth_torch.median_depth(gaussians, cameras, seen_from)
        monkeypatch.setattr(depth_torch, "SPLATS_AT_ONCE", 1600)  # two cameras, two, and one
        monkeypatch.setattr(depth_torch, "TILES_AT_ONCE", 5)
        parts = depth_torch.median_depth(gaussians, cameras, seen_from)
        for name in ("depth", "alpha", "facing"):
            torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=0, atol=1e-5)

    def test_nothing_to_see_and_nobody_to_see_it(self) -> None:
        gaussians = random_gaussians(20, 0.03, seed=4).detach()
        cameras = Orbit.uniform(2, 20.0, 40.0, 2.0).cameras(48)
        behind = dataclasses.replace(gaussians, means=gaussians.means + torch.tensor([0.0, 0.0, 50.0]))
        for splats in (behind, gaussians[:0]):
            empty = depth_torch.median_depth(splats, cameras, splats.means)
            assert empty.depth.shape == (2, 48, 48)
            assert not empty.depth.any()
            assert not empty.alpha.any()
        assert depth_torch.median_depth(gaussians, cameras[:0], gaussians.means).depth.shape == (0, 48, 48)

    def test_blending_weights_are_the_same(self) -> None:
        gaussians = random_gaussians(2000, 0.03, seed=2).detach()
        cameras = Orbit.uniform(2, 20.0, 40.0, 2.0).cameras(96)
        plain = blending_weights(gaussians, cameras, "cpu")
        mine = depth_torch.blending_weights(gaussians, cameras)
        # A pixel at the cut-off adds or lacks 1/255.
        torch.testing.assert_close(mine, plain, rtol=1e-3, atol=3 / 255)
        assert (mine - plain).abs().sum() / plain.sum() < 1e-4


class TestVolumes:
    @pytest.fixture
    def mask(self) -> np.ndarray:
        noise = np.random.default_rng(1).normal(size=(30, 25, 34))
        return ndimage.gaussian_filter(noise, 1.5) > 0.02

    @pytest.mark.parametrize("steps", [1, 3])
    def test_morphology_equals_scipys(self, mask: np.ndarray, steps: int) -> None:
        mine = torch.from_numpy(mask)
        cross, box = ndimage.generate_binary_structure(3, 1), np.ones((3, 3, 3))
        for corners, structure in ((False, cross), (True, box)):
            expected = ndimage.binary_dilation(mask, structure, iterations=steps)
            assert np.array_equal(volume_torch.dilated(mine, steps, corners).numpy(), expected)
        for border in (False, True):
            expected = ndimage.binary_erosion(mask, cross, iterations=steps, border_value=int(border))
            assert np.array_equal(volume_torch.eroded(mine, steps, border).numpy(), expected)
        assert np.array_equal(mine.numpy(), mask)

    def test_what_is_connected_to_the_corner_is_found_around_bends(self, mask: np.ndarray) -> None:
        mask[0, 0, 0] = True
        mask[10:20, 5:15] = False
        mask[12:18, 7:13, 20:30] = True  # a room without a door
        labels, _ = ndimage.label(mask)
        found = volume_torch.connected_to_corner(torch.from_numpy(mask)).numpy()
        assert np.array_equal(found, labels == labels[0, 0, 0])
        assert 0.05 < found.mean() < mask.mean()

    @pytest.mark.parametrize("deviation", [0.33, 1.0, 4.0])  # the last reaches beyond the shortest side
    def test_smoothing_equals_scipys(self, deviation: float) -> None:
        volume = np.random.default_rng(2).normal(size=(30, 12, 34)).astype(np.float32)
        mine = volume_torch.smoothed(torch.from_numpy(volume), deviation).numpy()
        np.testing.assert_allclose(mine, ndimage.gaussian_filter(volume, deviation), atol=2e-6)

    def test_hollows_are_the_same(self) -> None:
        values = np.full((40, 40, 40), -1.0, np.float32)
        values[:4] = 1
        values[4:20, 10:30, 10:30] = 1  # open
        values[26:36, 8:18, 8:18] = 1  # behind a crack
        values[20:26, 12:14, 12:14] = 1
        for neck in (1, 2):
            mine, expected = field_torch.hollows(torch.from_numpy(values), neck).numpy(), field._hollows(values, neck)
            assert np.array_equal(mine, expected)
            assert 1000 < expected.sum() < 1500  # the hollow, and not the pit

    def test_thin_parts_are_the_same(self, scene: tuple[Gaussians, OrbitViews], fusion: Fusion) -> None:
        expected = field._thin_parts(fusion.hull, scene[0], fusion.grid)
        mine = field_torch.thin_parts(torch.from_numpy(fusion.hull), scene[0], fusion.grid).numpy()
        assert expected.any()
        assert np.array_equal(mine, expected)


class TestFusion:
    def compare(self, plain: np.ndarray, mine: np.ndarray) -> None:
        """Equal but for rounding. Columns and rows in 16 pictures are known to some 5e-6 pixels, so that about
        2 · 16 · 5e-6 of the points fall between two pixels and may take either; that moves one vote of 16.
        """
        difference = np.abs(plain - mine)
        assert (difference > 1e-4).mean() < 2e-4
        assert difference.max() < 0.3

    def test_votes_are_the_same(self, fusion: Fusion) -> None:
        plain, mine = fused_by_both(fusion)
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
        maps, hull = DepthMaps(depth, alpha, facing), np.full_like(fusion.hull, -1)
        plain, mine = fused_by_both(dataclasses.replace(fusion, maps=maps, cameras=close, grid=off, hull=hull))
        self.compare(plain, mine)

    def test_chunks_change_nothing(self, fusion: Fusion, monkeypatch: pytest.MonkeyPatch) -> None:
        arguments = (fusion.tensors, fusion.cameras, 8, fusion.carves, torch.from_numpy(fusion.hull))
        whole = field_torch.fuse(*arguments, fusion.grid, fusion.truncation, 0.15)
        monkeypatch.setattr(field_torch, "VOXELS_AT_ONCE", 10007)
        assert torch.equal(field_torch.fuse(*arguments, fusion.grid, fusion.truncation, 0.15), whole)

    def test_the_lowest_point_seen_is_the_same(self, fusion: Fusion) -> None:
        expected = field._lowest_seen(fusion.maps, fusion.cameras, 8)
        assert field_torch._lowest_seen(fusion.tensors, fusion.cameras, 8) == pytest.approx(expected, abs=1e-5)
        assert -0.6 < expected < -0.4


def assert_same_field(mine: Field, plain: Field) -> None:
    """The whole chain: a voxel that is torn at a threshold (inside, reached, thin) may change sides as a whole."""
    np.testing.assert_allclose(mine.grid.low, plain.grid.low, atol=1e-6)
    assert mine.grid.step == pytest.approx(plain.grid.step, rel=1e-6)
    difference = np.abs(mine.values - plain.values)
    assert (difference > 1e-3).mean() < 1e-3
    assert difference.mean() < 5e-5
    assert ((mine.values < 0) != (plain.values < 0)).mean() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("elevation", [15.0, 0.0])  # with the low ring of cameras, and without it
def test_the_whole_field_is_the_same(elevation: float) -> None:
    views = analytic.orbit_views(64, 8, elevation)
    gaussians = surface_splats(4000, 0.018)
    plain = fused_field(gaussians, views, SETTINGS)
    assert (plain.values < 0).mean() > 0.05
    steps: list[int] = []
    mine = field_torch.fused_field(gaussians, views, SETTINGS, lambda step, _: steps.append(step), CPU)
    assert_same_field(mine, plain)
    assert steps == [1, 2, 3, 4, 5]


def test_every_tensor_is_made_on_the_device_of_the_others() -> None:
    """One that is not would be made on the default device: on a GPU machine the CPU, here one that holds no numbers."""
    scene = surface_splats(4000, 0.018), analytic.orbit_views(48, count=4)
    settings = dataclasses.replace(SETTINGS, grid=32, virtual_views=2)
    with torch.device("meta"):
        mine = field_torch.fused_field(*scene, settings, silent, CPU)
    assert np.isfinite(mine.values).all()


def test_the_device_decides_who_fuses(scene: tuple[Gaussians, OrbitViews], monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba on the CPU, torch elsewhere; and a surface hands its device on."""
    asked: list[torch.device] = []

    def fused(*arguments: object) -> Field:
        assert isinstance(arguments[-1], torch.device)
        asked.append(arguments[-1])
        raise KeyboardInterrupt  # enough is known

    monkeypatch.setattr(field_torch, "fused_field", fused)
    with pytest.raises(KeyboardInterrupt):
        build_surface(*scene, SETTINGS, silent, torch.device("cuda"))
    assert asked == [torch.device("cuda")]
    fused_field(*scene, dataclasses.replace(SETTINGS, grid=32))
    assert len(asked) == 1


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
