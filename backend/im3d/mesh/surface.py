"""Triangles from the field: marching cubes, real parts against floaters, and simplification to a face budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import manifold3d
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from skimage.measure import marching_cubes

from im3d.core.images import OrbitViews
from im3d.core.threads import on_all_cores
from im3d.errors import InputError
from im3d.mesh.fusion.field import Field
from im3d.mesh.rasterize import rasterize_mesh, to_screen

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int32]

# A part other than the largest is real when it alone explains this many pixels of the masks. Volume and extent both
# fail to distinguish a candle's flame from a floater.
EXPLAINED_PIXELS = 12
MAX_PARTS = 96  # the largest ones
MIN_VOLUME = 1e-8  # of the unit cube; negative volumes are enclosed cavities
# Simplification starts at this tolerance (world units) and loosens by steps until the budget is met.
FIRST_TOLERANCE = 2e-4
LAST_TOLERANCE = 0.03
TOLERANCE_STEP = 1.12


@dataclass(frozen=True)
class TriangleMesh:
    """A triangle mesh in world coordinates.

    Attributes:
        vertices: (V, 3) float32.
        faces: (F, 3) int32, counter-clockwise seen from outside.
    """

    vertices: FloatArray
    faces: IntArray

    def face_normals(self) -> NDArray[np.float64]:
        """(F, 3) normals of twice the face's area in length."""
        a, b, c = (self.vertices[self.faces[:, k]].astype(np.float64) for k in range(3))
        return np.cross(b - a, c - a)

    def vertex_normals(self) -> FloatArray:
        """(V, 3) unit normals, faces weighted by area."""
        normals = np.zeros((len(self.vertices), 3))
        faces = self.face_normals()
        for k in range(3):
            np.add.at(normals, self.faces[:, k], faces)
        return (normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)).astype(np.float32)


@dataclass(frozen=True)
class MeshStats:
    """Counts and topology of a mesh, as `mesh_stats` of a result has them.

    Attributes:
        faces, vertices: Counts.
        components: Separate pieces.
        watertight: Whether every edge joins exactly two faces.
        genus: Holes through the object, summed over the pieces.
    """

    faces: int
    vertices: int
    components: int
    watertight: bool
    genus: int


def extract_surface(field: Field, views: OrbitViews) -> TriangleMesh:
    """The zero level of a field, without floaters and enclosed cavities.

    Raises:
        InputError: The field has no surface.
    """
    padded = np.pad(field.values, 1, constant_values=1.0)
    if not (padded < 0).any():
        raise InputError("No surface was found in the views.", "Check the masks, the elevation and their order.")
    vertices, faces, _, _ = marching_cubes(padded, 0.0, allow_degenerate=False)
    world = ((vertices - 1) * field.grid.step + field.grid.low).astype(np.float32)
    return _real_parts(TriangleMesh(world, np.ascontiguousarray(faces, dtype=np.int32)), views)


def simplified(mesh: TriangleMesh, faces: int) -> TriangleMesh:
    """A closed manifold of at most `faces` triangles.

    Each pass simplifies the last result: a single pass can stall at any tolerance.

    Raises:
        InputError: The budget is too small for the shape.
    """
    solid = as_manifold(mesh)
    tolerance = FIRST_TOLERANCE
    solid = solid.simplify(tolerance)
    while solid.num_tri() > faces and tolerance < LAST_TOLERANCE:
        tolerance *= TOLERANCE_STEP
        solid = solid.simplify(tolerance)
    if solid.num_tri() > faces or solid.num_tri() == 0:
        raise InputError(f"{faces} faces are too few for this shape.", "Allow more faces.")
    return _separated(from_manifold(solid))


def _separated(mesh: TriangleMesh) -> TriangleMesh:
    """The mesh with vertices that share a place moved apart, a hundred-thousandth of the object each.

    Two sheets that touch are a closed manifold by their indices, but a program that merges vertices by position sees
    edges with four faces.
    """
    _, first, counts = np.unique(mesh.vertices, axis=0, return_inverse=True, return_counts=True)
    touching = np.flatnonzero(counts[first.reshape(-1)] > 1)
    if not len(touching):
        return mesh
    vertices = mesh.vertices.copy()
    vertices[touching] -= 1e-5 * mesh.vertex_normals()[touching]
    return TriangleMesh(vertices, mesh.faces)


