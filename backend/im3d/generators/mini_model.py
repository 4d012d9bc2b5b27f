"""The network of `mini`: a diffusion denoiser of all views of an orbit that reasons in a volume.

The input picture and the noisy views are lifted into one volume, a 3D U-Net completes it, and every view is drawn from
it by volume rendering and finished by a small 2D decoder. Turning an object is thus geometry, not something that has to
be learnt from a few thousand props (compare Viewset Diffusion, Szymanowicz et al. 2023; SyncDreamer, Liu et al. 2023).
Preconditioning is EDM's (Karras et al. 2022, Table 1), so that it shares samplers and restarts with SV3D.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from im3d.generators.mini_resampling import (
    RADIUS,
    View,
    cell_centres,
    gathered,
    input_view_coordinates,
    lifted,
    sample_depths,
    sampled,
)

GROUPS = 16
HEAD_DIM = 64
CELL = 4  # pixels of a view along one cell of the volume
# Inputs of convolutions are filled up with zeros to a multiple of this: a GPU's matrix units read no odd numbers.
ALIGNMENT = 8
# The elevation is predicted as a deviation from the middle of the training range, in units of its spread.
ELEVATION_MEAN_DEG = 22.5
ELEVATION_SPREAD_DEG = 13.0
# An untouched volume should be thin air.
DENSITY_SHIFT = -3.0


@dataclass(frozen=True)
class Denoised:
    """What the network makes of an orbit.

    Attributes:
        views: (B, K, 4, S, S) float32 denoised views.
        elevation_deg: (B,) elevation read from the input view.
        coarse: (B, K, 4, n, n) premultiplied RGBA that the volume alone gives, in [0, 1] when trained.
    """

    views: Tensor
    elevation_deg: Tensor
    coarse: Tensor


class ResidualBlock(nn.Module):
    """Two convolutions of width 3, in 2D or 3D; an embedding scales and shifts between them (adaptive group norm)."""

    def __init__(self, channels_in: int, channels_out: int, embedding: int, dims: int = 2) -> None:
        super().__init__()
        convolution = nn.Conv3d if dims == 3 else nn.Conv2d
        self.norm1 = nn.GroupNorm(GROUPS, channels_in)
        self.conv1 = convolution(channels_in, channels_out, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * channels_out)
        self.norm2 = nn.GroupNorm(GROUPS, channels_out)
        self.conv2 = convolution(channels_out, channels_out, 3, padding=1)
        self.skip = nn.Identity() if channels_in == channels_out else convolution(channels_in, channels_out, 1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (N, C, …), embedding (N, E) → (N, C', …)."""
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulation(embedding).view(len(x), -1, *[1] * (x.ndim - 2)).chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        return self.skip(x) + self.conv2(F.silu(h))


class Attention(nn.Module):
    """Attention of tokens to themselves and to a context, followed by a two-layer perceptron."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(1, channels // HEAD_DIM)
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.query_norm = nn.RMSNorm(channels // self.heads, eps=1e-6)
        self.key_norm = nn.RMSNorm(channels // self.heads, eps=1e-6)
        self.out = nn.Linear(channels, channels)
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, 3 * channels), nn.GELU(), nn.Linear(3 * channels, channels)
        )
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.mlp[3].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x (B, N, C), context (B, M, C) → (B, N, C)."""
        B, N, C = x.shape
        tokens = x if context is None else torch.cat([x, context], dim=1)
        qkv = self.qkv(self.norm(tokens)).view(B, -1, 3, self.heads, C // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()
        q, k = self.query_norm(q[:, :, :N]).to(v.dtype), self.key_norm(k).to(v.dtype)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, C))
        return x + self.mlp(x)


