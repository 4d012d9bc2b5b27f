"""Atlas, baking, tangents and the GLB, by round trip."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from im3d.core.images import OrbitViews
from im3d.core.orbit import Orbit
from im3d.mesh.build import TexturedMesh
from im3d.mesh.gltf import write_glb
from im3d.mesh.rasterize import rasterize_mesh, to_screen
from im3d.mesh.surface import TriangleMesh
from im3d.mesh.texture import unwrap as unwrap_module
from im3d.mesh.texture.bake import atlas_texels, bake_colors, bake_normals, splat_colors
from im3d.mesh.texture.tangents import vertex_tangents
from im3d.mesh.texture.unwrap import UnwrappedMesh, unwrap
from im3d.mesh.texture.xatlas_worker import PIECE_FACES, pieces
from im3d.settings import TextureSettings

SIZE = 256


def blob(subdivisions: int = 4) -> TriangleMesh:
    """A smooth closed shape without symmetry."""
    sphere = trimesh.creation.icosphere(subdivisions, 1.0)
    x, y, z = np.asarray(sphere.vertices).T
    scale = 0.34 + 0.05 * np.sin(3 * x + 1) + 0.04 * np.cos(4 * y) + 0.03 * np.sin(5 * z)
    return TriangleMesh((sphere.vertices * scale[:, None]).astype(np.float32), np.asarray(sphere.faces, np.int32))


def paint(points: np.ndarray) -> np.ndarray:
    """A texture defined in space: (…, 3) positions → colours in [0.1, 0.9]."""
    return 0.5 + 0.4 * np.sin(points * (9.0, 11.0, 13.0) + (0.0, 1.0, 2.0))


def painted_views(mesh: TriangleMesh, size: int = 192, scale: int = 3) -> OrbitViews:
    orbit = Orbit.uniform(12, 20.0)
    cameras = orbit.cameras(size)
    pictures = []
    for k in range(len(orbit)):
        buffers = rasterize_mesh(to_screen(mesh.vertices, cameras, k, scale), mesh.faces, size * scale)
        fine = np.zeros((size * scale, size * scale, 4))
        covered = buffers.face >= 0
        fine[covered, :3] = paint(buffers.interpolate(mesh.vertices, mesh.faces))
        fine[covered, 3] = 1
        mean = fine.reshape(size, scale, size, scale, 4).mean(axis=(1, 3))
        mean[..., :3] /= np.maximum(mean[..., 3:], 1e-6)
        pictures.append(mean.astype(np.float32))
    return OrbitViews(np.stack(pictures), orbit)


@pytest.fixture(scope="module")
def shape() -> TriangleMesh:
    return blob()


@pytest.fixture(scope="module")
def atlas(shape: TriangleMesh) -> UnwrappedMesh:
    return unwrap(shape, SIZE)


class TestAtlas:
    def test_it_is_the_same_surface_without_overlaps(self, shape: TriangleMesh, atlas: UnwrappedMesh) -> None:
        assert np.array_equal(atlas.vertices, shape.vertices[atlas.source])
        assert len(atlas.faces) == len(shape.faces)
        assert atlas.uv.min() >= 0
        assert atlas.uv.max() <= 1
        assert overlap(atlas) < 0.002

    def test_the_fallback_covers_every_face_without_overlaps(
        self, shape: TriangleMesh, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(unwrap_module, "TIME_LIMIT_S", 0.001)
        atlas = unwrap(shape, 1024)
        assert np.array_equal(atlas.vertices[atlas.faces], shape.vertices[shape.faces])
        assert overlap(atlas) < 1e-9
        flat = np.concatenate([atlas.uv * 1024.0, np.ones((len(atlas.uv), 1))], axis=1)
        drawn = np.unique(rasterize_mesh(flat, atlas.faces, 1024).face)
        assert len(drawn) - 1 == len(shape.faces)  # every face owns a texel


def test_pieces_share_out_the_faces_and_lie_apart() -> None:
    """The atlas of a long mesh is made of pieces of it, each a part of its length."""
    centres = np.random.default_rng(0).random((20_000, 3)) * (8, 1, 1)
    found = pieces(centres)
    assert sorted(np.concatenate(found)) == list(range(20_000))
    assert len(found) == 8
    assert max(map(len, found)) <= 1.5 * PIECE_FACES
    assert max(np.ptp(centres[rows, 0]) for rows in found) < 1.1


def overlap(atlas: UnwrappedMesh, size: int = 512) -> float:
    """Share of covered texels that belong to two charts, by drawing faces singly and all at once."""
    corners = atlas.uv[atlas.faces].astype(np.float64) * size
    edge1, edge2 = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = np.abs(edge1[:, 0] * edge2[:, 1] - edge1[:, 1] * edge2[:, 0]).sum() / 2
    flat = np.concatenate([atlas.uv * float(size), np.ones((len(atlas.uv), 1))], axis=1)
    covered = (rasterize_mesh(flat, atlas.faces, size).face >= 0).sum()
    return max(0.0, float(area / covered) - 1.0)


def black(rows: NDArray[np.bool_]) -> NDArray[np.float32]:
    """What texels get that no view sees."""
    return np.zeros((int(rows.sum()), 3), np.float32)


class TestColors:
    def test_a_known_texture_comes_back(self, shape: TriangleMesh, atlas: UnwrappedMesh) -> None:
        normals = shape.vertex_normals()[atlas.source]
        texels = atlas_texels(atlas, normals, SIZE)
        assert np.abs(np.linalg.norm(texels.normals, axis=1) - 1).max() < 1e-6
        texture, unseen = bake_colors(atlas, texels, painted_views(shape), black, TextureSettings(size=SIZE, polish=3))
        baked, true = texture[texels.covered], paint(texels.positions)
        known = baked.sum(axis=1) > 0.05
        assert 1 - known.mean() == pytest.approx(unseen, abs=0.01)
        assert unseen < 0.15  # only the underside of the blob
        psnr = -10 * np.log10(((baked - true)[known] ** 2).mean())
        assert psnr > 35

    def test_the_input_picture_rules_where_it_looks(self, shape: TriangleMesh, atlas: UnwrappedMesh) -> None:
        """The views that a network made show grey; only the first is a picture."""
        texels = atlas_texels(atlas, shape.vertex_normals()[atlas.source], SIZE)
        views = painted_views(shape)
        views.rgba[1:, ..., :3] = 0.5
        toward = views.orbit.cameras(views.size).centres[0] - texels.positions
        facing = np.einsum("tc,tc->t", toward, texels.normals) / np.linalg.norm(toward, axis=1) > 0.7
        error = {}
        for input_view in (None, 0):
            settings = TextureSettings(size=SIZE)
            texture, _ = bake_colors(atlas, texels, views, black, settings, input_view=input_view)
            error[input_view] = np.abs(texture[texels.covered] - paint(texels.positions))[facing].mean()
        assert error[0] < 0.25 * error[None]

    def test_no_texel_is_left_black(self, shape: TriangleMesh, atlas: UnwrappedMesh) -> None:
        texels = atlas_texels(atlas, shape.vertex_normals()[atlas.source], SIZE)
        points = shape.vertices[::7]
        directions = points / np.linalg.norm(points, axis=1, keepdims=True)
        colors, directions = paint(points).astype(np.float32), directions.astype(np.float32)
        guess = lambda rows: splat_colors(texels, rows, points, colors, directions)  # noqa: E731
        texture, _ = bake_colors(atlas, texels, painted_views(shape), guess, TextureSettings(size=SIZE))
        assert texture.shape == (SIZE, SIZE, 3)
        assert texture.min() > 0.05
        off = ~texels.covered
        assert off.any()
        assert texture[off].min() > 0.05

    def test_splats_on_the_far_side_of_a_wall_do_not_show_through(self) -> None:
        wall = trimesh.creation.box((0.8, 0.01, 0.8))
        mesh = TriangleMesh(np.asarray(wall.vertices, np.float32), np.asarray(wall.faces, np.int32))
        atlas = unwrap(mesh, 64)
        face_normals = np.zeros((len(atlas.vertices), 3), np.float32)
        face_normals[:, 1] = np.sign(atlas.vertices[:, 1])
        texels = atlas_texels(atlas, face_normals, 64)
        axis = np.linspace(-0.4, 0.4, 12)
        x, z = (a.ravel() for a in np.meshgrid(axis, axis))
        front = np.stack([x, np.full_like(x, -0.005), z], axis=1)
        back = front * (1, -1, 1)
        means = np.concatenate([front, back]).astype(np.float32)
        colors = np.repeat(np.array([[1.0, 0, 0], [0, 0, 1.0]], np.float32), len(front), axis=0)
        seen = np.repeat(np.array([[0, -1.0, 0], [0, 1.0, 0]], np.float32), len(front), axis=0)
        got = splat_colors(texels, np.ones(len(texels.positions), bool), means, colors, seen)
        assert (got[texels.positions[:, 1] < -0.004][:, 0] > 0.99).all()
        assert (got[texels.positions[:, 1] > 0.004][:, 2] > 0.99).all()


class TestNormals:
    def test_tangents_follow_u_and_bitangents_point_up_the_picture(self, atlas: UnwrappedMesh) -> None:
        quad = UnwrappedMesh(
            np.array([[0, 0, 0], [1, 0, 0], [1, 0, 1], [0, 0, 1]], np.float32),
            np.array([[0, 1, 2], [0, 2, 3]], np.int32),
            np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32),  # v downwards: z up is v falling
            np.arange(4, dtype=np.int32),
        )
        tangents = vertex_tangents(quad, np.tile(np.array([0, -1, 0], np.float32), (4, 1)))
        assert np.allclose(tangents[:, :3], (1, 0, 0), atol=1e-6)
        bitangent = tangents[:, 3:] * np.cross((0, -1, 0), tangents[:, :3])
        assert np.allclose(bitangent, (0, 0, 1), atol=1e-6)

    def test_tangents_are_unit_and_square_to_the_normals(self, shape: TriangleMesh, atlas: UnwrappedMesh) -> None:
        normals = shape.vertex_normals()[atlas.source]
        tangents = vertex_tangents(atlas, normals)
        assert np.allclose(np.linalg.norm(tangents[:, :3], axis=1), 1, atol=1e-5)
        assert np.abs(np.einsum("vc,vc->v", tangents[:, :3], normals)).max() < 0.05
        assert set(np.unique(tangents[:, 3])) <= {-1.0, 1.0}

    def test_the_map_of_a_surface_on_itself_is_flat(self, shape: TriangleMesh, atlas: UnwrappedMesh) -> None:
        normals = shape.vertex_normals()[atlas.source]
        texels = atlas_texels(atlas, normals, SIZE)
        image = bake_normals(atlas, texels, normals, vertex_tangents(atlas, normals), shape)
        tilt = np.abs(image[texels.covered] - (0.5, 0.5, 1.0))
        assert np.median(tilt) < 0.02

    def test_the_map_brings_back_the_normals_of_the_full_surface(self) -> None:
        full, coarse = blob(5), blob(2)
        atlas = unwrap(coarse, SIZE)
        normals = coarse.vertex_normals()[atlas.source]
        tangents = vertex_tangents(atlas, normals)
        texels = atlas_texels(atlas, normals, SIZE)
        image = bake_normals(atlas, texels, normals, tangents, full)[texels.covered].astype(np.float64) * 2 - 1
        normal = texels.buffers.interpolate(normals, atlas.faces)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        tangent = texels.buffers.interpolate(tangents[:, :3], atlas.faces)
        sign = np.sign(texels.buffers.interpolate(tangents[:, 3:], atlas.faces))
        shaded = image[:, :1] * tangent + image[:, 1:2] * sign * np.cross(normal, tangent) + image[:, 2:] * normal
        shaded /= np.linalg.norm(shaded, axis=1, keepdims=True)
        surface = trimesh.Trimesh(full.vertices, full.faces, process=False)
        samples, face = trimesh.sample.sample_surface(surface, 200000, seed=0)
        true = surface.face_normals[face[cKDTree(samples).query(texels.positions[::50])[1]]]
        with_map = np.degrees(np.arccos(np.clip(np.einsum("tc,tc->t", shaded[::50], true), -1, 1)))
        without = np.degrees(np.arccos(np.clip(np.einsum("tc,tc->t", normal[::50], true), -1, 1)))
        assert with_map.mean() < 0.6 * without.mean()


def textured(shape: TriangleMesh, atlas: UnwrappedMesh, normal_map: bool) -> TexturedMesh:
    normals = shape.vertex_normals()[atlas.source]
    tangents = vertex_tangents(atlas, normals)
    texture = np.linspace(0, 1, 64 * 64 * 3, dtype=np.float32).reshape(64, 64, 3)
    flat = np.tile(np.array([0.5, 0.5, 1.0], np.float32), (64, 64, 1)) if normal_map else None
    return TexturedMesh(atlas, normals, tangents, texture, flat, 0.0)


class TestGlb:
    @pytest.mark.parametrize("normal_map", [True, False])
    def test_another_program_reads_what_was_written(
        self, shape: TriangleMesh, atlas: UnwrappedMesh, tmp_path: Path, normal_map: bool
    ) -> None:
        mesh = textured(shape, atlas, normal_map)
        matrix = write_glb(tmp_path / "mesh.glb", mesh, "blauer Krug", 0.25)
        read = trimesh.load(tmp_path / "mesh.glb", force="mesh", process=False)
        assert read.bounds[:, 1] == pytest.approx([0.0, 0.25], abs=1e-6)
        assert np.allclose(trimesh.transform_points(read.vertices, matrix), atlas.vertices, atol=1e-5)
        assert np.array_equal(np.asarray(read.faces), atlas.faces)
        # trimesh counts v upwards.
        assert np.allclose(read.visual.uv, np.stack([atlas.uv[:, 0], 1 - atlas.uv[:, 1]], axis=1), atol=1e-6)
        picture = np.asarray(read.visual.material.baseColorTexture.convert("RGB")) / 255
        assert np.abs(picture - mesh.base_color).max() < 0.51 / 255
        assert (read.visual.material.normalTexture is not None) == normal_map
        assert read.visual.material.roughnessFactor == 1.0
        assert read.visual.material.metallicFactor == 0.0

    def test_front_and_up_are_gltfs(self, shape: TriangleMesh, atlas: UnwrappedMesh, tmp_path: Path) -> None:
        matrix = write_glb(tmp_path / "mesh.glb", textured(shape, atlas, False), "x", 1.0)
        rotation = matrix[:3, :3] / np.cbrt(np.linalg.det(matrix[:3, :3]))
        assert np.allclose(rotation @ (0, 1, 0), (0, 0, 1))  # glTF's up is our Z
        assert np.allclose(rotation @ (0, 0, 1), (0, -1, 0))  # glTF's front is our −Y

    def test_the_container_is_aligned(self, shape: TriangleMesh, atlas: UnwrappedMesh, tmp_path: Path) -> None:
        write_glb(tmp_path / "mesh.glb", textured(shape, atlas, True), "ü", 1.0)
        data = (tmp_path / "mesh.glb").read_bytes()
        magic, version, length = struct.unpack_from("<4sII", data)
        assert (magic, version, length) == (b"glTF", 2, len(data))
        json_length = struct.unpack_from("<I", data, 12)[0]
        assert json_length % 4 == 0
        document: dict[str, Any] = json.loads(data[20 : 20 + json_length])
        assert all(view["byteOffset"] % 4 == 0 for view in document["bufferViews"])

    def test_the_khronos_validator_finds_nothing(
        self, shape: TriangleMesh, atlas: UnwrappedMesh, tmp_path: Path, gltf_validator: Path
    ) -> None:
        write_glb(tmp_path / "mesh.glb", textured(shape, atlas, True), "mug", 0.25)
        script = (
            "const v = require(process.argv[1]); const fs = require('fs');"
            "v.validateBytes(new Uint8Array(fs.readFileSync(process.argv[2])))"
            ".then(r => console.log(JSON.stringify(r.issues)))"
        )
        command = ["node", "-e", script, str(gltf_validator), str(tmp_path / "mesh.glb")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        issues = json.loads(done.stdout)
        assert (issues["numErrors"], issues["numWarnings"]) == (0, 0), issues["messages"]


@pytest.fixture(scope="session")
def gltf_validator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The npm package gltf-validator, installed for the session."""
    if shutil.which("npm") is None:
        pytest.skip("needs npm for the Khronos glTF validator")
    folder = tmp_path_factory.mktemp("node")
    command = ["npm", "install", "--no-audit", "--no-fund", "--silent", "gltf-validator@2.0.0-dev.3.10"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip(f"npm cannot install gltf-validator: {done.stderr.strip()[:200]}")
    return folder / "node_modules" / "gltf-validator"
