"""The signed distance field of the object: depth maps fused in a grid, cut by the silhouettes' visual hull.

Marching cubes on the splats' density, the paper's route (A.5), fails on a converged fit: the splats form a thin opaque
shell, and thresholding gives both of its walls. Fusing the median depth seen by the input cameras and by virtual ones
between them puts the surface where light is stopped. The field is in units of the truncation distance, positive
outside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from im3d.core.images import OrbitViews
from im3d.core.orbit import Cameras, look_at_origin
from im3d.core.progress import Progress, silent
from im3d.mesh.fusion.operations import Operations, operations_on
from im3d.mesh.fusion.sheets import sheet_field, sheet_splats
from im3d.mesh.fusion.silhouettes import Grid, hull_grid, pixels_for, search_grid
from im3d.settings import MeshSettings
from im3d.splats.depth import DepthMaps, seen_directions
from im3d.splats.gaussians import Gaussians
from im3d.splats.rasterizers.project import rotation_matrices

FloatArray = NDArray[np.float32]

# Lengths below are in voxels of a 192³ grid over the object, whatever the grid: they describe the splats' blur, not the
# sampling.
REFERENCE_GRID = 192
MARGIN = 0.03  # share of the object's size kept free around it in the grid
# The hull is exact this much farther than the truncation.
HULL_REACH = 1.01
# A part of the hull that a ball of this many voxels does not fit into is thin.
THIN_VOXELS = 2
# Its hull is widened by this much: a gap where a mask is a fraction of a pixel too narrow breaks it.
THIN_SLACK_PX = 0.25
# It is kept where it holds splats of at least this opacity.
THIN_OPACITY = 0.2
# Hollows behind a neck no wider than twice this are filled.
NECK_VOXELS = 2
# Orbits that look down from more than this see tops but no undersides; flatter ones see neither.
LOW_ORBIT_DEG = 8.0
# Coverage above which a pixel counts as a view of the lowest surface.
SEEN_ALPHA = 0.9
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Field:
    """A signed distance field in units of the truncation distance: (n, n, n), positive outside, and its grid."""

    values: FloatArray
    grid: Grid


def fused_field(
    gaussians: Gaussians,
    views: OrbitViews,
    settings: MeshSettings,
    progress: Progress = silent,
    device: torch.device = CPU,
) -> Field:
    """The field of the fitted object.

    Args:
        gaussians: On the CPU, those that some view sees.
        views: The views that were fitted, with their masks.
        settings: See `MeshSettings`.
        progress: Called after each of five steps.
        device: Where the work is done.

    Raises:
        InputError: The silhouettes have no common volume.
    """
    orbit = views.orbit
    assert orbit.elevation_deg is not None
    ops, splats, cameras = operations_on(device), gaussians.to(device), orbit.cameras(views.size)
    grid, outlines, sheets = _framed(ops, gaussians, views, cameras, settings, device)
    truncation = _truncation(settings, grid)
    hull = ops.hull_field(outlines, cameras, grid, HULL_REACH * truncation)
    progress(1, 5)

    seen_from = seen_directions(splats, cameras, ops.blending_weights(splats, cameras))
    if orbit.elevation_deg > LOW_ORBIT_DEG:
        low = low_cameras(orbit.elevation_deg, orbit.radius, cameras)
        limit = pixels_for(HULL_REACH * truncation, low, grid) + settings.virtual_slack
        shadows, _ = ops.signed_distances(ops.median_depth(splats, low, seen_from).alpha, limit)
        shadows -= settings.virtual_slack
        hull = torch.maximum(hull, ops.hull_field(shadows, low, grid, HULL_REACH * truncation))
    progress(2, 5)

    virtual, virtual_carves = virtual_cameras(settings.virtual_views, orbit.elevation_deg, orbit.radius, cameras)
    everyone = Cameras(np.concatenate([cameras.viewmats, virtual.viewmats]), cameras.focal, cameras.size)
    carves = np.concatenate([np.ones(len(cameras), bool), virtual_carves])
    maps = ops.median_depth(splats, everyone, seen_from)
    progress(3, 5)
    values = ops.fuse(maps, everyone, len(cameras), carves, hull, grid, truncation, settings.occlusion_vote_weight)
    values[_hollows(ops, values, max(1, round(NECK_VOXELS * settings.grid / REFERENCE_GRID)))] = -1.0
    progress(4, 5)
    if settings.blur > 0:
        values = ops.smoothed(values, settings.blur * settings.grid / REFERENCE_GRID)
    values = torch.maximum(values, (hull / truncation).clamp_(-1, 1))
    wide = hull - THIN_SLACK_PX * orbit.radius / cameras.focal
    values = torch.where(_thin_parts(ops, wide, splats, grid), (wide / truncation).clamp_(-1, 1), values)
    if len(sheets):
        flat = sheet_field(sheets, outlines.cpu().numpy(), cameras, grid, truncation) / truncation
        values = torch.minimum(values, torch.from_numpy(flat).to(values))
    floor = _lowest_seen(maps, everyone, len(cameras))
    below = torch.from_numpy(floor - (grid.low[2] + grid.step * np.arange(grid.n))).to(device)
    values = torch.maximum(values, (below / truncation).clamp_(-1, 1).float())
    progress(5, 5)
    return Field(values.cpu().numpy(), grid)


def _truncation(settings: MeshSettings, grid: Grid) -> float:
    """World units."""
    return settings.truncation * (settings.grid - 1) / (REFERENCE_GRID - 1) * grid.step


def _framed(
    ops: Operations,
    gaussians: Gaussians,
    views: OrbitViews,
    cameras: Cameras,
    settings: MeshSettings,
    device: torch.device,
) -> tuple[Grid, Tensor, Gaussians]:
    """The grid about the object, the outlines (C, n, n) with their slack, as exact as it needs, and the sheets."""
    alpha = torch.from_numpy(np.ascontiguousarray(views.rgba[..., 3], np.float32)).to(device)
    search = search_grid(cameras, views.orbit.radius)
    outlines, exact = ops.signed_distances(alpha, pixels_for(search.step, cameras, search) + settings.slack)
    distances = outlines.sub_(settings.slack).cpu().numpy()
    sheets = sheet_splats(gaussians, distances, cameras)
    grid = hull_grid(distances, cameras, views.orbit.radius, settings.grid, MARGIN, sheets.means.numpy())
    needed = pixels_for(HULL_REACH * _truncation(settings, grid), cameras, grid) + settings.slack
    if needed > exact:
        outlines = ops.signed_distances(alpha, needed)[0].sub_(settings.slack)
    return grid, outlines, sheets


def density_field(gaussians: Gaussians, settings: MeshSettings) -> Field:
    """The paper's own route: the splats' density Σ o·exp(−d²/2), as DreamGaussian samples it, cut at level 1.

    The values are 1 − density, so that the surface lies at 0 as in the fused field.
    """
    reach = float(gaussians.means.abs().max()) * 1.1
    n = settings.density_grid
    grid = Grid(np.full(3, -reach), 2 * reach / (n - 1), n)
    # Beyond 3.5 standard deviations a splat adds less than exp(−3.5²/2) = 0.0022.
    covariances = _inverse_covariances(gaussians)
    extent = 3.5 * gaussians.scales.amax(dim=1)
    density = np.zeros((n, n, n), np.float32)
    means = gaussians.means.numpy()
    _add_density(density, means, covariances, gaussians.opacities.numpy(), extent.numpy(), grid.low, grid.step)
    return Field(1.0 - density, grid)


def _inverse_covariances(gaussians: Gaussians) -> FloatArray:
    A = rotation_matrices(gaussians.quats) / gaussians.scales[:, None, :]
    inverse: FloatArray = (A @ A.transpose(1, 2)).numpy()
    return np.ascontiguousarray(inverse)


def _hollows(ops: Operations, values: Tensor, neck: int) -> Tensor:
    """Free voxels (n, n, n) that are reached from outside only through necks at most 2·`neck` voxels wide.

    In a dark crease the splats often leave a crack, and a hollow behind it that several views look into. It is no part
    of the object, and its walls give the mesh tunnels.
    """
    free = F.pad(values > 0, (neck + 1,) * 6, value=True)
    # Diagonal steps give pits their corners back; what lies in a neck itself stays free.
    reached = ops.dilated(ops.connected_to_corner(ops.eroded(free, neck, border=True)), neck + 1, corners=True)
    inner = slice(neck + 1, -neck - 1)
    return (free & ~reached)[inner, inner, inner]


def _thin_parts(ops: Operations, hull: Tensor, gaussians: Gaussians, grid: Grid) -> Tensor:
    """Voxels (n, n, n) of the hull's thin parts that hold splats: rods and wires a few voxels thick.

    Depth fused over many views loses what is thinner than its own blur. Where the silhouettes leave so little room,
    their hull is the object.
    """
    inside = hull < 0
    thick = ops.dilated(ops.eroded(inside, THIN_VOXELS, border=False), 2 * THIN_VOXELS)
    solid = gaussians[gaussians.opacities > THIN_OPACITY]
    # A rod may be one long splat.
    longest = solid.scales.argmax(dim=1)
    every = torch.arange(len(solid), device=hull.device)
    axes = rotation_matrices(solid.quats)[every, :, longest] * solid.scales.amax(dim=1)[:, None]
    along = torch.linspace(-2, 2, 33, device=hull.device)[:, None, None]
    points = (solid.means + along * axes).reshape(-1, 3).double()
    index = ((points - torch.from_numpy(grid.low).to(hull.device)) / grid.step).round().long()
    index = index[((index >= 0) & (index < grid.n)).all(dim=1)]
    held = torch.zeros_like(inside)
    held[tuple(index.T)] = True
    return inside & ~thick & ops.dilated(held, THIN_VOXELS)


def virtual_cameras(count: int, elevation: float, radius: float, like: Cameras) -> tuple[Cameras, NDArray[np.bool_]]:
    """Cameras on a Fibonacci sphere, and which of them (count,) may carve.

    A camera may carve only from where the surfaces that it sees first were seen by an input view. A flat orbit sees
    neither top nor bottom: steep cameras would look into the open shell and hollow it out, so elevations are halved.
    """
    elevations = np.degrees(np.arcsin(np.clip(1 - 2 * (np.arange(count) + 0.5) / max(count, 1), -0.98, 0.98)))
    looks_down = elevation > LOW_ORBIT_DEG
    if not looks_down:
        elevations *= 0.5
    golden = math.degrees(math.pi * (3 - math.sqrt(5)))
    viewmats = [look_at_origin(golden * i, float(e), radius) for i, e in enumerate(elevations)]
    carves = elevations > -12 if looks_down else np.abs(elevations) < 4
    stacked = np.stack(viewmats) if count else np.zeros((0, 4, 4), np.float32)
    return Cameras(stacked, like.focal, like.size), carves


def low_cameras(elevation: float, radius: float, like: Cameras, count: int = 16) -> Cameras:
    """Two rings nearly level with the object, whose silhouettes bound the underside that a high orbit never saw."""
    rings = [look_at_origin(360 * k / count, e, radius) for e in (elevation / 3, -4.0) for k in range(count)]
    return Cameras(np.stack(rings), like.focal, like.size)


def _lowest_seen(maps: DepthMaps, cameras: Cameras, real: int) -> float:
    """Height of the lowest surface that any input view saw, a little below it: nothing is built under it.

    Stray points do not count. −∞ where nothing was seen.
    """
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
    lowest = torch.cat(heights).cpu().numpy()
    return float(np.quantile(lowest, 0.002)) - 0.004 if len(lowest) else -math.inf


@njit(cache=True)
def _add_density(density, means, inverse, opacities, extents, low, step):  # type: ignore[no-untyped-def]
    n = len(density)
    for g in range(len(means)):
        lo = np.empty(3, np.int64)
        hi = np.empty(3, np.int64)
        for k in range(3):
            lo[k] = max(0, math.ceil((means[g, k] - extents[g] - low[k]) / step))
            hi[k] = min(n - 1, math.floor((means[g, k] + extents[g] - low[k]) / step))
        S = inverse[g]
        for x in range(lo[0], hi[0] + 1):
            dx = low[0] + x * step - means[g, 0]
            for y in range(lo[1], hi[1] + 1):
                dy = low[1] + y * step - means[g, 1]
                for z in range(lo[2], hi[2] + 1):
                    dz = low[2] + z * step - means[g, 2]
                    q = S[0, 0] * dx * dx + S[1, 1] * dy * dy + S[2, 2] * dz * dz
                    q += 2 * (S[0, 1] * dx * dy + S[0, 2] * dx * dz + S[1, 2] * dy * dz)
                    density[x, y, z] += opacities[g] * math.exp(-0.5 * q)
