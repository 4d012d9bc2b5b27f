"""Vertices moved so that the mesh's outlines meet the masks'.

Fused depth leaves silhouettes some tenths of a pixel off, and those hold most of the squared error of a render: the
outline is where the picture changes most. Along the contour edges of the mesh (between a face that looks at the camera
and one that looks away) the distance to the mask's outline says how far the surface should move along its normal. All
views together, with smoothness between neighbours, give a sparse linear least-squares problem for one offset a vertex.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.sparse import coo_matrix, csr_matrix, diags, vstack
from scipy.sparse.linalg import cg

from im3d.core.images import OrbitViews
from im3d.core.orbit import Cameras
from im3d.core.progress import Progress, silent
from im3d.core.threads import on_all_cores
from im3d.mesh.fusion.silhouettes import SUBPIXELS, all_signed_distances, signed_distances
from im3d.mesh.rasterize import rasterize_mesh, to_screen
from im3d.mesh.surface import TriangleMesh

# Points along each contour edge that are compared.
SAMPLES = (1 / 6, 1 / 2, 5 / 6)
# A contour further than this from the mask's outline belongs to something else; further than OWN_PX from the mesh's own
# outline it is hidden inside it.
REACH_PX, OWN_PX = 2.0, 0.5
# Smoothness against fidelity, and the pull towards zero where no view has a contour.
SMOOTHNESS, INERTIA = 0.3, 0.01
LARGEST_STEP_PX = 1.0


def fit_outlines(mesh: TriangleMesh, views: OrbitViews, rounds: int, progress: Progress = silent) -> TriangleMesh:
    """The mesh with its vertices moved along their normals; faces and topology stay.

    Args:
        mesh: Closed.
        views: With known elevation.
        rounds: Each renders the mesh anew; three are enough.
    """
    cameras = views.orbit.cameras(views.size)
    masks = all_signed_distances(views.rgba[..., 3])
    edges, sides = _edges(mesh.faces)
    smooth = _laplacian(edges, len(mesh.vertices)) * SMOOTHNESS
    inertia = diags(np.full(len(mesh.vertices), INERTIA))
    largest = LARGEST_STEP_PX * views.orbit.radius / cameras.focal
    for round_ in range(rounds):
        rows, targets = _constraints(mesh, cameras, masks, edges, sides)
        normal_matrix = rows.T @ rows + smooth.T @ smooth + inertia.T @ inertia
        offsets, _ = cg(normal_matrix, rows.T @ targets, rtol=1e-4, maxiter=200)
        step = np.clip(offsets, -largest, largest)[:, None] * mesh.vertex_normals()
        mesh = TriangleMesh((mesh.vertices + step).astype(np.float32), mesh.faces)
        progress(round_ + 1, rounds)
    return mesh


def _constraints(
    mesh: TriangleMesh,
    cameras: Cameras,
    masks: NDArray[np.float32],
    edges: NDArray[np.int64],
    sides: NDArray[np.int64],
) -> tuple[csr_matrix, NDArray[np.float64]]:
    """Rows (M, V) and targets (M,): the offset of each sample of a contour, interpolated from its edge's ends."""
    normals = mesh.face_normals()
    centres = mesh.vertices[mesh.faces].mean(axis=1)

    def in_view(k: int) -> list[tuple[csr_matrix, NDArray[np.float64]]]:
        front = np.einsum("fc,fc->f", normals, cameras.centres[k] - centres) > 0
        contour = edges[front[sides[:, 0]] != front[sides[:, 1]]]
        own = _own_outline(mesh, cameras, k)
        found = []
        for t in SAMPLES:
            points = (1 - t) * mesh.vertices[contour[:, 0]] + t * mesh.vertices[contour[:, 1]]
            screen = to_screen(points, cameras, k)
            off_mask, off_own = (_sample(d, screen[:, :2]) for d in (masks[k], own))
            counts = (np.abs(off_mask) < REACH_PX) & (np.abs(off_own) < OWN_PX)
            chosen, n = contour[counts], int(counts.sum())
            index = np.repeat(np.arange(n), 2)
            values = np.tile([1 - t, t], n)
            row = csr_matrix((values, (index, chosen.reshape(-1))), shape=(n, len(mesh.vertices)))
            # Outline against outline: a contour just inside its own outline must not be pulled out to the mask's.
            found.append((row, (off_own - off_mask)[counts] * screen[counts, 2] / cameras.focal))
        return found

    found = [part for view in on_all_cores(in_view, range(len(cameras))) for part in view]
    return vstack([rows for rows, _ in found]).tocsr(), np.concatenate([targets for _, targets in found])


def _own_outline(mesh: TriangleMesh, cameras: Cameras, k: int) -> NDArray[np.float32]:
    """Signed distance to the mesh's own outline in one view, sampled like `signed_distances`."""
    fine = cameras.size * SUBPIXELS
    covered = rasterize_mesh(to_screen(mesh.vertices, cameras, k, SUBPIXELS), mesh.faces, fine).face >= 0
    coverage = covered.reshape(cameras.size, SUBPIXELS, cameras.size, SUBPIXELS).mean(axis=(1, 3))
    return signed_distances(coverage.astype(np.float32))


def _sample(distances: NDArray[np.float32], xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bilinear values at pixel coordinates (P, 2)."""
    at = xy[:, ::-1].T * SUBPIXELS - 0.5
    values: NDArray[np.float64] = map_coordinates(distances.astype(np.float64), at, order=1, mode="nearest")
    return values


def _edges(faces: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Edges (E, 2) of a closed mesh and the two faces (E, 2) that each joins."""
    ends = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).astype(np.int64), axis=1)
    owner = np.tile(np.arange(len(faces)), 3)
    order = np.lexsort((ends[:, 1], ends[:, 0]))
    return ends[order[::2]], np.stack([owner[order[::2]], owner[order[1::2]]], axis=1)


def _laplacian(edges: NDArray[np.int64], vertices: int) -> csr_matrix:
    """Each vertex minus the mean of its neighbours, (V, V)."""
    both = np.concatenate([edges, edges[:, ::-1]])
    links = coo_matrix((np.ones(len(both)), (both[:, 0], both[:, 1])), shape=(vertices, vertices)).tocsr()
    degree = np.maximum(np.asarray(links.sum(axis=1)).reshape(-1), 1)
    return (diags(np.ones(vertices)) - diags(1 / degree) @ links).tocsr()