def as_manifold(mesh: TriangleMesh) -> Any:
    """The mesh as a manifold3d solid.

    Raises:
        InputError: It is not a closed manifold.
    """
    data = manifold3d.Mesh(
        vert_properties=np.ascontiguousarray(mesh.vertices, np.float32),
        tri_verts=np.ascontiguousarray(mesh.faces, np.uint32),
    )
    solid = manifold3d.Manifold(data)
    if solid.status() != manifold3d.Error.NoError:
        data.merge()
        solid = manifold3d.Manifold(data)
    if solid.status() != manifold3d.Error.NoError or solid.num_tri() == 0:
        raise InputError("The views do not describe a solid object.", "Check the masks, the elevation and their order.")
    return solid


def from_manifold(solid: Any) -> TriangleMesh:
    data = solid.to_mesh()
    return TriangleMesh(
        np.ascontiguousarray(data.vert_properties[:, :3], np.float32), np.ascontiguousarray(data.tri_verts, np.int32)
    )


def mesh_stats(mesh: TriangleMesh) -> MeshStats:
    """Counts and topology; vertices at the same place are one (seams of an atlas do not open a mesh)."""
    _, index = np.unique(mesh.vertices, axis=0, return_inverse=True)
    faces = index.reshape(-1)[mesh.faces]
    used = np.unique(faces)
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    unique, counts = np.unique(edges, axis=0, return_counts=True)
    components = len(np.unique(_labels(faces, int(index.max()) + 1)[used]))
    euler = len(used) - len(unique) + len(faces)
    genus = components - euler // 2
    return MeshStats(len(faces), len(used), components, bool((counts == 2).all()), int(genus))


def _real_parts(mesh: TriangleMesh, views: OrbitViews) -> TriangleMesh:
    """The largest part and every part that alone explains pixels of the masks."""
    # Not manifold3d's decompose(): it was seen to hang on a mesh of 240 000 faces with large flat sides.
    labels = _labels(mesh.faces, len(mesh.vertices))[mesh.faces[:, 0]]
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    signed = np.einsum("fi,fi->f", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6
    volumes = np.bincount(labels, signed)
    candidates = [int(i) for i in np.argsort(-volumes)[:MAX_PARTS] if volumes[i] > MIN_VOLUME]
    if not candidates:
        raise InputError("No solid object was found in the views.", "Check the masks, the elevation and their order.")
    keep = candidates
    if len(candidates) > 1:
        explained = _explained(mesh, [mesh.faces[labels == part] for part in candidates], views)
        keep = [p for rank, p in enumerate(candidates) if rank == 0 or explained[rank] >= EXPLAINED_PIXELS]
    faces = mesh.faces[np.isin(labels, keep)]
    used, index = np.unique(faces, return_inverse=True)
    return TriangleMesh(mesh.vertices[used], index.reshape(-1, 3).astype(np.int32))


def _explained(mesh: TriangleMesh, parts: list[IntArray], views: OrbitViews) -> NDArray[np.int64]:
    """(P,) how many pixels of all masks each of the parts, given by its faces, covers and no other part does."""
    cameras = views.orbit.cameras(views.size)

    def in_view(k: int) -> NDArray[np.int64]:
        screen = to_screen(mesh.vertices, cameras, k)
        covers = np.stack([rasterize_mesh(screen, faces, cameras.size).face >= 0 for faces in parts])
        counted = (covers.sum(axis=0) == 1) & (views.rgba[k, ..., 3] > 0.5)
        return (covers & counted).sum(axis=(1, 2))

    return np.sum(on_all_cores(in_view, range(len(cameras))), axis=0)


def _labels(faces: NDArray[Any], vertices: int) -> NDArray[np.int32]:
    """Connected part of every vertex."""
    rows = np.concatenate([faces[:, 0], faces[:, 1]])
    columns = np.concatenate([faces[:, 1], faces[:, 2]])
    links = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(vertices, vertices))
    labels: NDArray[np.int32] = connected_components(links, directed=False)[1]
    return labels
