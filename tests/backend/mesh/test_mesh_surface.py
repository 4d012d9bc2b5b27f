"""Silhouettes, fields, marching cubes and simplification, against shapes that are known exactly."""

from __future__ import annotations

import math

import analytic
import numpy as np
import pytest
import torch
import trimesh
from scipy.ndimage import distance_transform_edt

from im3d.core.images import OrbitViews
from im3d.core.orbit import Orbit
from im3d.core.threads import on_all_cores
from im3d.errors import InputError
from im3d.mesh.build import build_surface
from im3d.mesh.fusion import ops_numba
from im3d.mesh.fusion.distance import distance_to_false
from im3d.mesh.fusion.field import Field, _hollows, density_field
from im3d.mesh.fusion.silhouettes import Grid, all_signed_distances, hull_field, hull_grid, signed_distances
from im3d.mesh.rasterize import rasterize_mesh, to_screen
from im3d.mesh.surface import TriangleMesh, extract_surface, mesh_stats, simplified
from im3d.settings import FitSettings, MeshSettings
from im3d.splats.fit import SplatFit
from im3d.splats.gaussians import Gaussians


def disc(size: int, radius: float, centre: tuple[float, float], samples: int = 8) -> np.ndarray:
    """Antialiased coverage of a disc, (size, size) float32."""
    axis = (np.arange(size * samples) + 0.5) / samples
    inside = (axis[None] - centre[0]) ** 2 + (axis[:, None] - centre[1]) ** 2 < radius**2
    return inside.reshape(size, samples, size, samples).mean(axis=(1, 3)).astype(np.float32)


def sphere_views(size: int = 64, radius: float = 0.4, views: int = 8) -> OrbitViews:
    """A grey sphere from an orbit; its silhouette is a circle of known size."""
    orbit = Orbit.uniform(views, 20.0)
    f = orbit.cameras(size).focal
    seen = f * radius / math.sqrt(orbit.radius**2 - radius**2)
    alpha = disc(size, seen, (size / 2, size / 2))
    rgba = np.full((views, size, size, 4), 0.5, np.float32)
    rgba[..., 3] = alpha
    return OrbitViews(rgba, orbit)


def outlines_of(mesh: TriangleMesh, orbit: Orbit, size: int, samples: int = 4) -> np.ndarray:
    """Signed distances to the outlines of a mesh's antialiased silhouettes."""
    cameras = orbit.cameras(size)
    outlines = []
    for k in range(len(orbit)):
        fine = rasterize_mesh(to_screen(mesh.vertices, cameras, k, samples), mesh.faces, size * samples).face >= 0
        coverage = fine.reshape(size, samples, size, samples).mean(axis=(1, 3))
        outlines.append(signed_distances(coverage.astype(np.float32)))
    return np.stack(outlines)


def from_trimesh(mesh: trimesh.Trimesh) -> TriangleMesh:
    return TriangleMesh(np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces, np.int32))


