"""Textures: the views projected onto the mesh, what no view saw filled in, and a normal map of the full surface.

Each texel takes the mean of the views that see it, weighted by how squarely they look at it (cos²) and lowered near
depth edges and silhouettes, where a misplaced surface would catch the colour of its neighbour. A few rounds of
back-projection then give the texture what the weighted mean blurred away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, maximum_filter, minimum_filter
from scipy.spatial import cKDTree

from im3d.images import OrbitViews
from im3d.mesh.draw import FAR, MeshBuffers, rasterize_mesh, to_screen
from im3d.mesh.surface import TriangleMesh
from im3d.mesh.unwrap import UnwrappedMesh
from im3d.orbit import Cameras
from im3d.progress import Progress, silent
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

    @property
    def covered(self) -> NDArray[np.bool_]:
        return self.buffers.face >= 0


@dataclass(frozen=True)
class _Sight:
    """One view of the texels: its weight for each (T,), where they lie in it (T, 2), and its buffers of the mesh."""

    weight: FloatArray
    xy: NDArray[np.float64]
    buffers: MeshBuffers


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
    unseen: FloatArray,
    settings: TextureSettings,
    progress: Progress = silent,
    input_view: int | None = None,
) -> tuple[FloatArray, float]:
    """The base colour texture.

    Args:
        mesh, texels: The atlas.
        views: The pictures.
        unseen: (T, 3) colour of each texel where no view sees it.
        settings: See `TextureSettings`.
        input_view: The view that is the picture which the others were made from; None: all are pictures.

    Returns:
        (size, size, 3) sRGB in [0, 1], every texel filled, and the share of the surface's texels that no view sees.
    """
    cameras = views.orbit.cameras(views.size)
    sights = []
    for k in range(len(cameras)):
        sight = _sight(mesh, texels, cameras, k, views.rgba[k, ..., 3])
        if k == input_view:
            sight.weight[:] *= settings.input_weight
        sights.append(sight)
        progress(k + 1, len(cameras) + settings.polish + 1)
    total = np.sum([s.weight for s in sights], axis=0)
    colored = total > SEEN
    pictures = [_bled(rgba) for rgba in views.rgba]

    colors = _blend(sights, total, pictures)
    colors[~colored] = unseen[~colored]
    for round_ in range(settings.polish):
        texture = _filled(colors, texels)
        missing = [
            _missing(texture, mesh, sight, picture, rgba[..., 3])
            for sight, picture, rgba in zip(sights, pictures, views.rgba, strict=True)
        ]
        step = settings.polish_step * _blend(sights, total, missing)
        colors[colored] = np.clip(colors[colored] + step[colored], 0, 1)
        progress(len(cameras) + round_ + 1, len(cameras) + settings.polish + 1)
    return _filled(colors, texels), float(1 - colored.mean())


def splat_colors(
    texels: Texels, means: NDArray[np.float32], colors: FloatArray, seen_from: NDArray[np.float32]
) -> FloatArray:
    """(T, 3) colours of the splats nearest to each texel, preferring those that were seen from the texel's side.

    Args:
        means, colors: (N, 3) of the splats.
        seen_from: (N, 3) unit direction from which each was seen.
    """
    # Facing the other way counts like a distance of a tenth of the object: the far side of a thin wall is too near.
    tree = cKDTree(np.concatenate([means, 0.05 * seen_from], axis=1))
    _, nearest = tree.query(np.concatenate([texels.positions, 0.05 * texels.normals], axis=1), k=4, eps=0.3)
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
    _, nearest = cKDTree(full.vertices).query(texels.positions, k=4, eps=0.1)
    detail = full.vertex_normals()[nearest]
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
    image = np.full((*texels.covered.shape, 3), 0.5, np.float32)
    image[..., 2] = 1.0
    image[texels.covered] = local * 0.5 + 0.5
    return _dilated(image, texels.covered)


def _sight(mesh: UnwrappedMesh, texels: Texels, cameras: Cameras, k: int, alpha: FloatArray) -> _Sight:
    size = cameras.size * SCREEN_SCALE
    buffers = rasterize_mesh(to_screen(mesh.vertices, cameras, k, SCREEN_SCALE), mesh.faces, size)
    depth = np.where(buffers.depth >= FAR, 1e3, buffers.depth)
    nearest = minimum_filter(depth, 3)
    edge_distance = distance_transform_edt(maximum_filter(depth, 3) - nearest <= DEPTH_EDGE) / SCREEN_SCALE

    screen = to_screen(texels.positions.astype(np.float32), cameras, k)
    toward = cameras.centres[k] - texels.positions
    toward /= np.linalg.norm(toward, axis=1, keepdims=True)
    cosine = np.einsum("tc,tc->t", toward, texels.normals)
    column, row = (np.clip((screen[:, i] * SCREEN_SCALE).astype(int), 0, size - 1) for i in range(2))
    slack = DEPTH_SLACK + GRAZING_SLACK / np.maximum(cosine, 0.1)
    visible = (screen[:, 2] - nearest[row, column] < slack) & (cosine > GRAZING)
    weight = np.where(visible, np.maximum(cosine, 0) ** COS_POWER, 0)
    weight *= np.clip(edge_distance[row, column] / GUARD_PX, 0.02, 1)
    weight *= np.clip((_bilinear(alpha[..., None], screen)[:, 0] - 0.3) / 0.6, 0, 1)
    return _Sight(weight.astype(np.float32), screen[:, :2], buffers)


def _blend(sights: list[_Sight], total: FloatArray, pictures: list[FloatArray]) -> FloatArray:
    """(T, 3) weighted mean of what the views show at each texel."""
    result = np.zeros((len(total), 3), np.float32)
    for sight, picture in zip(sights, pictures, strict=True):
        rows = np.flatnonzero(sight.weight > 0)
        result[rows] += sight.weight[rows, None] * _bilinear(picture, sight.xy[rows])
    return result / np.maximum(total, 1e-9)[:, None]


def _missing(
    texture: FloatArray, mesh: UnwrappedMesh, sight: _Sight, picture: FloatArray, alpha: FloatArray
) -> FloatArray:
    """(S, S, 3) what the textured mesh lacks in one view, where both are solid."""
    size = len(picture)
    covered = sight.buffers.face >= 0
    uv = sight.buffers.interpolate(mesh.uv, mesh.faces) * len(texture)
    fine = np.zeros((*covered.shape, 4), np.float32)
    fine[covered, :3] = _bilinear(texture, uv)
    fine[covered, 3] = 1
    shown = fine.reshape(size, SCREEN_SCALE, size, SCREEN_SCALE, 4).mean(axis=(1, 3))
    solid = (shown[..., 3] > 0.99) & (alpha > 0.99)
    return np.where(solid[..., None], picture - shown[..., :3] / np.maximum(shown[..., 3:], 1e-6), 0).astype(np.float32)


def _bled(rgba: FloatArray) -> FloatArray:
    """Colours carried outwards from where the picture is solid: straight alpha says nothing where alpha is low."""
    nearest = distance_transform_edt(rgba[..., 3] < 0.5, return_distances=False, return_indices=True)
    picture: FloatArray = rgba[nearest[0], nearest[1], :3]
    return picture


def _filled(colors: FloatArray, texels: Texels) -> FloatArray:
    texture = np.zeros((*texels.covered.shape, 3), np.float32)
    texture[texels.covered] = colors
    return _dilated(texture, texels.covered)


def _dilated(texture: FloatArray, covered: NDArray[np.bool_]) -> FloatArray:
    """Every texel off the charts takes the nearest one on them: no seam at any mip level, no black texel."""
    nearest = distance_transform_edt(~covered, return_distances=False, return_indices=True)
    filled: FloatArray = texture[nearest[0], nearest[1]]
    return filled


def _bilinear(image: FloatArray, xy: NDArray[np.float64]) -> FloatArray:
    """Values of (H, W, C) at (P, 2) pixel coordinates (centres at +0.5), clamped at the border."""
    height, width = image.shape[:2]
    x = np.clip(xy[:, 0] - 0.5, 0, width - 1.001)
    y = np.clip(xy[:, 1] - 0.5, 0, height - 1.001)
    i, j = x.astype(int), y.astype(int)
    a, b = (x - i)[:, None].astype(np.float32), (y - j)[:, None].astype(np.float32)
    top = image[j, i] * (1 - a) + image[j, i + 1] * a
    bottom = image[j + 1, i] * (1 - a) + image[j + 1, i + 1] * a
    result: FloatArray = top * (1 - b) + bottom * b
    return result
