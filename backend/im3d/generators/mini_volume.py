"""What mini does in three dimensions: completing a volume, refining it, and marching along rays."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from im3d.generators.mini_layers import GROUPS, Attention, ResidualBlock, aligned, attended, filled
from im3d.generators.mini_resampling import RADIUS, View, cell_centres, sample_depths

# An untouched volume should be thin air.
DENSITY_SHIFT = -3.0
# Densities are those of a sample in a volume of so many cells a side; with more samples on a ray each counts less.
UNIT_CELLS = 16
COORDINATES = 25


class VolumeUNet(nn.Module):
    """A 3D U-Net of two resolutions; at the coarser one, cells attend to each other and to the picture's tokens.

    Args:
        inputs: Channels that come in.
        widths: Channels at n³ and (n/2)³.
        n: Cells along each side.
        tokens: Channels of the picture's tokens.
        embedding: Channels of the embedding.
    """

    def __init__(self, inputs: int, widths: tuple[int, ...], n: int, tokens: int, embedding: int) -> None:
        super().__init__()
        a, b = widths
        self.stem = nn.Conv3d(inputs, a, 1)
        self.fine = nn.ModuleList(ResidualBlock(a, a, embedding, 3) for _ in range(2))
        self.to_coarse = nn.Conv3d(a, b, 2, stride=2)
        self.coarse = nn.ModuleList(ResidualBlock(b, b, embedding, 3) for _ in range(3))
        self.position = nn.Parameter(torch.randn(1, (n // 2) ** 3, b) * 0.02)
        self.attention = nn.ModuleList(Attention(b) for _ in range(3))
        self.context = nn.Linear(tokens, b)
        self.back_to_fine = nn.ConvTranspose3d(b, a, 2, stride=2)
        self.fine_up = nn.ModuleList([ResidualBlock(2 * a, a, embedding, 3), ResidualBlock(a, a, embedding, 3)])

    def forward(self, x: Tensor, tokens: Tensor, embedding: Tensor) -> Tensor:
        """(B, inputs, n, n, n) with tokens (B, M, D) and an embedding (B, E) → (B, a, n, n, n)."""
        h = self.stem(x)
        for block in self.fine:
            h = block(h, embedding)
        fine = h
        h, context = self.to_coarse(h), self.context(tokens)
        for i, (block, attention) in enumerate(zip(self.coarse, self.attention, strict=True)):
            h = attended(attention, block(h, embedding), self.position if i == 0 else None, context)
        h = torch.cat([self.back_to_fine(h), fine], dim=1)
        for block in self.fine_up:
            h = block(h, embedding)
        return h


class VolumeHead(nn.Module):
    """Density and features of each cell."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.out = nn.Conv3d(channels, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, n, n, n) → (B, outputs, n, n, n)."""
        return self.out(F.silu(self.norm(x)))


class VolumeRefiner(nn.Module):
    """The volume at twice the resolution, with the picture's finer features: what is added to the doubled samples.

    An untrained refiner adds nothing, so that a network trained on small views goes on with large ones.

    Args:
        coarse: Channels of the volume.
        features: Channels of the picture's features.
        width: Channels here.
        embedding: Channels of the embedding.
        outputs: Density and features of each cell.
    """

    def __init__(self, coarse: int, features: int, width: int, embedding: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(coarse, width, 2, stride=2)
        self.stem = nn.Conv3d(aligned(width + features), width, 1)
        self.blocks = nn.ModuleList(ResidualBlock(width, width, embedding, 3) for _ in range(2))
        self.head = VolumeHead(width, outputs)
        nn.init.zeros_(self.head.out.weight)
        nn.init.zeros_(self.head.out.bias)  # type: ignore[arg-type]

    def forward(self, volume: Tensor, samples: Tensor, features: Tensor, embedding: Tensor) -> Tensor:
        """Volume (B, C, n, n, n), its samples (B, 1 + R, n, n, n), features (B, F, 2n, 2n, 2n) → (B, 1 + R, 2n, …)."""
        h = self.stem(filled(torch.cat([self.up(volume), features], dim=1)))
        for block in self.blocks:
            h = block(h, embedding)
        return F.interpolate(samples, scale_factor=2.0, mode="trilinear", align_corners=False) + self.head(h)


class RayMarcher(nn.Module):
    """Volume rendering (Max 1995): what the samples along each ray add up to."""

    def forward(self, samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Samples (B, n, n, n, K, 1 + R) by depth, row and column; density first, then colour and other features.

        Returns:
            Features (B·K, R + 2, n, n) with coverage and depth last, filled up with zeros; the coarse views
            (B, K, 4, n, n); and the expected depth (B, K, n, n), beyond the object where nothing is.
        """
        n = samples.shape[1]
        density = F.softplus(samples[..., 0].float() + DENSITY_SHIFT) * (UNIT_CELLS / n)
        passed = torch.cumsum(density, dim=1)
        weights = (density - passed).exp() - (-passed).exp()
        features = (weights[..., None].to(samples.dtype) * samples[..., 1:]).sum(dim=1)
        coverage = weights.sum(dim=1)
        depths = (sample_depths(n, samples.device) - RADIUS).view(1, n, 1, 1, 1)
        offset = (weights * depths).sum(dim=1) + (1 - coverage) * (1 + 2 / n)
        rays = torch.cat([features, torch.stack([coverage, offset], dim=-1).to(features.dtype)], dim=-1)
        coarse = torch.cat([features[..., :3].float(), coverage[..., None]], dim=-1).permute(0, 3, 4, 1, 2)
        return filled(rays.permute(0, 3, 4, 1, 2).flatten(0, 1)), coarse, RADIUS + offset.permute(0, 3, 1, 2)


def coordinates(n: int, elevation: Tensor) -> Tensor:
    """(B, n, n, n, 25): each cell's place in the world and from the input camera, and harmonics of it."""
    c = cell_centres(n, elevation.device)
    z, d, x = torch.meshgrid(c, c, c, indexing="ij")
    view = View(elevation.view(-1, 1, 1, 1))
    world = torch.stack([x, d, z], dim=-1).expand(len(elevation), -1, -1, -1, -1)
    camera = torch.stack([view.depth(d, z) - RADIUS, view.down(d, z)], dim=-1)
    p = torch.cat([world, camera], dim=-1)
    return torch.cat(
        [p, (math.pi * p).sin(), (math.pi * p).cos(), (2 * math.pi * p).sin(), (2 * math.pi * p).cos()], -1
    )
