"""Between a ring of views and a volume: lifting pictures into it, and drawing it along the views' rays.

The volume is a cube of n³ cells about the unit sphere, stored (…, z, d, x) in the frame of the input view: x to its
right, d away from its camera along the ground, z up. `Orbit`'s conventions hold, with the camera at the distance where
the unit sphere touches the border of the picture.

A general resampling gathers eight cells for each of half a million samples. An orbit needs no general one: the views
of a uniform ring are quarter turns, which only permute cells, of its first quarter; those few rotations are the same
for every object; tilt and the vertical perspective do not depend on x, the horizontal perspective depends on depth
alone. So every step is a product with a small matrix of linear interpolation weights.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from im3d.orbit import DEFAULT_FOV_DEG, framing_radius

TAN = math.tan(math.radians(DEFAULT_FOV_DEG) / 2)
RADIUS = framing_radius(DEFAULT_FOV_DEG, 1.0)


def hats(position: Tensor, count: int) -> Tensor:
    """Linear interpolation weights (…, count) of `count` samples at positions (…) in samples; outside they vanish."""
    return (1 - (position[..., None] - torch.arange(count, device=position.device)).abs()).clamp_min(0)


def cell_centres(n: int, device: torch.device) -> Tensor:
    """The n cells' (or pixels') centres in [−1, 1]."""
    return (torch.arange(n, device=device) + 0.5) * (2 / n) - 1


def to_cells(x: Tensor, n: int) -> Tensor:
    """Coordinates in [−1, 1] in units of cells, 0 at the first one's centre."""
    return (x + 1) * (n / 2) - 0.5


