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
from numba import njit, prange
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, binary_erosion, binary_opening, gaussian_filter, label

from im3d.core.images import OrbitViews
from im3d.core.orbit import Cameras, look_at_origin
from im3d.core.progress import Progress, silent
from im3d.core.threads import on_all_cores
from im3d.mesh.fusion.distance import distance_to_false
from im3d.mesh.fusion.sheets import sheet_field, sheet_splats
from im3d.mesh.fusion.silhouettes import Grid, all_signed_distances, hull_field, hull_grid
from im3d.settings import MeshSettings
from im3d.splats.depth import DepthMaps, median_depth, seen_directions
from im3d.splats.gaussians import Gaussians
from im3d.splats.rasterizers.project import rotation_matrices
from im3d.splats.render import blending_weights

FloatArray = NDArray[np.float32]

# Lengths below are in voxels of a 192³ grid over the object, whatever the grid: they describe the splats' blur, not the
# sampling.
REFERENCE_GRID = 192
MARGIN = 0.03  # share of the object's size kept free around it in the grid
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
# Coverage above which a pixel's depth tells how far down the object was seen.
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
        progress: Told of each of five steps.
        device: Where the work is done: on the CPU by numba, elsewhere by torch, equal but for rounding.

    Raises:
        InputError: The silhouettes have no common volume.
    """
    if device.type != "cpu":
        from im3d.mesh.fusion import field_torch  # it builds on this module

        return field_torch.fused_field(gaussians, views, settings, progress, device)
    orbit = views.orbit
    assert orbit.elevation_deg is not None
    cameras = orbit.cameras(views.size)
    outlines = all_signed_distances(views.rgba[..., 3], settings.slack)
    sheets = sheet_splats(gaussians, outlines, cameras)
    grid = hull_grid(outlines, cameras, orbit.radius, settings.grid, MARGIN, sheets.means.numpy())
    truncation = settings.truncation * (settings.grid - 1) / (REFERENCE_GRID - 1) * grid.step
    hull = hull_field(outlines, cameras, grid, 1.01 * truncation)
    progress(1, 5)

    seen_from = seen_directions(gaussians, cameras, blending_weights(gaussians, cameras, "cpu"))
    if orbit.elevation_deg > LOW_ORBIT_DEG:
        low = low_cameras(orbit.elevation_deg, orbit.radius, cameras)
        shadows = all_signed_distances(median_depth(gaussians, low, seen_from).alpha, settings.virtual_slack)
        hull = np.maximum(hull, hull_field(shadows, low, grid, 1.01 * truncation))
    progress(2, 5)

    virtual, carves = virtual_cameras(settings.virtual_views, orbit.elevation_deg, orbit.radius, cameras)
    everyone = Cameras(np.concatenate([cameras.viewmats, virtual.viewmats]), cameras.focal, cameras.size)
    maps = median_depth(gaussians, everyone, seen_from)
    progress(3, 5)
    values = _fuse(maps, everyone, len(cameras), carves, hull, grid, truncation, settings.behind)
    values[_hollows(values, max(1, round(NECK_VOXELS * settings.grid / REFERENCE_GRID)))] = -1.0
    progress(4, 5)
    if settings.blur > 0:
        values = gaussian_filter(values, settings.blur * settings.grid / REFERENCE_GRID)
    cut = np.clip(hull / truncation, -1, 1)
    values = np.maximum(values, cut)
    wide = hull - THIN_SLACK_PX * orbit.radius / cameras.focal
    thin = _thin_parts(wide, gaussians, grid)
    values[thin] = np.clip(wide[thin] / truncation, -1, 1)
    if len(sheets):
        values = np.minimum(values, sheet_field(sheets, outlines, cameras, grid, truncation) / truncation)
    floor = _lowest_seen(maps, everyone, len(cameras))
    below = floor - (grid.low[2] + grid.step * np.arange(grid.n))
    values = np.maximum(values, np.clip(below / truncation, -1, 1).astype(np.float32))
    progress(5, 5)
    return Field(values.astype(np.float32), grid)


def density_field(gaussians: Gaussians, views: OrbitViews, settings: MeshSettings) -> Field:
    """The paper's own route: the splats' density Σ o·exp(−d²/2), as DreamGaussian samples it, cut at level 1.

    The values are 1 − density, so that the surface lies at 0 as in the fused field.
    """
    reach = float(gaussians.means.abs().max()) * 1.1
    n = settings.density_grid
    grid = Grid(np.full(3, -reach), 2 * reach / (n - 1), n)
    # Beyond 3.5 standard deviations a splat adds less than 0.002.
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


def _hollows(values: FloatArray, neck: int) -> NDArray[np.bool_]:
    """Free voxels that are reached from outside only through necks at most 2·`neck` voxels wide.

    In a dark crease the splats often leave a crack, and a hollow behind it that several views look into. It is no part
    of the object, and its walls give the mesh tunnels.
    """
    free = np.pad(values > 0, neck + 1, constant_values=True)
    labels, _ = label(binary_erosion(free, iterations=neck, border_value=1))
    # Diagonal steps give pits their corners back; what lies in a neck itself stays free.
    reached = binary_dilation(labels == labels[0, 0, 0], np.ones((3, 3, 3)), iterations=neck + 1)
    hollows: NDArray[np.bool_] = free & ~reached
    inner = slice(neck + 1, -neck - 1)
    return hollows[inner, inner, inner]


def _thin_parts(hull: FloatArray, gaussians: Gaussians, grid: Grid) -> NDArray[np.bool_]:
    """Voxels of the hull's thin parts that hold splats: rods and wires a few voxels thick.

    Depth fused over many views loses what is thinner than its own blur. Where the silhouettes leave so little room,
    their hull is the object.
    """
    inside = hull < 0
    thick = binary_dilation(binary_opening(inside, iterations=THIN_VOXELS), iterations=THIN_VOXELS)
    solid = gaussians[gaussians.opacities > THIN_OPACITY]
    # A rod may be one long splat.
    longest = solid.scales.argmax(dim=1)
    axes = rotation_matrices(solid.quats)[torch.arange(len(solid)), :, longest] * solid.scales.amax(dim=1)[:, None]
    along = torch.linspace(-2, 2, 33)[:, None, None]
    index = np.round(((solid.means + along * axes).reshape(-1, 3).numpy() - grid.low) / grid.step).astype(int)
    index = index[((index >= 0) & (index < grid.n)).all(axis=1)]
    held = np.zeros_like(inside)
    held[tuple(index.T)] = True
    thin: NDArray[np.bool_] = inside & ~thick & binary_dilation(held, iterations=THIN_VOXELS)
    return thin


def virtual_cameras(count: int, elevation: float, radius: float, like: Cameras) -> tuple[Cameras, NDArray[np.bool_]]:
    """Cameras on a Fibonacci sphere, and which of them may declare space free.

    Free space is believed only from where the entry surfaces were seen. Below a flat orbit neither top nor bottom was:
    steep cameras would look into the open shell and carve a sponge, so their elevations are halved.
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
    """Height of the lowest surface any input view saw, a little below it: nothing is built under it."""
    heights = []
    for k in range(real):
        rows, columns = np.nonzero((maps.alpha[k] > SEEN_ALPHA) & (maps.depth[k] > 0))
        pixels = np.stack([columns + 0.5 - cameras.size / 2, rows + 0.5 - cameras.size / 2], axis=1) / cameras.focal
        rays = np.concatenate([pixels, np.ones((len(pixels), 1))], axis=1)
        points = rays * maps.depth[k][rows, columns, None] - cameras.viewmats[k, :3, 3]
        heights.append((points @ cameras.viewmats[k, :3, :3])[:, 2])
    return lowest_of(np.concatenate(heights) if heights else np.zeros(0))


