"""The depth maps of `im3d.splats.depth` in plain torch, for a GPU; on the CPU it is slower, and gives the same.

The blending weights, which show from where each splat was seen, are computed here too: a mesh needs no compiled
rasteriser. Splats are sorted into tiles of 16 × 16 pixels by one sort, in the order of the CPU rasteriser. Then all
tiles of all cameras blend their next few splats at once, until they have none left or are opaque.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from im3d.core.orbit import Cameras
from im3d.splats.depth import FINISHED, DepthMaps, depth_slopes
from im3d.splats.gaussians import Gaussians
from im3d.splats.rasterizers.project import MAX_ALPHA, MIN_ALPHA, Projected, project_views
from im3d.splats.rasterizers.rasterize_numba import CHECK_EVERY, MIN_TRANSMITTANCE, TILE

# Sizes of a batch, so that memory stays near a gigabyte: splats times cameras in the projection, tiles in the blending.
SPLATS_AT_ONCE = 2**21
TILES_AT_ONCE = 2048


@dataclass(frozen=True)
class _Entries:
    """P splats as some camera sees them, each a row of `table`, and the lists of the tiles, near to far.

    Attributes:
        table: (P, 10): centre x and y in pixels, ½a, b and ½c of the conic (a, b, c), log opacity, depth, its slope in
            x and y, and the most that it may deviate.
        owner: (P,) camera · N + splat.
        rows: (M,) row of `table` of each slot.
        starts, counts: (C·tiles,) where each tile's slots begin, and how many it has.
        size: Image side in pixels.
    """

    table: Tensor
    owner: Tensor
    rows: Tensor
    starts: Tensor
    counts: Tensor
    size: int

    @property
    def per_side(self) -> int:
        """Tiles along each side of the image."""
        return (self.size + TILE - 1) // TILE


@dataclass(frozen=True)
class _Step:
    """The next `CHECK_EVERY` splats of B tiles.

    Attributes:
        tiles: (B,) the tiles.
        rows: (B, CHECK_EVERY) row of each splat in the table.
        columns: Ten of (B, CHECK_EVERY), as in the table, but the centres count from the middle of the first pixel.
        passed: (B, CHECK_EVERY + 1, TILE²) transmittance before the first splat, after it, …
    """

    tiles: Tensor
    rows: Tensor
    columns: tuple[Tensor, ...]
    passed: Tensor

    @property
    def stopped(self) -> Tensor:
        """(B, CHECK_EVERY, TILE²) blending weights."""
        return self.passed[:, :-1] - self.passed[:, 1:]


def median_depth(gaussians: Gaussians, cameras: Cameras, seen_from: Tensor) -> DepthMaps:
    """`im3d.splats.depth_numba.median_depth` on the device of the splats.

    Equal to it but for rounding, and for the exponential: the CPU's polynomial is off by up to 2e-4. Single pixels may
    take the next splat's depth where just half of the light is stopped.

    Args:
        gaussians: N splats.
        cameras: C cameras.
        seen_from: (N, 3) mean unit direction from each splat to the input cameras that see it, on the same device.
    """
    with torch.no_grad():
        parts = [_depth_maps(gaussians, part, seen_from) for part in _groups(gaussians, cameras)]
    if not parts:
        empty = gaussians.means.new_zeros(0, cameras.size, cameras.size)
        return DepthMaps(empty, empty, empty)
    depth, alpha, facing = (torch.cat(images) for images in zip(*parts, strict=True))
    return DepthMaps(depth, alpha, facing)


def blending_weights(gaussians: Gaussians, cameras: Cameras) -> Tensor:
    """`im3d.splats.render.blending_weights`, (C, N), on the device of the splats."""
    with torch.no_grad():
        return torch.cat([_weights(gaussians, part) for part in _groups(gaussians, cameras)])


def _groups(gaussians: Gaussians, cameras: Cameras) -> list[Cameras]:
    count = max(1, SPLATS_AT_ONCE // max(len(gaussians), 1))
    return [cameras[slice(k, k + count)] for k in range(0, len(cameras), count)]


def _depth_maps(gaussians: Gaussians, cameras: Cameras, seen_from: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Depth, coverage and facing, (C, S, S) each."""
    entries = _sorted_into_tiles(gaussians, cameras)
    centres = torch.from_numpy(cameras.centres).to(gaussians.device)
    cosine = (F.normalize(centres[:, None] - gaussians.means, dim=-1) * seen_from).sum(dim=-1).flatten()[entries.owner]
    median = gaussians.means.new_zeros(len(entries.counts), TILE * TILE)
    turned = torch.zeros_like(median)

    def add(step: _Step) -> None:
        turned[step.tiles] += (step.stopped * cosine[step.rows][..., None]).sum(dim=1)
        median[step.tiles] = _at_half_transmittance(step, median[step.tiles])

    alpha = 1 - _blend(entries, FINISHED, add)
    images = (median, alpha, turned / alpha.clamp_min(1e-6))
    depth, alpha, facing = (_untiled(image, entries, len(cameras)) for image in images)
    return depth, alpha, facing