@functools.lru_cache(maxsize=8)
@torch.inference_mode(mode=False)  # kept for later calls, which may need gradients through products with it
def quarter_rotations(n: int, views: int, device: torch.device, back: bool = False) -> Tensor:
    """Ground planes (d, x) of the first quarter's views from the input view's, or back: (views/4, n², n²)."""
    c = cell_centres(n, device)
    d, x = torch.meshgrid(c, c, indexing="ij")
    planes = []
    for k in range(views // 4):
        a = (-1 if back else 1) * 2 * math.pi * k / views
        x0, d0 = x * math.cos(a) - d * math.sin(a), x * math.sin(a) + d * math.cos(a)
        weights = hats(to_cells(d0, n), n)[..., :, None] * hats(to_cells(x0, n), n)[..., None, :]
        planes.append(weights.reshape(n * n, n * n))
    return torch.stack(planes)


@dataclass(frozen=True)
class View:
    """A view's own coordinates: along its right, along the ground away from it, and up, for angles in radians."""

    elevation: Tensor

    def depth(self, d: Tensor, z: Tensor) -> Tensor:
        """Depth along the optical axis."""
        return RADIUS + self.elevation.cos() * d - self.elevation.sin() * z

    def down(self, d: Tensor, z: Tensor) -> Tensor:
        """Distance below the optical axis."""
        return -self.elevation.sin() * d - self.elevation.cos() * z

    def ground(self, depth: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse: distance along the ground, and height."""
        e, t = self.elevation, depth - RADIUS
        return e.cos() * t - e.sin() * down, -e.sin() * t - e.cos() * down


def sample_depths(n: int, device: torch.device) -> Tensor:
    """Depths (n,) at which rays are sampled, one a cell."""
    return RADIUS + cell_centres(n, device)


def lifted(features: Tensor, elevation: Tensor) -> Tensor:
    """Every cell's features: those of the pixel it is seen in.

    Args:
        features: (B, n, n, C), rows from the top.
        elevation: (B,) radians.

    Returns:
        (B, n, n, n, C) volumes (z, d, x) in each view's own frame; cells outside the picture are 0.
    """
    B, n, _, C = features.shape
    c = cell_centres(n, features.device)
    view = View(elevation.float().view(B, 1, 1))
    z, d = c[None, :, None], c[None, None, :]
    depth = view.depth(d, z)
    rows = hats(to_cells(view.down(d, z) / (depth * TAN), n), n).reshape(B, n * n, n)
    columns = hats(to_cells(c / (depth[..., None] * TAN), n), n).reshape(B, n * n, n, n)
    h = torch.matmul(rows.to(features.dtype), features.reshape(B, n, n * C)).view(B, n * n, n, C)
    return torch.matmul(columns.to(h.dtype), h).view(B, n, n, n, C)


def gathered(volumes: Tensor) -> Tensor:
    """The mean over a ring's views of volumes in their own frames, in the input view's frame.

    Args:
        volumes: (B, n, n, n, K, C).

    Returns:
        (B, n, n, n, C).
    """
    B, n, _, _, K, C = volumes.shape
    quarter = K // 4
    turned = [torch.rot90(volumes[:, :, :, :, q * quarter : (q + 1) * quarter], -q, (2, 3)) for q in range(4)]
    first = torch.stack(turned).sum(dim=0) / K
    planes = first.permute(0, 1, 4, 2, 3, 5).reshape(B * n, quarter * n * n, C)
    back = quarter_rotations(n, K, volumes.device, back=True).permute(1, 0, 2).reshape(n * n, quarter * n * n)
    return torch.matmul(back.to(planes.dtype), planes).view(B, n, n, n, C)


def sampled(volume: Tensor, elevation: Tensor, views: int) -> Tensor:
    """Samples of a volume along the rays of every view of the ring.

    Args:
        volume: (B, n, n, n, C) in the input view's frame.
        elevation: (B,) radians.
        views: Views of the uniform ring, a multiple of 4.

    Returns:
        (B, n, n, n, K, C): depth, row, column, view.
    """
    B, n, _, _, C = volume.shape
    quarter = views // 4
    rotations = quarter_rotations(n, views, volume.device).reshape(quarter * n * n, n * n)
    first = torch.matmul(rotations.to(volume.dtype), volume.reshape(B * n, n * n, C))
    first = first.view(B, n, quarter, n, n, C).permute(0, 1, 3, 4, 2, 5)
    ring = torch.cat([torch.rot90(first, q, (2, 3)) for q in range(4)], dim=4)

    c, depths = cell_centres(n, volume.device), sample_depths(n, volume.device)
    t = depths.view(1, n, 1)
    d, z = View(elevation.float().view(B, 1, 1)).ground(t, c.view(1, 1, n) * t * TAN)
    tilt = (hats(to_cells(z, n), n)[..., :, None] * hats(to_cells(d, n), n)[..., None, :]).reshape(B, n * n, n * n)
    columns = hats(to_cells(c * depths[:, None] * TAN, n), n).view(1, n, 1, n, n)
    rays = torch.matmul(tilt.to(ring.dtype), ring.reshape(B, n * n, n * views * C))
    return torch.matmul(columns.to(rays.dtype), rays.view(B, n, n, n, views * C)).view(B, n, n, n, views, C)


def input_view_coordinates(depth: Tensor, elevation: Tensor) -> tuple[Tensor, Tensor]:
    """Where the input view sees the points that the ring's views see at some depth.

    Args:
        depth: (B, K, S, S) depth along each view's optical axis.
        elevation: (B,) radians.

    Returns:
        Picture coordinates (B, K, S, S, 2), x and y in [−1, 1], and the depth (B, K, S, S) in the input view.
    """
    B, K, S, _ = depth.shape
    c = cell_centres(S, depth.device)
    view = View(elevation.float().view(B, 1, 1, 1))
    d, z = view.ground(depth, c.view(S, 1) * depth * TAN)
    x = c * depth * TAN
    a = (torch.arange(K, device=depth.device) * (2 * math.pi / K)).view(K, 1, 1)
    x0, d0 = x * a.cos() - d * a.sin(), x * a.sin() + d * a.cos()
    depth0 = view.depth(d0, z)
    scale = 1 / (depth0 * TAN)
    return torch.stack([x0 * scale, view.down(d0, z) * scale], dim=-1), depth0
