"""The network of `mini`: a pixel-space diffusion U-Net that denoises all views of an orbit together.

Convolutions work inside a view; attention joins the views. At the finest level it runs along image rows (cameras of
one ring see a point in nearly the same row), at the coarser ones over all tokens of all views. Rotary phases of
azimuth, row and column tell tokens apart, so the weights fit any image size and any set of azimuths.

Preconditioning and loss are those of EDM (Karras et al. 2022, Table 1).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

GROUPS = 32
# Harmonics of the azimuth in the attention's rotary phases; 8 is the highest that 16 views can tell apart.
AZIMUTH_HARMONICS = (1, 1, 2, 2, 3, 3, 4, 4, 5, 6, 7, 8)
# The elevation is predicted as a deviation from the middle of the training range, in units of its spread.
ELEVATION_MEAN_DEG = 22.5
ELEVATION_SPREAD_DEG = 13.0


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions; the embedding scales and shifts between them (adaptive group norm)."""

    def __init__(self, channels_in: int, channels_out: int, embedding: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * channels_out)
        self.norm2 = nn.GroupNorm(GROUPS, channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.skip = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (N, C, H, W), embedding (N, E) → (N, C', H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        return self.skip(x) + self.conv2(F.silu(h))


class ViewAttention(nn.Module):
    """Self-attention across the views, followed by a two-layer perceptron."""

    def __init__(self, channels: int, head_dim: int, by_rows: bool) -> None:
        super().__init__()
        self.heads, self.head_dim, self.by_rows = channels // head_dim, head_dim, by_rows
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.query_norm = nn.RMSNorm(head_dim, eps=1e-6)
        self.key_norm = nn.RMSNorm(head_dim, eps=1e-6)
        self.out = nn.Linear(channels, channels)
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, 3 * channels), nn.GELU(), nn.Linear(3 * channels, channels)
        )
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.mlp[3].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x (B·K, C, H, W) with phases (K, H, W, head_dim/2) → the same shape."""
        N, C, H, W = x.shape
        K = cos.shape[0]
        tokens = x.permute(0, 2, 3, 1)
        qkv = self.qkv(self.norm(x).permute(0, 2, 3, 1)).view(N // K, K, H, W, 3, self.heads, self.head_dim)
        q = _rotated(self.query_norm(qkv[..., 0, :, :]), cos, sin)
        k = _rotated(self.key_norm(qkv[..., 1, :, :]), cos, sin)
        v = qkv[..., 2, :, :]
        q, k, v = (self._sequences(t.to(v.dtype)) for t in (q, k, v))
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        if self.by_rows:
            h = h.reshape(N // K, H, K, W, C).transpose(1, 2)
        tokens = tokens + self.out(h.reshape(N, H, W, C))
        tokens = tokens + self.mlp(tokens)
        return tokens.permute(0, 3, 1, 2)

    def _sequences(self, t: Tensor) -> Tensor:
        """(B, K, H, W, heads, D) → (sequences, heads, tokens, D)."""
        B, K, H, W, heads, D = t.shape
        if self.by_rows:
            return t.permute(0, 2, 4, 1, 3, 5).reshape(B * H, heads, K * W, D)
        return t.permute(0, 4, 1, 2, 3, 5).reshape(B, heads, K * H * W, D)


def rotary_phases(azimuths: Tensor, height: int, width: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary phases, (K, height, width, head_dim/2) each.

    Args:
        azimuths: (K,) radians.
        height: Rows of the token grid.
        width: Its columns.
        head_dim: Channels of one attention head; at least 32.
    """
    device = azimuths.device
    pairs = head_dim // 2
    harmonics = torch.tensor(AZIMUTH_HARMONICS[:: 1 if pairs >= 32 else 2], device=device, dtype=torch.float32)
    spatial = (pairs - len(harmonics)) // 2
    frequencies = math.pi * torch.logspace(-1, 3, spatial, base=2, device=device)
    rows = (torch.arange(height, device=device) + 0.5) / height * 2 - 1
    columns = (torch.arange(width, device=device) + 0.5) / width * 2 - 1
    parts = [
        (azimuths[:, None] * harmonics)[:, None, None].expand(-1, height, width, -1),
        (rows[:, None] * frequencies)[None, :, None].expand(len(azimuths), -1, width, -1),
        (columns[:, None] * frequencies)[None, None].expand(len(azimuths), height, -1, -1),
    ]
    phase = torch.cat(parts, dim=-1)
    return phase.cos(), phase.sin()


