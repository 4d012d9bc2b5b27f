"""How mini imagines an object from one picture: a network of two dimensions that fills a volume.

The volume's cells lie along the rays of the input view's camera (`mini_frustum`), so that its depths are channels of a
picture ("voxel tubes", Richter & Roth 2018): as cheap as a network for segmentation, and all that is visible in the
picture stays in its place. It is compared directly with the props' occupancy while it trains, which says in every cell
what rendered views say only in sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from im3d.generators.mini.layers import Attention, ResidualBlock
from im3d.models.efficientnet import LITE0_MEAN, LITE0_STAGES, LITE0_STD, EfficientNetLite0, lite0_weights

# The elevation is predicted as a deviation from the middle of the training range, in units of its spread.
ELEVATION_MEAN_DEG = 22.5
ELEVATION_SPREAD_DEG = 13.0
# An untrained volume is thin air.
EMPTY_LOGIT = -3.0
# Outputs of EfficientNet-Lite0 that are used, at 1/8, 1/16 and 1/32 of the picture, and their channels.
_TAPS = ((3, 40), (5, 112), (7, 320))


@dataclass(frozen=True)
class Shape:
    """An object imagined from its input view.

    Attributes:
        logits: (B, D, S, S) float32 log odds that a cell is occupied, by depth, row and column of the input view.
        color: (B, 3, D/2, S, S) float32 colour of pairs of depths, in [0, 1] when trained.
        elevation_deg: (B,) float32 elevation of the input view.
    """

    logits: Tensor
    color: Tensor
    elevation_deg: Tensor


class Recognition(nn.Module):
    """What a network trained on a million photographs (EfficientNet-Lite0 on ImageNet, frozen) sees in a picture.

    Some thousand props cannot teach what a horse is. The picture is looked at on white.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNetLite0(lite0_weights(), LITE0_STAGES).requires_grad_(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> list[Tensor]:
        """Premultiplied (B, 4, I, I) in [−1, 1] → features at I/8, I/16 and I/32."""
        rgb = (x[:, :3] - x[:, 3:]) / 2 + 1
        taps = self.network(((rgb - LITE0_MEAN) / LITE0_STD).contiguous(memory_format=torch.channels_last))
        return [taps[stage] for stage, _ in _TAPS]


class ShapeNetwork(nn.Module):
    """A U-Net from a picture to a volume, with attention at 1/16 of the picture's resolution.

    Args:
        image_size: Side I of the picture in pixels; the volume has I/2 rows and columns.
        depths: D, even.
        widths: Channels at 1/2, 1/4, 1/8 and 1/16 of the resolution, on the way down.
        widths_up: Channels at 1/8, 1/4 and 1/2 on the way up.
        layers: Of attention.
        dropout: In the attention.
    """

    def __init__(
        self,
        image_size: int,
        depths: int,
        widths: tuple[int, ...],
        widths_up: tuple[int, ...],
        layers: int,
        dropout: float,
    ) -> None:
        super().__init__()
        a, b, c, d = widths
        e, f, g = widths_up
        self.depths = depths
        self.recognition = Recognition()
        self.recognised = nn.ModuleList(nn.Conv2d(n, to, 1) for (_, n), to in zip(_TAPS, (c, d, d), strict=True))
        self.stem = nn.Conv2d(16, a, 3, padding=1)
        self.to_quarter = nn.Conv2d(a, b, 3, stride=2, padding=1)
        self.quarter = ResidualBlock(b)
        self.to_eighth = nn.Conv2d(b, c, 3, stride=2, padding=1)
        self.eighth = nn.ModuleList(ResidualBlock(c) for _ in range(2))
        self.to_sixteenth = nn.Conv2d(c, d, 3, stride=2, padding=1)
        self.position = nn.Parameter(torch.randn(1, (image_size // 16) ** 2, d) * 0.02)
        self.attention = nn.ModuleList(Attention(d, dropout) for _ in range(layers))
        self.elevation = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 256), nn.SiLU(), nn.Linear(256, 1))
        self.back_to_eighth = nn.Conv2d(d, 4 * e, 1)
        self.at_eighth = nn.Conv2d(e + c, e, 1)
        self.eighth_up = nn.ModuleList(ResidualBlock(e) for _ in range(2))
        self.back_to_quarter = nn.Conv2d(e, 4 * f, 1)
        self.at_quarter = nn.Conv2d(f + b, f, 1)
        self.quarter_up = nn.ModuleList(ResidualBlock(f) for _ in range(2))
        self.back_to_half = nn.Conv2d(f, 4 * g, 1)
        self.at_half = nn.Conv2d(g + a, g, 3, padding=1)
        self.half_up = nn.Conv2d(g, g, 3, padding=1)
        self.head = nn.Conv2d(g, depths + 3 * (depths // 2), 1)
        with torch.no_grad():
            self.head.weight.mul_(0.3)
            self.head.bias.fill_(0.5)  # type: ignore[union-attr]
            self.head.bias[:depths] = EMPTY_LOGIT  # type: ignore[index]

    def forward(self, x: Tensor) -> Shape:
        """Premultiplied RGBA (B, 4, I, I) in [−1, 1] → `Shape`."""
        x = x.contiguous(memory_format=torch.channels_last)
        near, middle, far = (to(t) for to, t in zip(self.recognised, self.recognition(x), strict=True))
        half = self.stem(F.pixel_unshuffle(x, 2))
        quarter = self.quarter(self.to_quarter(F.silu(half)))
        eighth = self.to_eighth(quarter) + near
        for block in self.eighth:
            eighth = block(eighth)
        h = self.to_sixteenth(eighth) + middle + F.interpolate(far, scale_factor=2.0)
        n = h.shape[-1]
        tokens = h.flatten(2).transpose(1, 2) + self.position
        for layer in self.attention:
            tokens = layer(tokens)
        elevation = ELEVATION_MEAN_DEG + ELEVATION_SPREAD_DEG * self.elevation(tokens.mean(dim=1)).squeeze(-1).float()
        h = tokens.transpose(1, 2).unflatten(2, (n, n)).contiguous(memory_format=torch.channels_last)
        h = self.at_eighth(torch.cat([F.pixel_shuffle(self.back_to_eighth(h), 2), eighth], dim=1))
        for block in self.eighth_up:
            h = block(h)
        h = self.at_quarter(torch.cat([F.pixel_shuffle(self.back_to_quarter(h), 2), quarter], dim=1))
        for block in self.quarter_up:
            h = block(h)
        h = F.silu(self.at_half(torch.cat([F.pixel_shuffle(self.back_to_half(h), 2), half], dim=1)))
        out = self.head(h + F.silu(self.half_up(h))).float()
        return Shape(out[:, : self.depths], out[:, self.depths :].unflatten(1, (3, -1)), elevation)
