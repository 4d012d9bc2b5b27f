"""Vertex tangents as MikkTSpace defines them, which glTF and Blender use to read normal maps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from im3d.mesh.texture.unwrap import UnwrappedMesh

FloatArray = NDArray[np.float32]


def vertex_tangents(mesh: UnwrappedMesh, normals: FloatArray) -> FloatArray:
    """(V, 4): unit tangent, and the sign w of the bitangent = w · normal × tangent.

    The tangent points along increasing u. The bitangent points up in the texture image, against glTF's downward v.
    Faces are averaged weighted by their angle at the vertex.
    """
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    uv = mesh.uv[mesh.faces].astype(np.float64)
    edge1, edge2 = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    du1, dv1 = (uv[:, 1] - uv[:, 0]).T
    du2, dv2 = (uv[:, 2] - uv[:, 0]).T
    area = du1 * dv2 - du2 * dv1
    along_u = (edge1 * dv2[:, None] - edge2 * dv1[:, None]) * np.sign(area)[:, None]
    upwards = -(edge2 * du1[:, None] - edge1 * du2[:, None]) * np.sign(area)[:, None]

    tangents = np.zeros((len(mesh.vertices), 3))
    signs = np.zeros(len(mesh.vertices))
    for k in range(3):
        vertex = mesh.faces[:, k]
        normal = normals[vertex].astype(np.float64)
        flat = _unit(along_u - normal * np.einsum("fc,fc->f", along_u, normal)[:, None])
        to_next = _unit(corners[:, (k + 1) % 3] - corners[:, k])
        to_last = _unit(corners[:, (k + 2) % 3] - corners[:, k])
        angle = np.arccos(np.clip(np.einsum("fc,fc->f", to_next, to_last), -1, 1))
        np.add.at(tangents, vertex, flat * angle[:, None])
        np.add.at(signs, vertex, np.einsum("fc,fc->f", np.cross(normal, flat), upwards) * angle)
    lost = np.linalg.norm(tangents, axis=1) < 1e-9
    tangents[lost] = _any_orthogonal(normals[lost].astype(np.float64))
    result = np.concatenate([_unit(tangents), np.where(signs < 0, -1.0, 1.0)[:, None]], axis=1)
    return result.astype(np.float32)


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _any_orthogonal(normals: NDArray[np.float64]) -> NDArray[np.float64]:
    """A direction at right angles to each normal, for vertices whose faces have no area in the atlas."""
    axis = np.eye(3)[np.abs(normals).argmin(axis=1)] if len(normals) else np.zeros((0, 3))
    return np.cross(normals, axis)
