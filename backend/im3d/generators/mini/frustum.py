"""The volume that mini imagines: cells along the rays of the input view's camera, and how other cameras see it.

The volume is stored (…, depth, row, column): rows and columns are the input picture's, depths are spaced evenly along
the optical axis across the unit sphere about the origin, which touches the picture's border. What stands in a cell is
thus seen at that place in the picture, so that a network of two dimensions can fill it, with the depths as channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from im3d.core.orbit import DEFAULT_FOV_DEG, framing_radius

TAN = math.tan(math.radians(DEFAULT_FOV_DEG) / 2)
RADIUS = framing_radius(DEFAULT_FOV_DEG, 1.0)
# Where rays that meet nothing are said to end: behind the volume, where the input picture shows nothing either.
BEHIND = 1.5


def centres(n: int, device: torch.device) -> Tensor:
    """The centres of n cells in [−1, 1]."""
    return (torch.arange(n, device=device) + 0.5) * (2 / n) - 1


def camera_points(size: int, depths: int, device: torch.device, jitter: Tensor | None = None) -> Tensor:
    """Points of a camera's cells: (3, D, S, S), to its right, down and away from it, measured from the origin.

    Args:
        size: Side S of the picture in cells.
        depths: D.
        jitter: (3, D, S, S) places within the cells in [0, 1), by column, row and depth; None: their centres.
    """
    x, d = centres(size, device), centres(depths, device)
    v, u = x[None, :, None], x[None, None, :]
    t = d[:, None, None]
    if jitter is not None:
        u = u + (jitter[0] - 0.5) * (2 / size)
        v = v + (jitter[1] - 0.5) * (2 / size)
        t = t + (jitter[2] - 0.5) * (2 / depths)
    depth = (RADIUS + t) * TAN
    return torch.stack(torch.broadcast_tensors(u * depth, v * depth, t.expand(depths, size, size)))


@dataclass(frozen=True)
class Drawn:
    """What K cameras of a ring see of a volume.

    Attributes:
        views: (B, K, 4, s, s) premultiplied RGBA in [0, 1].
        place: (B, K, s, s, 2) where the input picture shows the surface seen there, x and y in [−1, 1].
        depth: (B, K, s, s) that surface's distance behind the origin along the input view's axis.
    """

    views: Tensor
    place: Tensor
    depth: Tensor


def camera_axes(azimuth: Tensor, elevation: Tensor) -> Tensor:
    """(…, 3, 3): cameras' right, down and forward in the world, as rows, for angles (…) in radians."""
    azimuth, elevation = torch.broadcast_tensors(azimuth, elevation)
    ca, sa, ce, se = azimuth.cos(), azimuth.sin(), elevation.cos(), elevation.sin()
    right = torch.stack([ca, sa, torch.zeros_like(ca)], dim=-1)
    down = torch.stack([se * sa, -se * ca, -ce], dim=-1)
    forward = torch.stack([-ce * sa, ce * ca, -se], dim=-1)
    return torch.stack([right, down, forward], dim=-2)


def drawn(
    logits: Tensor, color: Tensor, elevation: Tensor, azimuths: Tensor, size: int, samples: int, empty: float = -12.0
) -> Drawn:
    """Volume rendering (Max 1995) of an input view's volume from other cameras of its ring; differentiable.

    Args:
        logits: (B, D, S, S) log odds of occupancy; softplus of them is the density in units of a cell, so that one cell
            is as opaque as it is likely.
        color: (B, 3, D', S, S) in [0, 1].
        elevation: (B,) radians.
        azimuths: (B, K) radians from the input view.
        size: Side s of the pictures.
        samples: On each ray.
        empty: Log odds outside the volume.
    """
    D, S = logits.shape[1:3]
    tall = F.interpolate(color, size=(D, S, S), mode="trilinear", align_corners=False)
    volume = torch.cat([logits[:, None] - empty, tall], dim=1)
    points = camera_points(size, samples, logits.device)
    here = camera_axes(torch.zeros_like(elevation), elevation)
    turns = here[:, None] @ camera_axes(azimuths, elevation[:, None]).mT  # (B, K, 3, 3): their axes to the input's
    # One camera at a time: all samples of all at once would take gigabytes.
    seen = [_seen_by_one(volume, empty, points, turn, D / samples) for turn in turns.unbind(dim=1)]
    views, places, distances = (torch.stack(parts, dim=1) for parts in zip(*seen, strict=True))
    return Drawn(views, places, distances)


def _seen_by_one(
    volume: Tensor, empty: float, points: Tensor, turn: Tensor, step: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`Drawn`'s parts for one camera.

    Args:
        volume: (B, 4, D, S, S) log odds above `empty`, and colour.
        points: (3, samples, s, s) of the camera's rays.
        turn: (B, 3, 3) from the camera's axes to the input view's.
        step: From sample to sample, in cells.
    """
    place, z = _projected(turn, points.flatten(1), points.shape[1:])
    found = F.grid_sample(volume, torch.cat([place, z[..., None]], dim=-1), padding_mode="zeros", align_corners=False)
    density = F.softplus(found[:, 0] + empty) * step
    passed = torch.cumsum(density, dim=1)
    weights = (density - passed).exp() - (-passed).exp()  # (B, samples, s, s)
    alpha = weights.sum(dim=1)
    rgb = (weights[:, None] * found[:, 1:]).sum(dim=2)
    view = torch.cat([torch.minimum(rgb, alpha[:, None]), alpha[:, None]], dim=1)
    depths = centres(points.shape[1], volume.device).view(-1, 1, 1)
    surface = (weights * depths).sum(dim=1) + (1 - alpha) * BEHIND
    size = points.shape[2:]
    return view, *_projected(turn, camera_points_at(size[0], surface).flatten(2), size)


def _projected(turn: Tensor, points: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Where the input picture shows a camera's points (…, 3, P), (B, *shape, 2), and their depth there (B, *shape)."""
    x, y, z = (turn @ points).unflatten(2, shape).unbind(1)
    depth = (RADIUS + z) * TAN
    return torch.stack([x / depth, y / depth], dim=-1), z


def surface_of(logits: Tensor) -> Tensor:
    """(B, S, S): how far behind the origin the input view itself sees the surface, from its (B, D, S, S) log odds."""
    density = F.softplus(logits)
    passed = torch.cumsum(density, dim=1)
    weights = (density - passed).exp() - (-passed).exp()
    depths = centres(logits.shape[1], logits.device).view(-1, 1, 1)
    return (weights * depths).sum(dim=1) + (1 - weights.sum(dim=1)) * BEHIND


def camera_points_at(size: int, distance: Tensor) -> Tensor:
    """(B, 3, s, s): what each pixel's ray meets at a distance (B, s, s) behind the origin along the camera's axis."""
    c = centres(size, distance.device)
    depth = (RADIUS + distance) * TAN
    return torch.stack([c * depth, c[:, None] * depth, distance], dim=1)
