"""Textures: the views projected onto the mesh, what no view saw filled in, and a normal map of the full surface.

Each texel takes the mean of the views that see it, weighted by how squarely they look at it (cos²) and lowered near
depth edges and silhouettes, where a misplaced surface would catch the colour of its neighbour. A few rounds of
back-projection then give the texture what the weighted mean blurred away.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from im3d.core.images import OrbitViews
from im3d.core.orbit import Cameras
from im3d.core.progress import Progress, silent
from im3d.core.threads import on_all_cores
from im3d.mesh.rasterize import FAR, MeshBuffers, rasterize_mesh, to_screen
from im3d.mesh.surface import TriangleMesh
from im3d.mesh.texture import bake_kernels
from im3d.mesh.texture.nearest import nearest_items
from im3d.mesh.texture.unwrap import UnwrappedMesh
from im3d.settings import TextureSettings

FloatArray = NDArray[np.float32]

SCREEN_SCALE = 2  # views are compared with the mesh at this multiple of their resolution
DEPTH_EDGE = 0.03  # world units between neighbouring pixels that make a depth edge
GRAZING = 0.1  # views at a smaller cosine do not count
# A surface counts as visible when it is no further behind the depth map than this, more at grazing angles.
DEPTH_SLACK, GRAZING_SLACK = 0.006, 0.004
COS_POWER = 2.0
GUARD_PX = 2.0  # pixels from a depth edge at which a view counts fully
SEEN = 1e-5  # total weight above which a texel counts as seen


@dataclass(frozen=True)
class Texels:
    """The texels of an atlas that lie on the surface, in row order.

    Attributes:
        buffers: Which face each texel of the atlas belongs to.
        positions: (T, 3) world positions.
        normals: (T, 3) smooth unit normals.
    """

    buffers: MeshBuffers
    positions: NDArray[np.float64]
    normals: NDArray[np.float64]

    @functools.cached_property
    def covered(self) -> NDArray[np.bool_]:
        """(N, N) which texels of the atlas they are."""
        return self.buffers.face >= 0

    @functools.cached_property
    def nearest(self) -> NDArray[np.int32]:
        """(2, N, N) row and column of the covered texel that is nearest to each texel of the atlas."""
        found: NDArray[np.int32] = distance_transform_edt(~self.covered, return_distances=False, return_indices=True)
        return found

    def spread(self, values: FloatArray) -> FloatArray:
        """(N, N, C) of values (T, C): texels off the charts take the nearest one on them: no seam at any mip level, no
        black texel."""
        image = np.zeros((*self.covered.shape, values.shape[1]), np.float32)
        image[self.covered] = values
        spread: FloatArray = image[self.nearest[0], self.nearest[1]]
        return spread


@dataclass(frozen=True)
class MeshView:
    """What one view shows of a mesh, independent of its atlas.

    Attributes:
        buffers: The mesh as the camera sees it, at `SCREEN_SCALE` times the resolution of the picture.
        nearest, edge: Of `bake_kernels.depth_edges`, at the same resolution.
        picture: (S, S, 3) sRGB, its colours carried outwards from where it is solid.
        alpha: (S, S) its coverage.
    """

    buffers: MeshBuffers
    nearest: FloatArray
    edge: NDArray[np.bool_]
    picture: FloatArray
    alpha: FloatArray


def atlas_texels(mesh: UnwrappedMesh, normals: FloatArray, size: int) -> Texels:
    """Texels of a square atlas of `size` pixels; `normals` (V, 3) are those of the unwrapped vertices."""
    flat = np.concatenate([mesh.uv.astype(np.float64) * size, np.ones((len(mesh.uv), 1))], axis=1)
    buffers = rasterize_mesh(flat, mesh.faces, size)
    directions = buffers.interpolate(normals, mesh.faces)
    directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-9)
    return Texels(buffers, buffers.interpolate(mesh.vertices, mesh.faces), directions)


def bake_colors(
    mesh: UnwrappedMesh,
    texels: Texels,
    views: OrbitViews,
    unseen: Callable[[NDArray[np.bool_]], FloatArray],
    settings: TextureSettings,
    progress: Progress = silent,
    input_view: int | None = None,
    mesh_views: list[MeshView] | None = None,
) -> tuple[FloatArray, float]:
    """The base colour texture.

    Args:
        mesh, texels: The atlas.
        views: The pictures.
        unseen: Returns the colours (n, 3) of the texels that no view sees, given their mask (T,).
        settings: See `TextureSettings`.
        input_view: The view that is the picture which the others were made from; None: all are pictures.
        mesh_views: `views_of_mesh`, where they are known.

    Returns:
        (size, size, 3) sRGB in [0, 1], every texel filled, and the share of the surface's texels that no view sees.
    """
    cameras = views.orbit.cameras(views.size)
    seen = views_of_mesh(mesh.vertices, mesh.faces, views) if mesh_views is None else mesh_views
    weights = []
    for k, view in enumerate(seen):
        weight = _view_weights(texels, cameras, k, view)
        if k == input_view:
            weight *= np.float32(settings.input_weight)
        weights.append(weight)
        progress(k + 1, len(cameras) + settings.polish + 1)
    total = np.sum(weights, axis=0)
    colored = total > SEEN

    colors = _blend(texels, cameras, weights, total, [view.picture for view in seen])
    colors[~colored] = unseen(~colored)
    for round_ in range(settings.polish):
        texture = texels.spread(colors)
        missing = [_missing(texture, mesh, view) for view in seen]
        step = settings.polish_step * _blend(texels, cameras, weights, total, missing)
        colors[colored] = np.clip(colors[colored] + step[colored], 0, 1)
        progress(len(cameras) + round_ + 1, len(cameras) + settings.polish + 1)
    return texels.spread(colors), float(1 - colored.mean())


def views_of_mesh(vertices: FloatArray, faces: NDArray[np.int32], views: OrbitViews) -> list[MeshView]:
    """What each view shows of a mesh."""
    cameras = views.orbit.cameras(views.size)

    def view(k: int) -> MeshView:
        buffers = rasterize_mesh(to_screen(vertices, cameras, k, SCREEN_SCALE), faces, cameras.size * SCREEN_SCALE)
        depth = np.where(buffers.depth >= FAR, 1e3, buffers.depth)
        nearest, edge = bake_kernels.depth_edges(depth, DEPTH_EDGE)
        rgba = views.rgba[k]
        return MeshView(buffers, nearest, edge, _bled(rgba), np.ascontiguousarray(rgba[..., 3]))

    return on_all_cores(view, range(len(cameras)))


def splat_colors(
    texels: Texels,
    rows: NDArray[np.bool_],
    means: NDArray[np.float32],
    colors: FloatArray,
    seen_from: NDArray[np.float32],
) -> FloatArray:
    """(n, 3) colours of the splats nearest to some texels, preferring those that were seen from the texel's side.

    Args:
        rows: (T,) which texels.
        means, colors: (N, 3) of the splats.
        seen_from: (N, 3) unit direction from which each was seen.
    """
    # Facing the other way counts like a distance of a tenth of the object: the far side of a thin wall is too near.
    places = np.concatenate([texels.positions[rows], 0.05 * texels.normals[rows]], axis=1)
    nearest = nearest_items(np.concatenate([means, 0.05 * seen_from], axis=1), places, 4)
    mean: FloatArray = colors[nearest].mean(axis=1)
    return mean


def bake_normals(
    mesh: UnwrappedMesh, texels: Texels, normals: FloatArray, tangents: FloatArray, full: TriangleMesh
) -> FloatArray:
    """Tangent-space normal map of the full-resolution surface, as glTF wants it (+Y up, 0.5 is flat).

    Args:
        mesh, texels: The atlas of the simplified mesh.
        normals: (V, 3) its vertex normals, as exported.
        tangents: (V, 4) its vertex tangents, as exported; w is the sign of the bitangent.
        full: The surface before simplification.

    Returns:
        (size, size, 3) in [0, 1].
    """
    detail = full.vertex_normals()[nearest_items(full.vertices, texels.positions, 4)]
    # Not the other side of a thin wall: it is as near, but faces away.
    agrees = np.einsum("tkc,tc->tk", detail, texels.normals) > 0.2
    detail = np.where(agrees[..., None], detail, 0).sum(axis=1)
    detail = np.where(np.linalg.norm(detail, axis=1, keepdims=True) > 1e-6, detail, texels.normals)
    detail /= np.linalg.norm(detail, axis=1, keepdims=True)
    normal = texels.buffers.interpolate(normals, mesh.faces)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    tangent = texels.buffers.interpolate(tangents[:, :3], mesh.faces)
    sign = np.sign(texels.buffers.interpolate(tangents[:, 3:], mesh.faces))
    bitangent = sign * np.cross(normal, tangent)
    local = np.stack([np.einsum("tc,tc->t", detail, axis) for axis in (tangent, bitangent, normal)], axis=1)
    local[:, 2] = np.maximum(local[:, 2], 0.05)
    local /= np.linalg.norm(local, axis=1, keepdims=True)
    return texels.spread((local * 0.5 + 0.5).astype(np.float32))


def _view_weights(texels: Texels, cameras: Cameras, k: int, view: MeshView) -> FloatArray:
    """(T,) weight of one view for each texel."""
    weight: FloatArray = bake_kernels.view_weights(
        texels.positions, texels.normals, cameras.viewmats[k], cameras.focal, cameras.centres[k], view.nearest,
        view.edge, view.alpha, SCREEN_SCALE, DEPTH_SLACK, GRAZING_SLACK, GRAZING, COS_POWER, GUARD_PX,
    )  # fmt: skip
    return weight


def _blend(
    texels: Texels, cameras: Cameras, weights: list[FloatArray], total: FloatArray, pictures: list[FloatArray]
) -> FloatArray:
    """(T, 3) weighted mean of what the views show at each texel."""
    result = np.zeros((len(total), 3), np.float32)
    for weight, viewmat, picture in zip(weights, cameras.viewmats, pictures, strict=True):
        bake_kernels.add_weighted(result, weight, texels.positions, viewmat, cameras.focal, picture)
    return result / np.maximum(total, 1e-9)[:, None]


def _missing(texture: FloatArray, mesh: UnwrappedMesh, view: MeshView) -> FloatArray:
    """(S, S, 3) what the textured mesh lacks in one view, where both are solid."""
    lacking: FloatArray = bake_kernels.missing(
        texture, view.buffers.face, view.buffers.weights, mesh.faces, mesh.uv, view.picture, view.alpha, SCREEN_SCALE
    )
    return lacking


def _bled(rgba: FloatArray) -> FloatArray:
    """Colours carried outwards from where the picture is solid: where alpha is low, straight colours mean nothing."""
    nearest = distance_transform_edt(rgba[..., 3] < 0.5, return_distances=False, return_indices=True)
    picture: FloatArray = rgba[nearest[0], nearest[1], :3]
    return picture
