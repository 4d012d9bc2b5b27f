"""A radiance field with a hash grid: what the paper's Table 2 puts in the place of splats ("NeRF").

    field = fit_field(views, settings.fit, seed, device, perceptual)
    pictures = render_field(field, cameras)

The encoding is that of Instant-NGP (Müller et al. 2022, section 3), the rendering that of NeRF (Mildenhall et al. 2020,
equation 3) with stratified samples and no occupancy grid. The field is compared with the views by the losses of the
splats' fit. Those look at whole pictures, whose activations fit into no memory; so a picture is rendered without
gradients, the losses give the gradient of its pixels, and that is carried back ray by ray (Zhang et al. 2022, "ARF",
section 4.3). Like the splats' colours, the field's do not depend on the direction of view.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from im3d.core.images import OrbitViews, premultiplied
from im3d.core.orbit import Cameras, Orbit
from im3d.core.progress import Progress, silent
from im3d.settings import FitSettings
from im3d.splats.losses.perceptual import Perceptual
from im3d.splats.losses.view_losses import BACKGROUNDS, ViewLosses

# Multipliers of the spatial hash (Müller et al. 2022, equation 4).
PRIMES = (1, 2_654_435_761, 805_459_861)
# Smaller entries (1e-4 there) all learn the same at first, and colours come a thousand iterations after the shape.
INITIAL = 0.1
# Rays whose activations are held at once.
RAYS = 4096
# exp of more would overflow in the gradient.
LARGEST_LOG_DENSITY = 12.0
# An entry of a table learns from the few samples near it, the network from all.
NETWORK_RATE, FINAL_RATE = 0.1, 0.1


@dataclass(frozen=True)
class FieldSettings:
    """Size of the field and of its optimisation.

    Attributes:
        levels: Grids of the encoding.
        coarsest, finest: Cells along a side of the first and of the last grid; those between grow geometrically.
        table_bits: Each grid has at most 2^table_bits entries; finer grids are hashed.
        features: Numbers in each entry.
        hidden: Width of the network's hidden layers.
        samples: Samples along each ray.
        rate: Learning rate of the tables at the start, ten times the network's; both fall exponentially to a tenth.
    """

    levels: int = 8
    coarsest: int = 16
    finest: int = 256
    table_bits: int = 17
    features: int = 2
    hidden: int = 64
    samples: int = 64
    rate: float = 1e-1


class HashEncoding(nn.Module):
    """Multiresolution hash encoding (Müller et al. 2022, section 3)."""

    def __init__(self, settings: FieldSettings) -> None:
        super().__init__()
        growth = (settings.finest / settings.coarsest) ** (1 / max(settings.levels - 1, 1))
        self.cells = [int(settings.coarsest * growth**level + 1e-6) for level in range(settings.levels)]
        entries = [min((cells + 1) ** 3, 1 << settings.table_bits) for cells in self.cells]
        self.tables = nn.ParameterList(
            nn.Parameter(torch.empty(count, settings.features).uniform_(-INITIAL, INITIAL)) for count in entries
        )

    def forward(self, points: Tensor) -> Tensor:
        """Trilinear features of points (P, 3) in [0, 1]: (P, levels · features)."""
        found = []
        for cells, table in zip(self.cells, self.tables, strict=True):
            scaled = points * cells
            low = scaled.detach().floor().clamp(0, cells - 1)
            within = scaled - low
            x, y, z = torch.stack([1 - within, within], dim=-1).unbind(1)  # (P, 2) each
            weights = x[:, :, None, None] * y[:, None, :, None] * z[:, None, None, :]
            rows = self.rows(low.long(), cells, len(table))
            found.append(torch.bmm(weights.view(-1, 1, 8), F.embedding(rows, table)).squeeze(1))
        return torch.cat(found, dim=1)

    @staticmethod
    def rows(low: Tensor, cells: int, entries: int) -> Tensor:
        """Entries (P, 8) of a table for the corners of the cells whose lowest corners are `low`, (P, 3) int64.

        Where the grid fits into the table each corner has an entry of its own; otherwise they are hashed.
        """
        dense = (cells + 1) ** 3 <= entries
        factors = ((cells + 1) ** 2, cells + 1, 1) if dense else PRIMES
        x, y, z = (torch.stack([low[:, k], low[:, k] + 1], dim=1) * factor for k, factor in enumerate(factors))
        x, y, z = x[:, :, None, None], y[:, None, :, None], z[:, None, None, :]
        rows = x + y + z if dense else (x ^ y ^ z) & (entries - 1)
        return rows.reshape(-1, 8)


class RadianceField(nn.Module):
    """Density and colour in a cube about the origin, 0 outside it.

    Args:
        half: Half of the cube's side, in world units.
        settings: Its size.
    """

    def __init__(self, half: float, settings: FieldSettings) -> None:
        super().__init__()
        self.reach, self.settings = half, settings
        self.encoding = HashEncoding(settings)
        self.network = nn.Sequential(
            nn.Linear(settings.levels * settings.features, settings.hidden), nn.ReLU(),
            nn.Linear(settings.hidden, settings.hidden), nn.ReLU(),
            nn.Linear(settings.hidden, 4),
        )  # fmt: skip

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Density (P,) ≥ 0, in 1/world units, and colour (P, 3) in [0, 1] at world points (P, 3)."""
        raw = self.network(self.encoding(((points / self.reach + 1) / 2).clamp(0, 1)))
        return raw[:, 0].clamp(max=LARGEST_LOG_DENSITY).exp(), raw[:, 1:].sigmoid()

    def render(self, origins: Tensor, directions: Tensor, jitter: Tensor | float = 0.5) -> Tensor:
        """Premultiplied colour and coverage (R, 4) along rays.

        Args:
            origins: (R, 3).
            directions: (R, 3), of unit length.
            jitter: Where in its stretch each sample lies, (R, samples) in [0, 1); 0.5 for all in the middle.
        """
        near, far = cube_interval(origins, directions, self.reach)
        count = self.settings.samples
        step = (far - near) / count
        depths = near[:, None] + (torch.arange(count, device=origins.device) + jitter) * step[:, None]
        points = origins[:, None] + depths[..., None] * directions[:, None]
        density, colour = self(points.reshape(-1, 3))
        return composite(density.view(-1, count), colour.view(-1, count, 3), step[:, None])


