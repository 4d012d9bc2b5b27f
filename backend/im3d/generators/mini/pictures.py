"""How mini finishes its views: a denoiser of single pictures that knows what the volume shows there."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from im3d.generators.mini.layers import ResidualBlock


class ViewDecoder(nn.Module):
    """A small U-Net, at 1/2, 1/4 and 1/8 of the resolution.

    Args:
        pixels: Channels of what is known of each pixel.
        widths: Channels at 1/2, 1/4 and 1/8.
        embedding: Width of the embedding.
    """

    def __init__(self, pixels: int, widths: tuple[int, ...], embedding: int) -> None:
        super().__init__()
        a, b, c = widths
        self.stem = nn.Conv2d(4 * pixels, a, 3, padding=1)
        self.half_down = ResidualBlock(a, embedding)
        self.to_quarter = nn.Conv2d(a, b, 2, stride=2)
        self.quarter = nn.ModuleList(ResidualBlock(b, embedding) for _ in range(2))
        self.to_eighth = nn.Conv2d(b, c, 2, stride=2)
        self.eighth = nn.ModuleList(ResidualBlock(c, embedding) for _ in range(3))
        self.back_to_quarter = nn.Conv2d(c, 4 * b, 1)
        self.quarter_up = ResidualBlock(b, embedding)
        self.back_to_half = nn.Conv2d(b, 4 * a, 1)
        self.half_up = ResidualBlock(a, embedding)
        self.head = nn.Conv2d(a, 16, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, pixels: Tensor, embedding: Tensor) -> Tensor:
        """(N, pixels, S, S) and an embedding (N, E) → (N, 4, S, S)."""
        x = F.pixel_unshuffle(pixels, 2).contiguous(memory_format=torch.channels_last)
        half = self.half_down(self.stem(x), embedding)
        quarter = self.to_quarter(half)
        for block in self.quarter:
            quarter = block(quarter, embedding)
        h = self.to_eighth(quarter)
        for block in self.eighth:
            h = block(h, embedding)
        h = self.quarter_up(quarter + F.pixel_shuffle(self.back_to_quarter(h), 2), embedding)
        h = self.half_up(half + F.pixel_shuffle(self.back_to_half(h), 2), embedding)
        return F.pixel_shuffle(self.head(h), 2)