class ImageEncoder(nn.Module):
    """A U-Net on the input view: features of every cell's size, tokens of the whole picture.

    Widths are those at 1/2, 1/4, 1/8 and 1/16 of the resolution.
    """

    def __init__(self, widths: tuple[int, ...], size: int, embedding: int) -> None:
        super().__init__()
        a, b, c, d = widths
        self.stem = nn.Conv2d(16, a, 3, padding=1)
        self.at_half = ResidualBlock(a, a, embedding)
        self.to_quarter = nn.Conv2d(a, b, 3, stride=2, padding=1)
        self.quarter = nn.ModuleList(ResidualBlock(b, b, embedding) for _ in range(2))
        self.to_eighth = nn.Conv2d(b, c, 3, stride=2, padding=1)
        self.eighth = nn.ModuleList(ResidualBlock(c, c, embedding) for _ in range(2))
        self.to_sixteenth = nn.Conv2d(c, d, 3, stride=2, padding=1)
        self.sixteenth = nn.ModuleList(ResidualBlock(d, d, embedding) for _ in range(2))
        self.position = nn.Parameter(torch.randn(1, (size // 16) ** 2, d) * 0.02)
        self.attention = nn.ModuleList(Attention(d) for _ in range(2))
        self.back_to_eighth = nn.Conv2d(d, c, 1)
        self.eighth_up = ResidualBlock(2 * c, c, embedding)
        self.back_to_quarter = nn.Conv2d(c, b, 1)
        self.quarter_up = nn.ModuleList([ResidualBlock(2 * b, b, embedding), ResidualBlock(b, b, embedding)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 4, S, S) → features (B, C, S/4, S/4) and tokens (B, (S/16)², D)."""
        # One embedding for all: the picture carries no noise.
        none = x.new_zeros(len(x), self.at_half.modulation.in_features)
        h = self.at_half(self.stem(F.pixel_unshuffle(x, 2)), none)
        h = self.to_quarter(h)
        for block in self.quarter:
            h = block(h, none)
        quarter = h
        h = self.to_eighth(h)
        for block in self.eighth:
            h = block(h, none)
        eighth = h
        h = self.to_sixteenth(h)
        side = h.shape[-1]
        for i, (block, attention) in enumerate(zip(self.sixteenth, self.attention, strict=True)):
            tokens = block(h, none).flatten(2).transpose(1, 2)
            tokens = attention(tokens + self.position if i == 0 else tokens)
            h = tokens.transpose(1, 2).unflatten(2, (side, side))
        up = self.back_to_eighth(F.interpolate(h, scale_factor=2.0))
        h = self.eighth_up(torch.cat([up, eighth], dim=1), none)
        h = torch.cat([self.back_to_quarter(F.interpolate(h, scale_factor=2.0)), quarter], dim=1)
        for block in self.quarter_up:
            h = block(h, none)
        return h, tokens


class VolumeUNet(nn.Module):
    """A 3D U-Net over three resolutions; at the coarsest, cells attend to each other and to the picture's tokens."""

    def __init__(self, inputs: int, widths: tuple[int, ...], n: int, tokens: int, embedding: int, outputs: int) -> None:
        super().__init__()
        a, b, c = widths
        self.stem = nn.Conv3d(inputs, a, 1)
        self.fine = nn.ModuleList(ResidualBlock(a, a, embedding, 3) for _ in range(2))
        self.to_middle = nn.Conv3d(a, b, 2, stride=2)
        self.middle = nn.ModuleList(ResidualBlock(b, b, embedding, 3) for _ in range(2))
        self.to_coarse = nn.Conv3d(b, c, 2, stride=2)
        self.coarse = nn.ModuleList(ResidualBlock(c, c, embedding, 3) for _ in range(2))
        self.position = nn.Parameter(torch.randn(1, (n // 4) ** 3, c) * 0.02)
        self.attention = nn.ModuleList(Attention(c) for _ in range(2))
        self.context = nn.Linear(tokens, c)
        self.back_to_middle = nn.ConvTranspose3d(c, b, 2, stride=2)
        self.middle_up = nn.ModuleList([ResidualBlock(2 * b, b, embedding, 3), ResidualBlock(b, b, embedding, 3)])
        self.back_to_fine = nn.ConvTranspose3d(b, a, 2, stride=2)
        self.fine_up = nn.ModuleList([ResidualBlock(2 * a, a, embedding, 3), ResidualBlock(a, a, embedding, 3)])
        self.norm = nn.GroupNorm(GROUPS, a)
        self.head = nn.Conv3d(a, outputs, 1)

    def forward(self, x: Tensor, tokens: Tensor, embedding: Tensor) -> Tensor:
        """(B, inputs, n, n, n) with tokens (B, M, D) and an embedding (B, E) → (B, outputs, n, n, n)."""
        h = self.stem(x)
        for block in self.fine:
            h = block(h, embedding)
        fine = h
        h = self.to_middle(h)
        for block in self.middle:
            h = block(h, embedding)
        middle = h
        h = self.to_coarse(h)
        shape, context = h.shape[2:], self.context(tokens)
        for i, (block, attention) in enumerate(zip(self.coarse, self.attention, strict=True)):
            cells = block(h, embedding).flatten(2).transpose(1, 2)
            cells = attention(cells + self.position if i == 0 else cells, context)
            h = cells.transpose(1, 2).unflatten(2, shape)
        h = torch.cat([self.back_to_middle(h), middle], dim=1)
        for block in self.middle_up:
            h = block(h, embedding)
        h = torch.cat([self.back_to_fine(h), fine], dim=1)
        for block in self.fine_up:
            h = block(h, embedding)
        return self.head(F.silu(self.norm(h)))


class RayMarcher(nn.Module):
    """Volume rendering (Max 1995): what the samples along each ray add up to."""

    def forward(self, samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Samples (B, n, n, n, K, 1 + R) by depth, row and column; density first, then colour and other features.

        Returns:
            Features (B·K, R + 2, n, n) with coverage and depth last, filled up with zeros; the coarse views
            (B, K, 4, n, n); and the expected depth (B, K, n, n), beyond the object where nothing is.
        """
        n = samples.shape[1]
        density = F.softplus(samples[..., 0].float() + DENSITY_SHIFT)
        passed = torch.cumsum(density, dim=1)
        weights = (density - passed).exp() - (-passed).exp()
        features = (weights[..., None].to(samples.dtype) * samples[..., 1:]).sum(dim=1)
        coverage = weights.sum(dim=1)
        depths = (sample_depths(n, samples.device) - RADIUS).view(1, n, 1, 1, 1)
        offset = (weights * depths).sum(dim=1) + (1 - coverage) * (1 + 2 / n)
        rays = torch.cat([features, torch.stack([coverage, offset], dim=-1).to(features.dtype)], dim=-1)
        coarse = torch.cat([features[..., :3].float(), coverage[..., None]], dim=-1).permute(0, 3, 4, 1, 2)
        return _filled(rays.permute(0, 3, 4, 1, 2).flatten(0, 1)), coarse, RADIUS + offset.permute(0, 3, 1, 2)


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
        return self.block(self.stem(_filled(torch.cat([blocks, x[:, 4:, ::CELL, ::CELL]], dim=1))), embedding)


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


class VolumeDenoiser(ModelMixin, ConfigMixin):
    """Denoiser of K RGBA views of a uniform ring that share one noise level, given the first view without noise.

    Pictures are premultiplied RGBA scaled to [−1, 1] (`to_model`, `from_model`).

    Args:
        sample_size: Side of the views in pixels; the volume has a quarter as many cells along each side.
        views: Views of the ring, a multiple of 4.
        image_widths: Channels of the input view's encoder at 1/2 … 1/16 of the resolution.
        volume_widths: Channels of the volume at its three resolutions.
        view_width: Channels of the noisy views' encoder.
        lifted_width: Channels of a noisy view that are lifted into the volume.
        ray_width: Channels that are drawn from the volume, after the density; the first three are its colour.
        decoder_widths: Channels of the decoder at 1/4, 1/2 and full resolution.
        embedding: Width of the embedding of noise level, elevation and azimuth.
        sigma_data: Standard deviation of the pictures (EDM).
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 128,
        views: int = 16,
        image_widths: tuple[int, ...] = (64, 128, 192, 320),
        volume_widths: tuple[int, ...] = (64, 128, 256),
        view_width: int = 96,
        lifted_width: int = 16,
        ray_width: int = 31,
        decoder_widths: tuple[int, ...] = (128, 64, 24),
        embedding: int = 256,
        sigma_data: float = 0.5,
    ) -> None:
        super().__init__()
        n, tokens = sample_size // CELL, image_widths[-1]
        self.noise_mlp = nn.Sequential(nn.Linear(256, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.angle_embedding = nn.Linear(2, embedding)
        self.azimuth_embedding = nn.Linear(16, embedding)
        self.subject_embedding = nn.Sequential(nn.LayerNorm(tokens), nn.Linear(tokens, embedding))
        self.elevation_head = nn.Sequential(nn.LayerNorm(tokens), nn.Linear(tokens, 256), nn.SiLU(), nn.Linear(256, 1))
        self.image_encoder = ImageEncoder(image_widths, sample_size, embedding)
        self.view_encoder = ViewEncoder(view_width, embedding)
        self.to_lifted = nn.Conv2d(view_width, lifted_width, 1)
        inputs = aligned(image_widths[1] + 2 * lifted_width + _COORDINATES)
        self.volume = VolumeUNet(inputs, volume_widths, n, tokens, embedding, 1 + ray_width)
        self.march = RayMarcher()
        self.decoder = ViewDecoder(aligned(ray_width + 2) + view_width, 2 * ALIGNMENT, decoder_widths, embedding)

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor, elevation_deg: Tensor | None = None) -> Denoised:
        """Denoises an orbit.

        Args:
            x: (B, K, 4, S, S) noisy views; the first is not looked at.
            sigma: (B,) their noise level.
            condition: (B, 4, S, S) the input view.
            elevation_deg: (B,) degrees; None: as read from the input view.
        """
        B, K = x.shape[:2]
        sd = self.config["sigma_data"]
        s = sigma.float().view(B, 1, 1, 1, 1)
        scale = (s**2 + sd**2).rsqrt()
        features, tokens = self.image_encoder(condition)
        subject = tokens.mean(dim=1)
        guess = ELEVATION_MEAN_DEG + ELEVATION_SPREAD_DEG * self.elevation_head(subject).squeeze(-1).float()
        elevation = torch.deg2rad(guess.detach() if elevation_deg is None else elevation_deg.float())

        # The input view stands in its own place, at the scale of a picture without noise.
        noisy = torch.cat([(condition / sd)[:, None], (x * scale)[:, 1:]], dim=1)
        embedding = self._embedding(sigma, elevation, subject)
        by_view = F.silu(embedding[:, None] + self._ring(K, x.device)).flatten(0, 1)
        marked = torch.cat([noisy, _first_view(noisy)], dim=2).flatten(0, 1)
        seen = self.view_encoder(marked, by_view)
        volume = self._complete(features, tokens, seen, elevation, F.silu(embedding), K)
        rays, coarse, depth = self.march(sampled(volume, elevation, K))
        pixels = _filled(torch.cat([_reprojected(condition, depth, elevation), noisy], dim=2).flatten(0, 1))
        raw = self.decoder(torch.cat([rays, seen], dim=1), pixels.to(rays.dtype), by_view)
        raw = raw.float().view(x.shape)
        return Denoised(x * (sd * scale) ** 2 + raw * (s * sd * scale), guess, coarse)

    def _complete(
        self, features: Tensor, tokens: Tensor, seen: Tensor, elevation: Tensor, embedding: Tensor, K: int
    ) -> Tensor:
        """The volume (B, n, n, n, 1 + R) from the input view's features, its tokens, and those of the noisy views."""
        B, n = len(features), features.shape[-1]
        narrow = self.to_lifted(seen).unflatten(0, (B, K)).permute(0, 3, 4, 1, 2)  # (B, n, n, K, C)
        ring = lifted(narrow.flatten(3), elevation).unflatten(4, (K, -1))
        known = lifted(features.permute(0, 2, 3, 1), elevation)
        parts = [known, gathered(torch.cat([ring, ring.square()], dim=-1)), _coordinates(n, elevation).to(known.dtype)]
        x = torch.cat(parts, dim=-1).permute(0, 4, 1, 2, 3)
        return self.volume(_filled(x), tokens, embedding).permute(0, 2, 3, 4, 1)

    def _embedding(self, sigma: Tensor, elevation: Tensor, subject: Tensor) -> Tensor:
        """(B, E): the noise level, the elevation, and the subject as a whole."""
        dtype = self.angle_embedding.weight.dtype
        noise = self.noise_mlp(get_timestep_embedding(sigma.float().log() * 250, 256).to(dtype))
        angle = self.angle_embedding(torch.stack([elevation.cos(), elevation.sin()], dim=1).to(dtype))
        return noise + angle + self.subject_embedding(subject)

    def _ring(self, views: int, device: torch.device) -> Tensor:
        """(K, E): where each view lies on the ring."""
        azimuths = torch.arange(views, device=device) * (2 * math.pi / views)
        harmonics = azimuths[:, None] * torch.arange(1, 9, device=device)
        ring = torch.cat([harmonics.cos(), harmonics.sin()], dim=1)
        return self.azimuth_embedding(ring.to(self.azimuth_embedding.weight.dtype))


_COORDINATES = 25


def _coordinates(n: int, elevation: Tensor) -> Tensor:
    """(B, n, n, n, 25): each cell's place in the world and from the input camera, and harmonics of it."""
    c = cell_centres(n, elevation.device)
    z, d, x = torch.meshgrid(c, c, c, indexing="ij")
    view = View(elevation.view(-1, 1, 1, 1))
    B = len(elevation)
    world = torch.stack([x, d, z], dim=-1).expand(B, -1, -1, -1, -1)
    camera = torch.stack([view.depth(d, z) - RADIUS, view.down(d, z)], dim=-1)
    p = torch.cat([world, camera], dim=-1)
    return torch.cat(
        [p, (math.pi * p).sin(), (math.pi * p).cos(), (2 * math.pi * p).sin(), (2 * math.pi * p).cos()], -1
    )


def aligned(channels: int) -> int:
    """The next multiple of `ALIGNMENT`."""
    return -(-channels // ALIGNMENT) * ALIGNMENT


def _filled(x: Tensor) -> Tensor:
    """(N, C, …) with zeros up to an aligned number of channels."""
    missing = aligned(x.shape[1]) - x.shape[1]
    return F.pad(x, (0, 0) * (x.ndim - 2) + (0, missing)) if missing else x


def _first_view(views: Tensor) -> Tensor:
    """(B, K, 1, S, S): 1 in the first view, 0 in the others."""
    marks = torch.zeros_like(views[:, :, :1])
    marks[:, 0] = 1
    return marks


def _reprojected(condition: Tensor, depth: Tensor, elevation: Tensor) -> Tensor:
    """The input view's pixels where each view's surface lies, and how far behind the input view's surface that is.

    Args:
        condition: (B, 4, S, S).
        depth: (B, K, n, n).

    Returns:
        (B, K, 5, S, S).
    """
    B, K, _n, _ = depth.shape
    S = condition.shape[-1]
    fine = F.interpolate(depth, size=(S, S), mode="bilinear")
    grid, depth0 = input_view_coordinates(fine, elevation)
    known = torch.cat([condition.float(), fine[:, :1]], dim=1)
    found = F.grid_sample(known, grid.reshape(B, K * S, S, 2), padding_mode="border", align_corners=False)
    found = found.view(B, 5, K, S, S).transpose(1, 2)
    behind = (depth0 - found[:, :, 4]).clamp(-1, 1)
    return torch.cat([found[:, :, :4], behind[:, :, None]], dim=2)


def channels_last(model: nn.Module) -> nn.Module:
    """The model with the weights of its convolutions laid out as the fast kernels read them."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)
        elif isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            module.to(memory_format=torch.channels_last_3d)
    return model


def to_model(rgba: Tensor) -> Tensor:
    """Premultiplied RGBA in [0, 1] to the network's range."""
    return rgba * 2 - 1


def from_model(x: Tensor) -> Tensor:
    """The network's range to premultiplied RGBA in [0, 1], colours no brighter than their alpha."""
    rgba = (x.clamp(-1, 1) + 1) / 2
    alpha = rgba[..., 3:, :, :]
    return torch.cat([torch.minimum(rgba[..., :3, :, :], alpha), alpha], dim=-3)
