"""`im3d.mesh.fusion.field.fused_field` in plain torch, for a GPU: the same steps in the same order, with tensors.

Nothing but rounding tells the two apart. What takes milliseconds stays on the CPU: the grid's place, and thin sheets.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from im3d.core.images import OrbitViews
from im3d.core.orbit import Cameras
from im3d.core.progress import Progress
from im3d.mesh.fusion.field import (
    LOW_ORBIT_DEG,
    MARGIN,
    NECK_VOXELS,
    REFERENCE_GRID,
    SEEN_ALPHA,
    THIN_OPACITY,
    THIN_SLACK_PX,
    THIN_VOXELS,
    Field,
    low_cameras,
    lowest_of,
    virtual_cameras,
)
from im3d.mesh.fusion.sheets import sheet_field, sheet_splats
from im3d.mesh.fusion.silhouettes import Grid, hull_grid, search_grid
from im3d.mesh.fusion.silhouettes_torch import distance_to_false, hull_field, pixels_for, signed_distances
from im3d.mesh.fusion.volume_torch import connected_to_corner, dilated, eroded, smoothed
from im3d.settings import MeshSettings
from im3d.splats.depth import seen_directions
from im3d.splats.depth_torch import DepthTensors, blending_weights, median_depth
from im3d.splats.gaussians import Gaussians
from im3d.splats.rasterizers.project import rotation_matrices

# Voxels whose votes are counted at once, so that memory stays near a gigabyte.
VOXELS_AT_ONCE = 2**23


def fused_field(
    gaussians: Gaussians, views: OrbitViews, settings: MeshSettings, progress: Progress, device: torch.device
) -> Field:
    """See `im3d.mesh.fusion.field.fused_field`; the work is done on `device`.

    Args:
        gaussians: On the CPU, those that some view sees.
    """
    orbit = views.orbit
    assert orbit.elevation_deg is not None
    cameras = orbit.cameras(views.size)
    splats = gaussians.to(device)
    grid, outlines, sheets = _framed(gaussians, views, cameras, settings, device)
    truncation = settings.truncation * (settings.grid - 1) / (REFERENCE_GRID - 1) * grid.step
    hull = hull_field(outlines, cameras, grid)
    progress(1, 5)

    seen_from = seen_directions(splats, cameras, blending_weights(splats, cameras))
    if orbit.elevation_deg > LOW_ORBIT_DEG:
        low = low_cameras(orbit.elevation_deg, orbit.radius, cameras)
        limit = pixels_for(1.01 * truncation, low, grid) + settings.virtual_slack
        shadows = signed_distances(median_depth(splats, low, seen_from).alpha, limit)
        hull = torch.maximum(hull, hull_field(shadows - settings.virtual_slack, low, grid))
    progress(2, 5)

    virtual, carves = virtual_cameras(settings.virtual_views, orbit.elevation_deg, orbit.radius, cameras)
    everyone = Cameras(np.concatenate([cameras.viewmats, virtual.viewmats]), cameras.focal, cameras.size)
    maps = median_depth(splats, everyone, seen_from)
    progress(3, 5)
    values = fuse(maps, everyone, len(cameras), carves, hull, grid, truncation, settings.behind)
    values[hollows(values, max(1, round(NECK_VOXELS * settings.grid / REFERENCE_GRID)))] = -1.0
    progress(4, 5)
    if settings.blur > 0:
        values = smoothed(values, settings.blur * settings.grid / REFERENCE_GRID)
    values = torch.maximum(values, (hull / truncation).clamp(-1, 1))
    wide = hull - THIN_SLACK_PX * orbit.radius / cameras.focal
    values = torch.where(thin_parts(wide, splats, grid), (wide / truncation).clamp(-1, 1), values)
    if len(sheets):
        flat = sheet_field(sheets, outlines.cpu().numpy(), cameras, grid, truncation) / truncation
        values = torch.minimum(values, torch.from_numpy(flat).to(values))
    floor = _lowest_seen(maps, everyone, len(cameras))
    below = torch.from_numpy(floor - (grid.low[2] + grid.step * np.arange(grid.n))).to(device)
    values = torch.maximum(values, (below / truncation).clamp(-1, 1).float())
    progress(5, 5)
    return Field(values.cpu().numpy(), grid)


def _framed(
    gaussians: Gaussians, views: OrbitViews, cameras: Cameras, settings: MeshSettings, device: torch.device
) -> tuple[Grid, Tensor, Gaussians]:
    """The grid about the object, the outlines (C, n, n) with their slack, as exact as it needs, and the sheets."""
    alpha = torch.from_numpy(np.ascontiguousarray(views.rgba[..., 3], np.float32)).to(device)
    search = search_grid(cameras, views.orbit.radius)
    limit = pixels_for(search.step, cameras, search) + settings.slack
    outlines = signed_distances(alpha, limit) - settings.slack
    distances = outlines.cpu().numpy()
    sheets = sheet_splats(gaussians, distances, cameras)
    grid = hull_grid(distances, cameras, views.orbit.radius, settings.grid, MARGIN, sheets.means.numpy())
    truncation = settings.truncation * (settings.grid - 1) / (REFERENCE_GRID - 1) * grid.step
    needed = pixels_for(1.01 * truncation, cameras, grid) + settings.slack
    if needed > limit:
        outlines = signed_distances(alpha, needed) - settings.slack
    return grid, outlines, sheets


def fuse(
    maps: DepthTensors,
    cameras: Cameras,
    real: int,
    carves: NDArray[np.bool_],
    hull: Tensor,
    grid: Grid,
    truncation: float,
    behind: float,
) -> Tensor:
    """Truncated signed distances averaged over the cameras, (n, n, n): `field._fuse_kernel`, camera by camera.

    Args:
        maps: Of the C cameras.
        real: So many of them, the first, are those of the input views.
        carves: (C − real,) which of the others may declare space free.
        hull: (n, n, n) world units.
    """
    limit = math.ceil(pixels_for(truncation, cameras, grid))
    outside = (distance_to_false(maps.alpha < 0.5, limit) - 0.5).clamp_min_(0)
    values = torch.ones_like(hull)
    low = torch.from_numpy(grid.low).to(hull.device)
    for index in (hull <= truncation).nonzero().split(VOXELS_AT_ONCE):
        points = (low + grid.step * index.double()).float().T.contiguous()  # (3, P): each coordinate in one piece
        total, weight = torch.zeros_like(points[0]), torch.zeros_like(points[0])
        for k in range(len(cameras)):
            free = outside[k] if k < real or carves[k - real] else None
            _vote(points, maps, k, k < real, free, cameras, truncation, behind, total, weight)
        values[tuple(index.T)] = torch.where(weight > 0, total / weight, -1.0)
    return values


def _vote(
    points: Tensor,
    maps: DepthTensors,
    k: int,
    real: bool,
    outside: Tensor | None,
    cameras: Cameras,
    truncation: float,
    behind: float,
    total: Tensor,
    weight: Tensor,
) -> None:
    """Adds what camera k says about the points to `total` and its weight to `weight`, both (P,).

    Args:
        points: (3, P) world positions.
        real: Whether an input view was taken from there: it is believed where it sees back sides, too.
        outside: (S, S) pixels to its silhouette, if it may declare space free.
    """
    size, f, V = cameras.size, cameras.focal, cameras.viewmats[k].astype(np.float64)
    right, down, depth = (
        (points[0] * row[0]).add_(points[1], alpha=row[1]).add_(points[2], alpha=row[2]).add_(row[3])
        for row in V[:3].tolist()
    )
    ahead = depth.clamp_min(1e-3)
    u = (right / ahead).mul_(f).add_(size / 2 - 0.5)
    w = (down / ahead).mul_(f).add_(size / 2 - 0.5)
    column, row = u.round(), w.round()
    judged = (depth >= 1e-3) & (column >= 0) & (row >= 0) & (column < size) & (row < size)
    pixel = (row.clamp(0, size - 1) * size + column.clamp(0, size - 1)).long()

    covered = maps.alpha[k].flatten()[pixel] >= 0.5
    d = _depth_at(maps.depth[k].flatten(), u, w, pixel, size, truncation)
    counted = judged & covered & (d > 0)
    if not real:
        counted &= maps.facing[k].flatten()[pixel] >= 0.1
    signed = (d - depth).div_(truncation)
    near = signed > -1
    vote = torch.where(near, signed.clamp_max(1.0), -behind)
    confidence = torch.where(near, 1.0, behind)
    if outside is not None:
        empty = judged & ~covered
        distance = outside.flatten()[pixel].mul_(depth).mul_(1 / (f * truncation))
        vote, confidence = torch.where(empty, distance.clamp_max_(1.0), vote), torch.where(empty, 1.0, confidence)
        counted |= empty
    total.add_(vote.masked_fill_(~counted, 0.0))
    weight.add_(confidence.masked_fill_(~counted, 0.0))


def _depth_at(image: Tensor, u: Tensor, w: Tensor, pixel: Tensor, size: int, truncation: float) -> Tensor:
    """Bilinear depth, or the nearest pixel's where the four straddle a discontinuity.

    Args:
        image: (S²,) depths.
        u, w: (P,) column and row, 0 at the centre of the first pixel; beyond the last centre depth is extrapolated.
        pixel: (P,) index of the nearest pixel.
    """
    i, j = u.trunc().clamp_(0, size - 2), w.trunc().clamp_(0, size - 2)
    corner = (j * size + i).long()
    d00, d10 = image[corner], image[1:][corner]
    d01, d11 = image[size:][corner], image[size + 1 :][corner]
    highest = torch.maximum(torch.maximum(d00, d10), torch.maximum(d01, d11))
    lowest = torch.minimum(torch.minimum(d00, d10), torch.minimum(d01, d11))
    a, b = u - i, w - j
    smooth = torch.lerp(torch.lerp(d00, d10, a), torch.lerp(d01, d11, a), b)
    return torch.where(highest - lowest > truncation, image[pixel], smooth)


def hollows(values: Tensor, neck: int) -> Tensor:
    """`field._hollows`: free voxels reached from outside only through necks at most 2·`neck` voxels wide."""
    free = torch.nn.functional.pad(values > 0, (neck + 1,) * 6, value=True)
    reached = dilated(connected_to_corner(eroded(free, neck, border=True)), neck + 1, corners=True)
    inner = slice(neck + 1, -neck - 1)
    return (free & ~reached)[inner, inner, inner]


def thin_parts(hull: Tensor, gaussians: Gaussians, grid: Grid) -> Tensor:
    """`field._thin_parts`: voxels of the hull's thin parts that hold splats; the Gaussians on the hull's device."""
    inside = hull < 0
    thick = dilated(eroded(inside, THIN_VOXELS, border=False), 2 * THIN_VOXELS)
    solid = gaussians[gaussians.opacities > THIN_OPACITY]
    longest = solid.scales.argmax(dim=1)
    every = torch.arange(len(solid), device=hull.device)
    axes = rotation_matrices(solid.quats)[every, :, longest] * solid.scales.amax(dim=1)[:, None]
    along = torch.linspace(-2, 2, 33, device=hull.device)[:, None, None]
    points = (solid.means + along * axes).reshape(-1, 3).double()
    index = ((points - torch.from_numpy(grid.low).to(hull.device)) / grid.step).round().long()
    index = index[((index >= 0) & (index < grid.n)).all(dim=1)]
    held = torch.zeros_like(inside)
    held[tuple(index.T)] = True
    return inside & ~thick & dilated(held, THIN_VOXELS)


def _lowest_seen(maps: DepthTensors, cameras: Cameras, real: int) -> float:
    """`field._lowest_seen`: height of the lowest surface that any input view saw, a little below it."""
    heights = []
    for k in range(real):
        depth = maps.depth[k].double()
        rows, columns = ((maps.alpha[k] > SEEN_ALPHA) & (depth > 0)).nonzero().unbind(1)
        pixels = torch.stack([columns, rows]) + 0.5 - cameras.size / 2
        z = depth[rows, columns]
        V = cameras.viewmats[k].astype(np.float64)
        turn, shift = V[:3, 2].tolist(), V[:3, 3].tolist()
        x, y = pixels / cameras.focal * z
        heights.append(turn[0] * (x - shift[0]) + turn[1] * (y - shift[1]) + turn[2] * (z - shift[2]))
    return lowest_of(torch.cat(heights).cpu().numpy() if heights else np.zeros(0))