class TestSilhouettes:
    def test_distances_are_exact_below_a_pixel(self) -> None:
        size, radius, centre = 64, 20.3, (31.7, 33.1)
        distances = signed_distances(disc(size, radius, centre))
        fine = distances.shape[0]
        x = (np.arange(fine) + 0.5) * size / fine
        true = np.hypot(x[None] - centre[0], x[:, None] - centre[1]) - radius
        near = np.abs(true) < 4
        assert np.abs(distances - true)[near].mean() < 0.1
        assert np.abs((distances - true)[near].mean()) < 0.04

    def test_the_hull_of_a_sphere(self) -> None:
        views = sphere_views()
        cameras = views.orbit.cameras(views.size)
        outlines = np.stack([signed_distances(a) for a in views.rgba[..., 3]])
        grid = hull_grid(outlines, cameras, views.orbit.radius, 48, 0.03)
        values = hull_field(outlines, cameras, grid, 1e9)
        axis = [grid.low[k] + grid.step * np.arange(grid.n) for k in range(3)]
        radius = np.sqrt(sum(a**2 for a in np.meshgrid(*axis, indexing="ij")))
        assert (values[radius < 0.38] < 0).all()  # the hull holds the sphere
        assert (values[radius > 0.62] > 0).all()  # and no more than the cones allow
        assert grid.step * grid.n < 1.6

    def test_silhouettes_without_a_common_volume_are_refused(self) -> None:
        views = sphere_views()
        rgba = views.rgba.copy()
        rgba[::2, :, :32, 3] = 0
        rgba[1::2, :, 32:, 3] = 0
        rgba[1::2, 32:, :, 3] = 0
        rgba[::2, :32, :, 3] = 0
        outlines = np.stack([signed_distances(a) for a in rgba[..., 3]])
        with pytest.raises(InputError, match="common volume"):
            hull_grid(outlines, views.orbit.cameras(64), views.orbit.radius, 32, 0.03)

    @pytest.mark.parametrize(("elevation", "refused"), [(0.0, True), (25.0, False)])
    def test_a_plate_seen_from_its_edge_alone_is_refused(self, elevation: float, refused: bool) -> None:
        plate = from_trimesh(trimesh.creation.box((0.9, 0.7, 0.012)))
        orbit = Orbit.uniform(8, elevation)
        outlines = outlines_of(plate, orbit, 256)
        if refused:
            with pytest.raises(InputError, match="edge"):
                hull_grid(outlines, orbit.cameras(256), orbit.radius, 32, 0.03)
        else:
            assert hull_grid(outlines, orbit.cameras(256), orbit.radius, 32, 0.03).step > 0.9 / 32

    def test_a_thin_rod_is_not_taken_for_a_plate(self) -> None:
        rod = from_trimesh(trimesh.creation.cylinder(0.006, 0.9))
        orbit = Orbit.uniform(8, 0.0)
        assert hull_grid(outlines_of(rod, orbit, 256), orbit.cameras(256), orbit.radius, 32, 0.03).step > 0.9 / 32