def cube_interval(origins: Tensor, directions: Tensor, half: float) -> tuple[Tensor, Tensor]:
    """Distances (R,) at which rays enter and leave the cube about the origin; both 0 where they miss it."""
    safe = torch.where(directions.abs() < 1e-9, torch.full_like(directions, 1e-9), directions)
    one, other = (-half - origins) / safe, (half - origins) / safe
    near = torch.minimum(one, other).amax(dim=1).clamp(min=0)
    far = torch.maximum(one, other).amin(dim=1)
    hit = far > near
    return near * hit, far * hit


def composite(density: Tensor, colour: Tensor, step: Tensor) -> Tensor:
    """Volume rendering (Mildenhall et al. 2020, equation 3).

    Args:
        density: (R, N) along each ray, the nearest first.
        colour: (R, N, 3).
        step: (R, 1) or (R, N): the length that each sample stands for.

    Returns:
        (R, 4): premultiplied colour and coverage.
    """
    optical = density * step
    before = torch.cumsum(optical, dim=1) - optical
    weights = torch.exp(-before) * (1 - torch.exp(-optical))
    return torch.cat([(weights[..., None] * colour).sum(dim=1), weights.sum(dim=1, keepdim=True)], dim=1)


def camera_rays(cameras: Cameras, device: torch.device) -> tuple[Tensor, Tensor]:
    """Origins and unit directions of all pixels' rays, both (C, S·S, 3), row by row from the top left."""
    size = cameras.size
    axis = (np.arange(size) + 0.5 - size / 2) / cameras.focal
    y, x = np.meshgrid(axis, axis, indexing="ij")
    local = np.stack([x, y, np.ones_like(x)], axis=-1).reshape(-1, 3)
    local /= np.linalg.norm(local, axis=1, keepdims=True)
    directions = np.einsum("pj,cji->cpi", local, cameras.viewmats[:, :3, :3].astype(np.float64))
    origins = np.broadcast_to(cameras.centres[:, None], directions.shape)
    return tuple(torch.from_numpy(a.astype(np.float32)).to(device) for a in (origins, directions))  # type: ignore[return-value]


def visible_half(orbit: Orbit) -> float:
    """Half of the side of a cube that holds the sphere which just touches the borders of an orbit's pictures."""
    return orbit.radius * math.sin(math.radians(orbit.fov_deg) / 2)


