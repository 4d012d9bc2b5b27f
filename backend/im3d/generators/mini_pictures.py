"""How mini reads pictures and draws them: the 2D networks on both sides of its volume."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from im3d.efficientnet import LITE0_MEAN, LITE0_STAGES, LITE0_STD, EfficientNetLite0, lite0_weights
from im3d.generators.mini_layers import Attention, ResidualBlock, aligned, attended, filled

CELL = 4  # pixels of a view along one cell of the volume it is drawn from
# Outputs of EfficientNet-Lite0 that are used, at 1/16 and 1/32 of its resolution, and their channels.
_TAPS = ((5, 112), (7, 320))


class Recognition(nn.Module):
    """What a network trained on a million photographs (EfficientNet-Lite0 on ImageNet, frozen) sees in the input view.

    Some thousand props cannot teach what a horse is. The picture is looked at on white, at twice its size.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNetLite0(lite0_weights(), LITE0_STAGES).requires_grad_(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Premultiplied (B, 4, I, I) in [−1, 1] → (B, 112, I/8, I/8) and (B, 320, I/16, I/16)."""
        rgba = (x.float() + 1) / 2
        rgb = rgba[:, :3] + 1 - rgba[:, 3:]
        large = F.interpolate(rgb, scale_factor=2.0, mode="bilinear", align_corners=False)
        taps = self.network(((large - LITE0_MEAN) / LITE0_STD).contiguous(memory_format=torch.channels_last))
        return taps[_TAPS[0][0]], taps[_TAPS[1][0]]


class InputEncoder(nn.Module):
    """A U-Net on the input view, which carries no noise.

    Args:
        widths: Channels at 1/2, 1/4, 1/8 and 1/16 of the resolution.
        size: Side I of the picture.
    """

    def __init__(self, widths: tuple[int, ...], size: int) -> None:
        super().__init__()
        a, b, c, d = widths
        self.recognition = Recognition()
        self.recognised_eighth = nn.Conv2d(_TAPS[0][1], c, 1)
        self.recognised_sixteenth = nn.Conv2d(_TAPS[1][1], d, 1)
        self.stem = nn.Conv2d(16, a, 3, padding=1)
        self.at_half = ResidualBlock(a, a, 0)
        self.to_quarter = nn.Conv2d(a, b, 3, stride=2, padding=1)
        self.quarter = nn.ModuleList(ResidualBlock(b, b, 0) for _ in range(2))
        self.to_eighth = nn.Conv2d(b, c, 3, stride=2, padding=1)
        self.eighth = nn.ModuleList(ResidualBlock(c, c, 0) for _ in range(2))
        self.to_sixteenth = nn.Conv2d(c, d, 3, stride=2, padding=1)
        self.sixteenth = nn.ModuleList(ResidualBlock(d, d, 0) for _ in range(2))
        self.position = nn.Parameter(torch.randn(1, (size // 16) ** 2, d) * 0.02)
        self.attention = nn.ModuleList(Attention(d) for _ in range(2))
        self.back_to_eighth = nn.Conv2d(d, c, 1)
        self.eighth_up = ResidualBlock(2 * c, c, 0)
        self.back_to_quarter = nn.Conv2d(c, b, 1)
        self.quarter_up = ResidualBlock(2 * b, b, 0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 4, I, I) in [−1, 1] → features (B, c, I/8, I/8), (B, b, I/4, I/4) and tokens (B, (I/16)², d)."""
        near, far = self.recognition(x)
        h = self.to_quarter(self.at_half(self.stem(F.pixel_unshuffle(x, 2))))
        for block in self.quarter:
            h = block(h)
        quarter = h
        h = self.to_eighth(h) + self.recognised_eighth(near)
        for block in self.eighth:
            h = block(h)
        eighth = h
        h = self.to_sixteenth(h) + self.recognised_sixteenth(far)
        for i, (block, attention) in enumerate(zip(self.sixteenth, self.attention, strict=True)):
            h = attended(attention, block(h), self.position if i == 0 else None)
        tokens = h.flatten(2).transpose(1, 2)
        eighth = self.eighth_up(torch.cat([self.back_to_eighth(F.interpolate(h, scale_factor=2.0)), eighth], dim=1))
        up = self.back_to_quarter(F.interpolate(eighth, scale_factor=2.0))
        return eighth, self.quarter_up(torch.cat([up, quarter], dim=1)), tokens


class ViewEncoder(nn.Module):
    """Features of the noisy views, one a cell."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        # The last channel that is not zero marks the input view, which carries no noise.
        self.stem = nn.Conv2d(aligned(4 * CELL**2 + 1), width, 3, padding=1)
        self.block = ResidualBlock(width, width, embedding)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Scaled views (N, 5, S, S) and embeddings (N, E) → (N, C, S/4, S/4)."""
        blocks = F.pixel_unshuffle(x[:, :4], CELL)
        return self.block(self.stem(filled(torch.cat([blocks, x[:, 4:, ::CELL, ::CELL]], dim=1))), embedding)


class ViewDecoder(nn.Module):
    """From what the rays saw to a view at full resolution, by way of 1/2.

    Args:
        inputs: Channels at 1/4 of the resolution.
        pixels: Channels at full resolution: what is known of each pixel without the network.
        widths: At 1/4, 1/2 and full resolution.
        embedding: Channels of the embedding.
    """

    def __init__(self, inputs: int, pixels: int, widths: tuple[int, ...], embedding: int) -> None:
        super().__init__()
        a, b, c = widths
        self.stem = nn.Conv2d(inputs, a, 3, padding=1)
        self.quarter = nn.ModuleList(ResidualBlock(a, a, embedding) for _ in range(2))
        self.to_half = nn.Conv2d(a, 4 * b, 1)
        self.into_half = nn.Conv2d(b + 4 * pixels, b, 1)
        self.at_half = ResidualBlock(b, b, embedding)
        self.to_full = nn.Conv2d(b, 4 * c, 1)
        self.full = nn.Conv2d(c + pixels, c, 3, padding=1)
        self.head = nn.Conv2d(c, 4, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, pixels: Tensor, embedding: Tensor) -> Tensor:
        """x (N, inputs, S/4, S/4), pixels (N, pixels, S, S), embedding (N, E) → (N, 4, S, S)."""
        h = self.stem(x)
        for block in self.quarter:
            h = block(h, embedding)
        h = torch.cat([F.pixel_shuffle(self.to_half(h), 2), F.pixel_unshuffle(pixels, 2)], dim=1)
        h = self.at_half(self.into_half(h), embedding)
        h = torch.cat([F.pixel_shuffle(self.to_full(h), 2), pixels], dim=1)
        return self.head(F.silu(self.full(h)))