class TestSurface:
    def field_of(self, distance: np.ndarray, grid: Grid) -> Field:
        return Field(np.clip(distance / (4 * grid.step), -1, 1).astype(np.float32), grid)

    def grid_points(self, n: int = 48) -> tuple[Grid, np.ndarray]:
        grid = Grid(np.full(3, -0.6), 1.2 / (n - 1), n)
        axis = grid.low[0] + grid.step * np.arange(n)
        return grid, np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)

    def test_a_sphere_is_closed_round_and_faces_outwards(self) -> None:
        grid, points = self.grid_points()
        mesh = extract_surface(self.field_of(np.linalg.norm(points, axis=-1) - 0.4, grid), sphere_views())
        assert np.abs(np.linalg.norm(mesh.vertices, axis=1) - 0.4).max() < 0.01 * grid.step * 10
        normals = mesh.vertex_normals()
        assert (np.einsum("vc,vc->v", normals, mesh.vertices) > 0).all()
        stats = mesh_stats(mesh)
        assert (stats.components, stats.watertight, stats.genus) == (1, True, 0)

    def test_a_floater_that_explains_nothing_is_dropped_and_a_real_part_kept(self) -> None:
        grid, points = self.grid_points()
        body = np.linalg.norm(points, axis=-1) - 0.3
        views = sphere_views(radius=0.3)
        # Hidden behind the masks' outside: seen by no mask, this part explains nothing.
        floater = np.linalg.norm(points - (0.0, 0.0, 0.5), axis=-1) - 0.05
        mesh = extract_surface(self.field_of(np.minimum(body, floater), grid), views)
        assert mesh_stats(mesh).components == 1
        cameras = views.orbit.cameras(views.size)
        seen = np.stack([disc(64, 3.0, tuple(cameras.project(np.array([[0, 0, 0.5]]))[k, 0, :2])) for k in range(8)])
        rgba = views.rgba.copy()
        rgba[..., 3] = np.maximum(rgba[..., 3], seen)
        mesh = extract_surface(self.field_of(np.minimum(body, floater), grid), OrbitViews(rgba, views.orbit))
        assert mesh_stats(mesh).components == 2

    def test_an_empty_field_is_refused(self) -> None:
        grid, points = self.grid_points(16)
        with pytest.raises(InputError, match="No surface"):
            extract_surface(Field(np.ones(points.shape[:3], np.float32), grid), sphere_views())

    def test_simplification_keeps_the_shape_closed_within_its_budget(self) -> None:
        torus = from_trimesh(trimesh.creation.torus(0.35, 0.12, major_sections=128, minor_sections=64))
        small = simplified(torus, 1500)
        stats = mesh_stats(small)
        assert stats.faces <= 1500
        assert (stats.components, stats.watertight, stats.genus) == (1, True, 1)
        ring = np.hypot(small.vertices[:, 0], small.vertices[:, 1]) - 0.35
        assert np.abs(np.hypot(ring, small.vertices[:, 2]) - 0.12).max() < 0.01

    def test_touching_sheets_do_not_share_vertices(self) -> None:
        cube = trimesh.creation.box((0.3, 0.3, 0.3))
        other = cube.copy()
        other.apply_translation((0.3, 0.3, 0.0))  # touches along one edge
        both = trimesh.util.concatenate([cube, other])
        assert not mesh_stats(from_trimesh(both)).watertight
        apart = simplified(from_trimesh(both), 1000)
        assert mesh_stats(apart).watertight
        assert np.abs(apart.vertices).max() == pytest.approx(0.45, abs=1e-4)

    def test_an_impossible_budget_is_refused(self) -> None:
        torus = from_trimesh(trimesh.creation.torus(0.35, 0.12))
        with pytest.raises(InputError, match="4 faces are too few"):
            simplified(torus, 4)

    @pytest.mark.parametrize(("parts", "genus"), [(1, 1), (3, 3)])
    def test_stats_of_tori(self, parts: int, genus: int) -> None:
        torus = trimesh.creation.torus(0.3, 0.1, major_sections=24, minor_sections=12)
        pieces = [torus.copy().apply_translation((0, 0, k)) for k in range(parts)]
        stats = mesh_stats(from_trimesh(trimesh.util.concatenate(pieces)))
        assert (stats.components, stats.genus, stats.watertight) == (parts, genus, True)


class TestDrawing:
    def test_depth_and_interpolation_of_a_slanted_plane_are_perspective_correct(self) -> None:
        corners = np.array([[-0.5, -0.3, -0.5], [0.5, 0.3, -0.5], [0.5, 0.3, 0.5], [-0.5, -0.3, 0.5]], np.float32)
        faces = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
        cameras = Orbit.uniform(4, 0.0).cameras(96)
        buffers = rasterize_mesh(to_screen(corners, cameras, 0), faces, 96)
        rows, columns = np.nonzero(buffers.face >= 0)
        assert len(rows) > 1000
        points = buffers.interpolate(corners, faces)
        back = cameras[0].project(points)[0]
        assert np.abs(back[:, 0] - (columns + 0.5)).max() < 1e-3
        assert np.abs(back[:, 1] - (rows + 0.5)).max() < 1e-3
        assert np.abs(back[:, 2] - buffers.depth[rows, columns]).max() < 1e-5

    def test_the_nearer_face_wins(self) -> None:
        near, far = trimesh.creation.icosphere(2, 0.2), trimesh.creation.icosphere(2, 0.2)
        near.apply_translation((0, -0.25, 0))
        far.apply_translation((0, 0.25, 0))
        for order in ([near, far], [far, near]):
            both = from_trimesh(trimesh.util.concatenate(order))
            buffers = rasterize_mesh(to_screen(both.vertices, Orbit.uniform(4, 0.0).cameras(64), 0), both.faces, 64)
            first_is_near = order[0] is near
            middle = buffers.face[32, 32]
            assert (middle < len(near.faces)) == first_is_near