def _weights(gaussians: Gaussians, cameras: Cameras) -> Tensor:
    entries = _sorted_into_tiles(gaussians, cameras)
    # In double precision, so that the order in which a GPU adds does not show.
    total = torch.zeros(len(cameras) * len(gaussians), dtype=torch.float64, device=gaussians.device)

    def add(step: _Step) -> None:
        total.index_add_(0, entries.owner[step.rows].flatten(), step.stopped.sum(dim=-1).flatten().double())

    _blend(entries, float(MIN_TRANSMITTANCE), add)
    return total.float().view(len(cameras), -1)


def _sorted_into_tiles(gaussians: Gaussians, cameras: Cameras) -> _Entries:
    """Projects the splats into the cameras and sorts them into tiles."""
    projected = project_views(gaussians, cameras)
    seen = projected.visible
    table = _table(gaussians, projected, cameras)[seen]
    per_side = (cameras.size + TILE - 1) // TILE
    owner = seen.flatten().nonzero()[:, 0]
    camera = owner // len(gaussians)
    # Boxes of tiles: first (inclusive) and end (exclusive) in x and y.
    means, extents = projected.means2d[seen], projected.extents[seen]
    first = ((means - extents) / TILE).floor().clamp_min(0).long()
    end = (((means + extents) / TILE).floor() + 1).clamp_max(per_side).long()
    width, height = (end - first).clamp_min(0).unbind(-1)

    copies = width * height
    rows = torch.repeat_interleave(copies)
    place = torch.arange(len(rows), device=rows.device) - (copies.cumsum(0) - copies)[rows]
    column, line = first[rows, 0] + place % width[rows], first[rows, 1] + place // width[rows]
    tile = (camera[rows] * per_side + line) * per_side + column
    # One key sorts by tile, then by depth: the bits of positive floats are ordered like the numbers.
    bits = projected.depths[seen].view(torch.int32).long()
    order = torch.sort((tile << 32) | bits[rows], stable=True).indices
    counts = torch.bincount(tile, minlength=len(cameras) * per_side**2)
    return _Entries(table, owner, rows[order], counts.cumsum(0) - counts, counts, cameras.size)


def _table(gaussians: Gaussians, projected: Projected, cameras: Cameras) -> Tensor:
    """(C, N, 10), see `_Entries`."""
    slopes, deviations = depth_slopes(gaussians, projected.conics, cameras)
    aa, ab, bb = projected.conics.unbind(-1)
    columns = [
        *projected.means2d.unbind(-1), 0.5 * aa, ab, 0.5 * bb, gaussians.opacities.log().expand(ab.shape),
        projected.depths, *slopes.unbind(-1), deviations,
    ]  # fmt: skip
    return torch.stack(columns, dim=-1)


