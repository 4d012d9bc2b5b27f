"""The network of `mini`: a diffusion denoiser of all views of an orbit that reasons in a volume.

The input picture and the noisy views are lifted into one volume, a 3D U-Net completes it, and every view is drawn from
it by volume rendering and finished by a small 2D decoder. Turning an object is thus geometry, not something that has to
be learnt from a few thousand props (compare Viewset Diffusion, Szymanowicz et al. 2023; SyncDreamer, Liu et al. 2023).
The volume is coarse; for large views a refiner doubles its resolution, so that most of the training can be done on
small ones. Preconditioning is EDM's (Karras et al. 2022, Table 1), so that it shares samplers and restarts with SV3D.
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

from im3d.generators.mini_layers import ALIGNMENT, aligned, filled
from im3d.generators.mini_pictures import CELL, InputEncoder, ViewDecoder, ViewEncoder
from im3d.generators.mini_resampling import gathered, input_view_coordinates, lifted, sampled
from im3d.generators.mini_volume import COORDINATES, RayMarcher, VolumeHead, VolumeRefiner, VolumeUNet, coordinates

# The elevation is predicted as a deviation from the middle of the training range, in units of its spread.
ELEVATION_MEAN_DEG = 22.5
ELEVATION_SPREAD_DEG = 13.0
# Channels of the picture's finer features that the refiner is given.
DETAIL = 32


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


class VolumeDenoiser(ModelMixin, ConfigMixin):
    """Denoiser of K RGBA views of a uniform ring that share one noise level, given the first view without noise.

    Pictures are premultiplied RGBA scaled to [−1, 1] (`to_model`, `from_model`).

    Args:
        sample_size: Side S of the views in pixels: 4 or 8 times `cells`; with 8 the volume is refined before drawing.
        views: Views of the ring, a multiple of 4.
        cells: Cells along each side of the volume. The input view has 8 times as many pixels.
        image_widths: Channels of the input view's encoder at 1/2 … 1/16 of the resolution.
        volume_widths: Channels of the volume at its two resolutions.
        fine_width: Channels of the refined volume.
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
        cells: int = 16,
        image_widths: tuple[int, ...] = (64, 96, 192, 256),
        volume_widths: tuple[int, ...] = (96, 256),
        fine_width: int = 48,
        view_width: int = 64,
        lifted_width: int = 16,
        ray_width: int = 31,
        decoder_widths: tuple[int, ...] = (96, 48, 24),
        embedding: int = 256,
        sigma_data: float = 0.5,
    ) -> None:
        super().__init__()
        if sample_size not in (CELL * cells, 2 * CELL * cells):
            raise ValueError(f"a volume of {cells} cells draws views of {CELL * cells} or {2 * CELL * cells} pixels")
        self.image_size = 2 * CELL * cells
        self.refined = sample_size == 2 * CELL * cells
        tokens = image_widths[-1]
        self.noise_mlp = nn.Sequential(nn.Linear(256, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.angle_embedding = nn.Linear(2, embedding)
        self.azimuth_embedding = nn.Linear(16, embedding)
        self.subject_embedding = nn.Sequential(nn.LayerNorm(tokens), nn.Linear(tokens, embedding))
        self.elevation_head = nn.Sequential(nn.LayerNorm(tokens), nn.Linear(tokens, 256), nn.SiLU(), nn.Linear(256, 1))
        self.input_encoder = InputEncoder(image_widths, self.image_size)
        self.view_encoder = ViewEncoder(view_width, embedding)
        self.to_lifted = nn.Conv2d(view_width, lifted_width, 1)
        self.to_known = nn.Conv2d(image_widths[2], volume_widths[0], 1)
        inputs = aligned(volume_widths[0] + 2 * lifted_width + COORDINATES)
        self.volume = VolumeUNet(inputs, volume_widths, cells, tokens, embedding)
        self.head = VolumeHead(volume_widths[0], 1 + ray_width)
        if self.refined:
            self.to_detail = nn.Conv2d(image_widths[1], DETAIL, 1)
            self.refiner = VolumeRefiner(volume_widths[0], DETAIL, fine_width, embedding, 1 + ray_width)
        self.march = RayMarcher()
        self.decoder = ViewDecoder(aligned(ray_width + 2) + view_width, 2 * ALIGNMENT, decoder_widths, embedding)

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor, elevation_deg: Tensor | None = None) -> Denoised:
        """Denoises an orbit.

        Args:
            x: (B, K, 4, S, S) noisy views; the first is not looked at.
            sigma: (B,) their noise level.
            condition: (B, 4, I, I) the input view, `image_size` pixels a side.
            elevation_deg: (B,) degrees; None: as read from the input view.
        """
        B, K, S = *x.shape[:2], x.shape[-1]
        sd = self.config["sigma_data"]
        s = sigma.float().view(B, 1, 1, 1, 1)
        scale = (s**2 + sd**2).rsqrt()
        features, details, tokens = self.input_encoder(condition)
        subject = tokens.mean(dim=1)
        guess = ELEVATION_MEAN_DEG + ELEVATION_SPREAD_DEG * self.elevation_head(subject).squeeze(-1).float()
        elevation = torch.deg2rad(guess.detach() if elevation_deg is None else elevation_deg.float())

        # The input view stands in its own place, at the scale of a picture without noise.
        given = shrunk(condition, S)
        noisy = torch.cat([(given / sd)[:, None], (x * scale)[:, 1:]], dim=1)
        embedding = self._embedding(sigma, elevation, subject)
        by_view = F.silu(embedding[:, None] + self._ring(K, x.device)).flatten(0, 1)
        marked = torch.cat([noisy, _first_view(noisy)], dim=2).flatten(0, 1)
        seen = self.view_encoder(marked, by_view)
        samples = self._complete(features, details, tokens, seen, elevation, F.silu(embedding), K)
        rays, coarse, depth = self.march(sampled(samples, elevation, K))
        pixels = filled(torch.cat([_reprojected(given, depth, elevation), noisy], dim=2).flatten(0, 1))
        raw = self.decoder(torch.cat([rays, seen], dim=1), pixels.to(rays.dtype), by_view)
        raw = raw.float().view(x.shape)
        return Denoised(x * (sd * scale) ** 2 + raw * (s * sd * scale), guess, coarse)

    def _complete(
        self,
        features: Tensor,
        details: Tensor,
        tokens: Tensor,
        seen: Tensor,
        elevation: Tensor,
        embedding: Tensor,
        K: int,
    ) -> Tensor:
        """Density and ray features (B, n, n, n, 1 + R) from what the input view and the noisy views show."""
        B, n = len(features), features.shape[-1]
        narrow = self.to_lifted(F.avg_pool2d(seen, 2) if self.refined else seen)
        narrow = narrow.unflatten(0, (B, K)).permute(0, 3, 4, 1, 2)  # (B, n, n, K, C)
        ring = lifted(narrow.flatten(3), elevation).unflatten(4, (K, -1))
        known = lifted(self.to_known(features).permute(0, 2, 3, 1), elevation)
        parts = [known, gathered(torch.cat([ring, ring.square()], dim=-1)), coordinates(n, elevation).to(known.dtype)]
        x = filled(torch.cat(parts, dim=-1).permute(0, 4, 1, 2, 3))
        volume = self.volume(x, tokens, embedding)
        samples = self.head(volume)
        if self.refined:
            detail = lifted(self.to_detail(details).permute(0, 2, 3, 1), elevation).permute(0, 4, 1, 2, 3)
            samples = self.refiner(volume, samples, detail, embedding)
        return samples.permute(0, 2, 3, 4, 1)

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


def enlarged(model: VolumeDenoiser) -> VolumeDenoiser:
    """The same network for views of twice the size; its refiner is untrained and adds nothing.

    Raises:
        ValueError: The network has a refiner already.
    """
    if model.refined:
        raise ValueError("the network's volume is refined already")
    config = {k: v for k, v in model.config.items() if not k.startswith("_")}
    large = VolumeDenoiser(**{**config, "sample_size": 2 * config["sample_size"]})
    large.load_state_dict(model.state_dict(), strict=False)
    return large


def shrunk(pictures: Tensor, size: int) -> Tensor:
    """(…, C, S, S) averaged down to (…, C, size, size), S a multiple of `size`."""
    factor = pictures.shape[-1] // size
    if factor == 1:
        return pictures
    return F.avg_pool2d(pictures.flatten(0, -4), factor).unflatten(0, pictures.shape[:-3])


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


def to_model(rgba: Tensor) -> Tensor:
    """Premultiplied RGBA in [0, 1] to the network's range."""
    return rgba * 2 - 1


def from_model(x: Tensor) -> Tensor:
    """The network's range to premultiplied RGBA in [0, 1], colours no brighter than their alpha."""
    rgba = (x.clamp(-1, 1) + 1) / 2
    alpha = rgba[..., 3:, :, :]
    return torch.cat([torch.minimum(rgba[..., :3, :, :], alpha), alpha], dim=-3)