def fit_field(
    views: OrbitViews,
    settings: FitSettings,
    seed: int,
    device: torch.device,
    perceptual: Perceptual | None,
    model: FieldSettings = FieldSettings(),
    progress: Progress = silent,
) -> RadianceField:
    """Fits a field to the views with the losses, the picture size and the number of iterations of a splats' fit.

    Args:
        views: Pictures and cameras; the elevation must be known.
        settings: Of the splats' fit; what only concerns splats is not used, nor are pictures halved at first.
        seed: Of weights, views, backgrounds and samples.
        device: Where tensors live.
        perceptual: The perceptual loss, on the device; may be None when its weight is 0.
        model: Size of the field.
        progress: Called every tenth iteration.
    """
    size = settings.size or views.size
    rgba = torch.from_numpy(premultiplied(views.resized(size).rgba)).to(device)
    weights = dataclasses.replace(settings, lpips_shrink=max(settings.lpips_shrink, size // views.size))
    losses = ViewLosses(rgba, weights, perceptual if settings.lpips > 0 else None)
    origins, directions = camera_rays(views.orbit.cameras(size), device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        field = RadianceField(visible_half(views.orbit), model).to(device)
    rates = {field.encoding: model.rate, field.network: NETWORK_RATE * model.rate}
    optimizer = torch.optim.Adam([{"params": part.parameters()} for part in rates], betas=(0.9, 0.99), eps=1e-15)
    count = min(settings.views_per_iteration or (1 if device.type == "cpu" else 4), len(origins))
    for iteration in range(settings.iterations):
        random = np.random.default_rng([seed, iteration])
        rows = random.choice(len(origins), count, replace=False).tolist()
        background = int(random.integers(len(BACKGROUNDS)))
        generator = torch.Generator(device).manual_seed(int(random.integers(1 << 31)))
        rays = origins[rows].reshape(-1, 3), directions[rows].reshape(-1, 3)
        jitter = torch.rand(len(rays[0]), model.samples, generator=generator, device=device)
        for group, rate in zip(optimizer.param_groups, rates.values(), strict=True):
            group["lr"] = rate * FINAL_RATE ** (iteration / settings.iterations)
        optimizer.zero_grad(set_to_none=True)

        pixels = _pixels(field, *rays, jitter).requires_grad_()
        pictures = pixels.view(count, size, size, 4)
        shown = pictures[..., :3] + (1 - pictures[..., 3:]) * BACKGROUNDS[background]
        loss, _ = losses(shown.permute(0, 3, 1, 2), pictures[..., 3], rows, background)
        loss.backward()
        assert pixels.grad is not None
        carry_back(field, *rays, jitter, pixels.grad)
        optimizer.step()
        if (iteration + 1) % 10 == 0 or iteration + 1 == settings.iterations:
            progress(iteration + 1, settings.iterations)
    return field


def carry_back(field: RadianceField, origins: Tensor, directions: Tensor, jitter: Tensor, gradient: Tensor) -> None:
    """Adds to the field's gradients those of the rays' pixels (R, 4), a few rays at a time."""
    for some in range(0, len(origins), RAYS):
        part = slice(some, some + RAYS)
        field.render(origins[part], directions[part], jitter[part]).backward(gradient[part])


def render_field(field: RadianceField, cameras: Cameras) -> NDArray[np.float32]:
    """Pictures (C, S, S, 4), straight alpha, as `consistency.render_splats` gives them of splats."""
    device = next(field.parameters()).device
    found = []
    for origins, directions in zip(*camera_rays(cameras, device), strict=True):
        pixels = _pixels(field, origins, directions, 0.5).view(cameras.size, cameras.size, 4)
        alpha = pixels[..., 3:].clamp(0, 1)
        found.append(torch.cat([(pixels[..., :3] / alpha.clamp(min=1 / 255)).clamp(0, 1), alpha], dim=-1))
    return torch.stack(found).cpu().numpy()


def _pixels(field: RadianceField, origins: Tensor, directions: Tensor, jitter: Tensor | float) -> Tensor:
    """(R, 4) of `RadianceField.render`, without gradients, a few rays at a time."""
    with torch.no_grad():
        parts = []
        for some in range(0, len(origins), RAYS):
            part = slice(some, some + RAYS)
            offset = jitter[part] if isinstance(jitter, Tensor) else jitter
            parts.append(field.render(origins[part], directions[part], offset))
        return torch.cat(parts)
