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

from im3d.orbit import DEFAULT_FOV_DEG, framing_radius

TAN = math.tan(math.radians(DEFAULT_FOV_DEG) / 2)
RADIUS = framing_radius(DEFAULT_FOV_DEG, 1.0)


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
    K = azimuths.shape[1]
    tall = F.interpolate(color, size=(D, S, S), mode="trilinear", align_corners=False)
    volume = torch.cat([logits[:, None] - empty, tall], dim=1)
    points = camera_points(size, samples, logits.device).flatten(1)
    here = camera_axes(torch.zeros_like(elevation), elevation)
    turned = here[:, None] @ camera_axes(azimuths, elevation[:, None]).mT  # (B, K, 3, 3): their axes to the input's
    depths = centres(samples, logits.device).view(samples, 1, 1)
    views, places, distances = [], [], []
    for k in range(K):  # one camera at a time: all samples of all at once would take gigabytes
        x, y, z = (turned[:, k] @ points).unflatten(2, (samples, size, size)).unbind(1)
        depth = (RADIUS + z) * TAN
        grid = torch.stack([x / depth, y / depth, z], dim=-1)
        found = F.grid_sample(volume, grid, padding_mode="zeros", align_corners=False)
        density = F.softplus(found[:, 0] + empty) * (D / samples)
        passed = torch.cumsum(density, dim=1)
        weights = (density - passed).exp() - (-passed).exp()  # (B, samples, s, s)
        alpha = weights.sum(dim=1, keepdim=True)
        rgb = (weights[:, None] * found[:, 1:]).sum(dim=2)
        views.append(torch.cat([torch.minimum(rgb, alpha), alpha], dim=1))
        # The mean surface; where nothing is, far behind, which the input picture shows as nothing.
        own = (weights * depths).sum(dim=1) + (1 - alpha[:, 0]) * 1.5
        surface = camera_points_at(size, own)
        x, y, z = (turned[:, k] @ surface.flatten(2)).unflatten(2, (size, size)).unbind(1)
        depth = (RADIUS + z) * TAN
        places.append(torch.stack([x / depth, y / depth], dim=-1))
        distances.append(z)
    return Drawn(torch.stack(views, dim=1), torch.stack(places, dim=1), torch.stack(distances, dim=1))


def camera_points_at(size: int, distance: Tensor) -> Tensor:
    """(B, 3, s, s): what each pixel's ray meets at a distance (B, s, s) behind the origin along the camera's axis."""
    c = centres(size, distance.device)
    depth = (RADIUS + distance) * TAN
    return torch.stack([c * depth, c[:, None] * depth, distance], dim=1)