def test_a_hollow_behind_a_crack_is_filled_and_a_pit_is_not() -> None:
    values = np.full((48, 48, 48), -1.0, np.float32)
    for side in (slice(0, 4), slice(-4, None)):
        values[side], values[:, side], values[:, :, side] = 1, 1, 1
    pit = np.zeros_like(values, bool)
    pit[8:18, 8:18, 20:] = True
    hollow = np.zeros_like(values, bool)
    hollow[28:40, 28:40, 15:30] = True
    crack = np.zeros_like(values, bool)
    crack[28:40, 33:35, 30:] = True
    values[pit | hollow | crack] = 1
    filled = _hollows(ops_numba, torch.from_numpy(values), 2).numpy()
    assert filled[hollow].mean() > 0.95
    assert not filled[~(hollow | crack)].any()


@pytest.fixture(scope="module")
def fitted() -> tuple[Gaussians, OrbitViews]:
    """A fit of the analytic object, a little shorter than a real one."""
    views = analytic.orbit_views(256)
    settings = FitSettings(iterations=800, max_gaussians=14000, lpips=0.0, rgb=2.0)
    fit = SplatFit(views, settings, 0, torch.device("cpu"), "cpu", None)
    fit.run(settings.iterations)
    return fit.finished(), views


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99, 0.9999])
def test_distances_equal_scipys(share: float) -> None:
    mask = np.random.default_rng(3).random((150, 97)) < share
    np.testing.assert_allclose(distance_to_false(mask), distance_transform_edt(mask), atol=1e-5)


def test_views_dealt_to_the_cores_come_back_in_order() -> None:
    alphas = np.random.default_rng(4).random((7, 20, 20)).astype(np.float32)
    each = [signed_distances(alpha) for alpha in alphas]
    np.testing.assert_array_equal(all_signed_distances(alphas), each)
    with pytest.raises(ZeroDivisionError):
        on_all_cores(lambda n: 1 / n, [1, 2, 0])


def test_without_a_false_sample_everything_is_far() -> None:
    assert (distance_to_false(np.ones((9, 12), bool)) > 1e5).all()


@pytest.mark.slow
def test_the_fitted_object_has_the_true_surface(fitted: tuple[Gaussians, OrbitViews]) -> None:
    surface = build_surface(*fitted, MeshSettings(grid=160, faces=15000))
    stats = mesh_stats(surface.mesh)
    assert (stats.components, stats.watertight, stats.genus) == (1, True, analytic.GENUS)
    assert stats.faces <= 15000
    samples = trimesh.Trimesh(surface.mesh.vertices, surface.mesh.faces, process=False).sample(20000, seed=0)
    error = np.abs(analytic.signed_distance(np.asarray(samples, np.float64)))
    assert error.mean() < 0.0045


@pytest.mark.slow
def test_the_density_route_gives_the_papers_surface(fitted: tuple[Gaussians, OrbitViews]) -> None:
    field = density_field(fitted[0], MeshSettings(density_grid=96))
    # Against the definition, at points of the grid: Σ o·exp(−d²/2).
    from im3d.splats.rasterizers.project import rotation_matrices

    g = fitted[0]
    rng = np.random.default_rng(0)
    index = rng.integers(0, 96, (200, 3))
    points = torch.from_numpy((field.grid.low + index * field.grid.step).astype(np.float32))
    local = torch.einsum("nij,pni->pnj", rotation_matrices(g.quats), points[:, None] - g.means) / g.scales
    density = (g.opacities * torch.exp(-0.5 * local.square().sum(dim=-1))).sum(dim=1)
    assert np.allclose(1 - field.values[tuple(index.T)], density.numpy(), atol=0.01, rtol=0.02)
    mesh = build_surface(*fitted, MeshSettings(route="density", density_grid=96)).mesh
    assert mesh_stats(mesh).watertight