def _blend(entries: _Entries, finished: float, add: Callable[[_Step], None]) -> Tensor:
    """Blends the lists of all tiles, near to far; returns the final transmittance (C·tiles, TILE²).

    Args:
        finished: A tile is finished when the transmittance of all of its pixels is below this.
        add: Called with each step.
    """
    through = entries.table.new_ones(len(entries.counts), TILE * TILE)
    active, done = entries.counts.nonzero()[:, 0], 0
    while len(active):
        for tiles in active.split(TILES_AT_ONCE):
            step = _next(entries, tiles, done, through[tiles])
            through[tiles] = step.passed[:, -1]
            add(step)
        done += CHECK_EVERY
        active = active[(entries.counts[active] > done) & (through[active].amax(dim=1) >= finished)]
    return through


def _next(entries: _Entries, tiles: Tensor, done: int, through: Tensor) -> _Step:
    """The splats of some tiles that come after the first `done`, behind a transmittance `through` (B, TILE²)."""
    place = done + torch.arange(CHECK_EVERY, device=tiles.device)
    rows = entries.rows[(entries.starts[tiles, None] + place).clamp_max(len(entries.rows) - 1)]
    mx, my, a, b, c, log_o, *depth = entries.table[rows].unbind(-1)
    log_o = log_o.masked_fill(place >= entries.counts[tiles, None], -torch.inf)  # no splat is left: opacity 0
    mx = mx - 0.5 - (tiles % entries.per_side * TILE)[:, None]
    my = my - 0.5 - (tiles // entries.per_side % entries.per_side * TILE)[:, None]
    pixel = torch.arange(TILE, device=tiles.device)
    dx, dy = pixel - mx[..., None], pixel - my[..., None]  # (B, CHECK_EVERY, TILE)
    along_x, along_y = log_o[..., None] - a[..., None] * dx * dx, c[..., None] * dy * dy
    # From here on tensors are of full size, (B, CHECK_EVERY, TILE, TILE): the time is that of reading them.
    weight = torch.addcmul(along_x[:, :, None, :], (-b[..., None] * dy)[..., None], dx[:, :, None, :])
    weight = weight.sub_(along_y[..., None]).exp_().clamp_max_(MAX_ALPHA)
    weight = torch.threshold_(weight, MIN_ALPHA, 0.0).flatten(2)
    passed = torch.cat([through[:, None], 1 - weight], dim=1).cumprod(dim=1)
    return _Step(tiles, rows, (mx, my, a, b, c, log_o, *depth), passed)


def _at_half_transmittance(step: _Step, median: Tensor) -> Tensor:
    """Depth (B, TILE²) of the splat that brings the transmittance to at most ½; `median` where no splat does."""
    mx, my, *_, z, slope_x, slope_y, reach = step.columns
    at = (step.passed[:, 1:] > 0.5).sum(dim=1)
    now = (step.passed[:, 0] > 0.5) & (at < CHECK_EVERY)
    at = at.clamp_max(CHECK_EVERY - 1)
    pixel = torch.arange(TILE, device=at.device)
    dx = pixel.repeat(TILE) - mx.gather(1, at)
    dy = pixel.repeat_interleave(TILE) - my.gather(1, at)
    deviation, limit = slope_x.gather(1, at) * dx + slope_y.gather(1, at) * dy, reach.gather(1, at)
    return torch.where(now, z.gather(1, at) + deviation.clamp(-limit, limit), median)


def _untiled(pixels: Tensor, entries: _Entries, cameras: int) -> Tensor:
    """(C, S, S) images of (C·tiles, TILE²) pixels."""
    n, side = entries.per_side, entries.per_side * TILE
    tiles = pixels.view(cameras, n, n, TILE, TILE).transpose(2, 3)
    return tiles.reshape(cameras, side, side)[:, : entries.size, : entries.size]