def _rotated(t: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Channel pairs of (B, K, H, W, heads, D) turned by the phases (K, H, W, D/2)."""
    a, b = t.float().chunk(2, dim=-1)
    cos, sin = cos[:, :, :, None], sin[:, :, :, None]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class MultiviewUNet(ModelMixin, ConfigMixin):
    """Denoiser of K RGBA views that share one noise level, given the input view.

    Pictures are premultiplied RGBA scaled to [−1, 1] (`to_model`, `from_model`).

    Args:
        sample_size: Side of the views in pixels that the weights were trained for.
        views: Views of the orbit; the first is the input view.
        patch: Side of the pixel blocks that the first convolution sees as channels.
        channels: Width of each level; each is half the resolution of the one before.
        blocks: Residual blocks on either side of each level; of the last level, in all.
        embedding: Width of the embedding of noise level and azimuth.
        head_dim: Channels of one attention head.
        sigma_data: Standard deviation of the pictures (EDM).
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 128,
        views: int = 16,
        patch: int = 4,
        channels: tuple[int, ...] = (128, 256, 384),
        blocks: tuple[int, ...] = (2, 2, 4),
        embedding: int = 256,
        head_dim: int = 64,
        sigma_data: float = 0.5,
    ) -> None:
        super().__init__()
        pixels = patch * patch
        self.noise_mlp = nn.Sequential(nn.Linear(256, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.azimuth_embedding = nn.Linear(16, embedding)
        self.stem = nn.Conv2d(8 * pixels, channels[0], 3, padding=1)
        self.down_blocks, self.down_attention, self.downsample = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.up_blocks, self.up_attention, self.upsample = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(channels[:-1]):
            below = channels[level + 1]
            self.down_blocks.append(nn.ModuleList(ResidualBlock(width, width, embedding) for _ in range(blocks[level])))
            self.down_attention.append(ViewAttention(width, head_dim, by_rows=level == 0))
            self.downsample.append(nn.Conv2d(width, below, 3, stride=2, padding=1))
            self.upsample.append(nn.Conv2d(below, width, 3, padding=1))
            self.up_blocks.append(
                nn.ModuleList(
                    ResidualBlock(2 * width if i == 0 else width, width, embedding) for i in range(blocks[level])
                )
            )
            self.up_attention.append(ViewAttention(width, head_dim, by_rows=level == 0))
        inner = channels[-1]
        self.mid_blocks = nn.ModuleList(ResidualBlock(inner, inner, embedding) for _ in range(blocks[-1]))
        self.mid_attention = nn.ModuleList(ViewAttention(inner, head_dim, by_rows=False) for _ in range(blocks[-1]))
        self.head_norm = nn.GroupNorm(GROUPS, 2 * channels[0])
        self.head = nn.Conv2d(2 * channels[0], 4 * pixels, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        # Fine detail of the noisy views and of the input view passes the narrow U-Net by, weighed by level and azimuth.
        self.shortcut_gate = nn.Linear(embedding, 8 * pixels)
        self.shortcut = nn.Conv2d(8 * pixels, 4 * pixels, 1, bias=False)
        nn.init.zeros_(self.shortcut.weight)
        self.elevation_head = nn.Sequential(
            nn.LayerNorm(inner), nn.Linear(inner, inner // 2), nn.SiLU(), nn.Linear(inner // 2, 1)
        )

    def forward(
        self, x: Tensor, sigma: Tensor, condition: Tensor, keep: Tensor | None = None, azimuths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Denoises an orbit.

        Args:
            x: (B, K, 4, S, S) noisy views.
            sigma: (B,) their noise level.
            condition: (B, 4, S, S) the input view.
            keep: (B,) 1 to use the condition, 0 to hide it (classifier-free guidance); None uses all.
            azimuths: (K,) radians, the first 0; None: uniform.

        Returns:
            The denoised views (B, K, 4, S, S), float32, and the elevation (B,) in degrees.
        """
        B, K = x.shape[:2]
        if azimuths is None:
            azimuths = torch.arange(K, device=x.device) * (2 * math.pi / K)
        sd = self.config["sigma_data"]
        s = sigma.float().view(B, 1, 1, 1, 1)
        variance = s**2 + sd**2
        raw, elevation = self._network(x * variance.rsqrt(), sigma, condition, keep, azimuths.float())
        denoised = x * (sd**2 / variance) + raw.float() * (s * sd * variance.rsqrt())
        return denoised, ELEVATION_MEAN_DEG + ELEVATION_SPREAD_DEG * elevation.float()

    def _network(
        self, x: Tensor, sigma: Tensor, condition: Tensor, keep: Tensor | None, azimuths: Tensor
    ) -> tuple[Tensor, Tensor]:
        B, K, _, S, _ = x.shape
        patch, head_dim = self.config["patch"], self.config["head_dim"]
        keep = torch.ones(B, device=x.device) if keep is None else keep
        condition = condition * keep.view(B, 1, 1, 1)
        h = torch.cat([x, condition[:, None].expand(-1, K, -1, -1, -1)], dim=2).flatten(0, 1)
        h = F.pixel_unshuffle(h, patch).contiguous(memory_format=torch.channels_last)
        embedding = self._embedding(sigma, azimuths, S)
        sizes = [S // patch // 2**level for level in range(len(self.config["channels"]))]
        phases = [rotary_phases(azimuths, n, n, head_dim) for n in sizes]

        shortcut = self.shortcut(h * (1 + self.shortcut_gate(embedding)[:, :, None, None]))
        h = stem = self.stem(h)
        skips = []
        for level in range(len(sizes) - 1):
            for block in self.down_blocks[level]:  # type: ignore[attr-defined]
                h = block(h, embedding)
            h = self.down_attention[level](h, *phases[level])
            skips.append(h)
            h = self.downsample[level](h)
        for block, attention in zip(self.mid_blocks, self.mid_attention, strict=True):
            h = attention(block(h, embedding), *phases[-1])
        elevation = self.elevation_head(h.mean(dim=(2, 3)).view(B, K, -1).mean(dim=1)).squeeze(-1)
        for level in reversed(range(len(sizes) - 1)):
            h = self.upsample[level](F.interpolate(h, scale_factor=2.0))
            h = torch.cat([h, skips[level]], dim=1)
            for block in self.up_blocks[level]:  # type: ignore[attr-defined]
                h = block(h, embedding)
            h = self.up_attention[level](h, *phases[level])
        h = self.head(F.silu(self.head_norm(torch.cat([h, stem], dim=1))))
        return F.pixel_shuffle(h + shortcut, patch).view(B, K, 4, S, S), elevation

    def _embedding(self, sigma: Tensor, azimuths: Tensor, size: int) -> Tensor:
        """(B·K, E): the noise level, and where the view lies on the ring.

        The noise is measured as it would be at 64 pixels: averaging blocks of pixels halves the noise with each halving
        of the side, so a level means the same visible content at any size.
        """
        level = (sigma.float() * (64 / size)).log() * 250
        noise = self.noise_mlp(get_timestep_embedding(level, 256).to(self.azimuth_embedding.weight.dtype))
        harmonics = azimuths[:, None] * torch.arange(1, 9, device=azimuths.device)
        ring = torch.cat([harmonics.cos(), harmonics.sin()], dim=1).to(self.azimuth_embedding.weight.dtype)
        return F.silu(noise[:, None] + self.azimuth_embedding(ring)).flatten(0, 1)


def to_model(rgba: Tensor) -> Tensor:
    """Premultiplied RGBA in [0, 1] to the network's range."""
    return rgba * 2 - 1


def from_model(x: Tensor) -> Tensor:
    """The network's range to premultiplied RGBA in [0, 1], colours no brighter than their alpha."""
    rgba = (x.clamp(-1, 1) + 1) / 2
    alpha = rgba[..., 3:, :, :]
    return torch.cat([torch.minimum(rgba[..., :3, :, :], alpha), alpha], dim=-3)