def lowest_of(heights: NDArray[np.float64]) -> float:
    """A little below the lowest of (P,) heights, but for stray ones; −∞ where there is none."""
    return float(np.quantile(heights, 0.002)) - 0.004 if len(heights) else -math.inf


def _fuse(
    maps: DepthMaps,
    cameras: Cameras,
    real: int,
    carves: NDArray[np.bool_],
    hull: FloatArray,
    grid: Grid,
    truncation: float,
    behind: float,
) -> FloatArray:
    """Truncated signed distances averaged over the cameras; see `_fuse_kernel`."""
    outside = np.stack(on_all_cores(distance_to_false, maps.alpha < 0.5)) - 0.5
    is_real = np.arange(len(cameras)) < real
    may_carve = np.concatenate([np.ones(real, bool), carves])
    return _fuse_kernel(
        maps.depth, maps.alpha, np.maximum(outside, 0).astype(np.float32), maps.facing, is_real, may_carve,
        cameras.viewmats, cameras.focal, cameras.size, hull, grid.low, grid.step, truncation, behind,
    )  # fmt: skip


@njit(parallel=True, fastmath=True, cache=True)
def _fuse_kernel(  # type: ignore[no-untyped-def]
    depth, alpha, outside, facing, real, carves, viewmats, f, size, hull, low, step, truncation, behind
):  # fmt: skip
    """Weighted mean of (depth − z)/truncation, clamped to [−1, 1].

    A voxel more than the truncation behind a surface gets a small vote −1 (`behind`): without it a single view that
    sees through a crack hollows the object out. Virtual cameras vote only where they see front sides.
    """
    n = len(hull)
    out = np.empty((n, n, n), np.float32)
    for x in prange(n):
        for y in range(n):
            for z in range(n):
                if hull[x, y, z] > truncation:
                    out[x, y, z] = 1.0
                    continue
                p0 = low[0] + x * step
                p1 = low[1] + y * step
                p2 = low[2] + z * step
                total = 0.0
                weight = 0.0
                for v in range(len(depth)):
                    V = viewmats[v]
                    pz = V[2, 0] * p0 + V[2, 1] * p1 + V[2, 2] * p2 + V[2, 3]
                    if pz < 1e-3:
                        continue
                    u = f * (V[0, 0] * p0 + V[0, 1] * p1 + V[0, 2] * p2 + V[0, 3]) / pz + size / 2 - 0.5
                    w = f * (V[1, 0] * p0 + V[1, 1] * p1 + V[1, 2] * p2 + V[1, 3]) / pz + size / 2 - 0.5
                    iu = round(u)
                    iw = round(w)
                    if iu < 0 or iw < 0 or iu >= size or iw >= size:
                        continue
                    if alpha[v, iw, iu] < 0.5:
                        if carves[v]:
                            total += min(1.0, outside[v, iw, iu] * pz / f / truncation)
                            weight += 1.0
                        continue
                    if not real[v] and facing[v, iw, iu] < 0.1:
                        continue
                    d = _depth_at(depth[v], u, w, iu, iw, size, truncation)
                    if d <= 0.0:
                        continue
                    s = (d - pz) / truncation
                    if s > -1.0:
                        total += min(s, 1.0)
                        weight += 1.0
                    else:
                        total -= behind
                        weight += behind
                out[x, y, z] = total / weight if weight > 0 else -1.0
    return out


@njit(inline="always")
def _depth_at(depth, u, w, iu, iw, size, truncation):  # type: ignore[no-untyped-def]
    """Bilinear depth, or the nearest pixel's where the four straddle a discontinuity."""
    i = min(max(int(u), 0), size - 2)
    j = min(max(int(w), 0), size - 2)
    d00 = depth[j, i]
    d10 = depth[j, i + 1]
    d01 = depth[j + 1, i]
    d11 = depth[j + 1, i + 1]
    if max(max(d00, d10), max(d01, d11)) - min(min(d00, d10), min(d01, d11)) > truncation:
        return depth[iw, iu]
    a = u - i
    b = w - j
    return (d00 * (1 - a) + d10 * a) * (1 - b) + (d01 * (1 - a) + d11 * a) * b


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
