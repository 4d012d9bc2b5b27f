"""The network of `mini`: a diffusion denoiser of all views of an orbit about one imagined object.

From the input picture a volume is imagined (`mini_shape`), once for an orbit; every view is drawn from it, so that
turning an object is geometry and the views agree. A small network then denoises each view, knowing what the volume
shows there and what the input picture shows of that place. At the highest noise its estimate is the drawn volume, at
the lowest the picture itself. Preconditioning is EDM's (Karras et al. 2022, Table 1), so that samplers and restarts are
shared with SV3D.
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

from im3d.generators.mini.frustum import Drawn, drawn, surface_of
from im3d.generators.mini.pictures import ViewDecoder
from im3d.generators.mini.shape import Shape, ShapeNetwork

# What the decoder knows of a pixel: the drawn view, the input picture there and how far behind its surface, the noisy
# view, and whether it is the input view.
PIXEL_CHANNELS = 4 + 4 + 1 + 4


@dataclass(frozen=True)
class Imagined:
    """What does not change while an orbit is denoised.

    Attributes:
        shape: The volume.
        views: (B, K, 4, S, S) the views that the volume gives, premultiplied RGBA in [0, 1].
        known: (B, K, 5, S, S) the input picture where the drawn surface is, in the network's range, and how far behind
            the surface that the input picture shows there, in [−1, 1].
    """

    shape: Shape
    views: Tensor
    known: Tensor


class VolumeDenoiser(ModelMixin, ConfigMixin):
    """Denoiser of K RGBA views of a uniform ring that share one noise level, given the first view without noise.

    Pictures are premultiplied RGBA scaled to [−1, 1] (`to_model`, `from_model`).

    Args:
        sample_size: Side S of the views and of the input picture, in pixels, a multiple of 32.
        views: Views of the ring.
        depths: Cells of the volume in depth, even; it has S/2 rows and columns.
        samples: Samples along each ray through it.
        widths: Channels of the shape network at 1/2, 1/4, 1/8 and 1/16 of the resolution, on the way down.
        widths_up: The same at 1/8, 1/4 and 1/2 on the way up.
        layers: Of its attention.
        dropout: In its attention.
        decoder_widths: Channels of the decoder at 1/2, 1/4 and 1/8.
        embedding: Width of the embedding of noise level, azimuth and elevation.
        sigma_data: Standard deviation of the pictures (EDM).
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 128,
        views: int = 16,
        depths: int = 64,
        samples: int = 64,
        widths: tuple[int, ...] = (48, 128, 256, 512),
        widths_up: tuple[int, ...] = (256, 160, 64),
        layers: int = 5,
        dropout: float = 0.1,
        decoder_widths: tuple[int, ...] = (48, 96, 128),
        embedding: int = 128,
        sigma_data: float = 0.5,
    ) -> None:
        super().__init__()
        self.shape = ShapeNetwork(sample_size, depths, widths, widths_up, layers, dropout)
        # Uncertain cells know nothing of each other: drawn in a row they would be too opaque, or too thin.
        self.opacity = nn.Parameter(torch.tensor([1.0, 0.0]))
        self.condition_embedding = nn.Sequential(
            nn.Linear(128 + 2 * 8 + 2, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU()
        )
        self.decoder = ViewDecoder(PIXEL_CHANNELS, decoder_widths, embedding)

    def imagine(self, condition: Tensor, elevation_deg: Tensor | None = None, views: Tensor | None = None) -> Imagined:
        """The object of an input picture and what the ring sees of it.

        Args:
            condition: (B, 4, S, S) the input view.
            elevation_deg: (B,) degrees; None: as read from the input view.
            views: (B, K') which views of the ring to draw; None: all in order.
        """
        return self.draw(self.shape(condition), condition, elevation_deg, views)

    def draw(
        self, shape: Shape, condition: Tensor, elevation_deg: Tensor | None = None, views: Tensor | None = None
    ) -> Imagined:
        """What the ring sees of a shape; see `imagine`."""
        size = condition.shape[-1]
        told = shape.elevation_deg.detach() if elevation_deg is None else elevation_deg.float()
        azimuths = self._azimuths(len(condition), views, condition.device)
        logits = shape.logits * self.opacity[0] + self.opacity[1]
        with torch.autocast(condition.device.type, enabled=False):
            samples = int(self.config["samples"])
            seen = drawn(logits, shape.color, torch.deg2rad(told), azimuths, size // 2, samples)
            return Imagined(shape, _enlarged(seen.views, size), _known(condition, logits, seen, size))

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        condition: Tensor,
        elevation_deg: Tensor | None = None,
        imagined: Imagined | None = None,
        views: Tensor | None = None,
        shift: tuple[int, int] = (0, 0),
    ) -> Tensor:
        """Denoises views of an orbit.

        Args:
            x: (B, K, 4, S, S) noisy views.
            sigma: (B,) their noise level.
            condition: (B, 4, S, S) the input view.
            elevation_deg: (B,) degrees; None: as read from the input view.
            imagined: What `imagine` made of the same arguments, if that is known.
            views: (B, K) which views of the ring these are; None: all in order.
            shift: Rows and columns, of 0 … 7, by which the decoder sees everything moved.

        Returns:
            (B, K, 4, S, S) float32 denoised views.
        """
        if imagined is None:
            imagined = self.imagine(condition, elevation_deg, views)
        B, K = x.shape[:2]
        sd = self.config["sigma_data"]
        s = sigma.float().view(B, 1, 1, 1, 1)
        scale = (s**2 + sd**2).rsqrt()
        prior = to_model(imagined.views)
        told = imagined.shape.elevation_deg.detach() if elevation_deg is None else elevation_deg.float()
        embedding = self._embedding(sigma, told, self._azimuths(B, views, x.device))
        pixels = torch.cat([prior, imagined.known, x * scale], dim=2)
        raw = _moved(self.decoder, pixels.flatten(0, 1), embedding.flatten(0, 1), shift).float().unflatten(0, (B, K))
        skip = (sd * scale) ** 2
        return x * skip + prior * (1 - skip) + raw * (s * sd * scale)

    def _azimuths(self, count: int, views: Tensor | None, device: torch.device) -> Tensor:
        """(B, K) radians."""
        ring = int(self.config["views"])
        chosen = torch.arange(ring, device=device).expand(count, -1) if views is None else views
        return chosen * (2 * math.pi / ring)

    def _embedding(self, sigma: Tensor, elevation_deg: Tensor, azimuths: Tensor) -> Tensor:
        """(B, K, E): the noise level, and from where each view looks."""
        noise = get_timestep_embedding(sigma.float().log() * 250, 128)[:, None].expand(-1, azimuths.shape[1], -1)
        turns = azimuths[..., None] * torch.arange(1, 9, device=azimuths.device)
        tilt = torch.deg2rad(elevation_deg)[:, None, None].expand(-1, azimuths.shape[1], 1)
        known = torch.cat([noise, turns.cos(), turns.sin(), tilt.cos(), tilt.sin()], dim=-1)
        embedding: Tensor = self.condition_embedding(known)
        return embedding


def _moved(decoder: ViewDecoder, pixels: Tensor, embedding: Tensor, shift: tuple[int, int]) -> Tensor:
    """What the decoder makes of pictures that were moved, moved back."""
    down, right = shift
    if not (down or right):
        return decoder(pixels, embedding)
    rows, columns = pixels.shape[-2:]
    # The decoder's coarsest pixels are eight wide.
    moved = F.pad(pixels, (right, 8 - right, down, 8 - down), mode="replicate")
    seen: Tensor = decoder(moved, embedding)
    return seen[..., down : down + rows, right : right + columns]


def _enlarged(pictures: Tensor, size: int) -> Tensor:
    """(B, K, C, s, s) to `size`, bilinear."""
    large = F.interpolate(pictures.flatten(0, 1), size=(size, size), mode="bilinear", align_corners=False)
    return large.unflatten(0, pictures.shape[:2])


def _known(condition: Tensor, logits: Tensor, seen: Drawn, size: int) -> Tensor:
    """`Imagined.known`."""
    K = seen.depth.shape[1]
    front = surface_of(logits)
    place = seen.place.flatten(1, 2)  # (B, K·s, s, 2)
    found = F.grid_sample(front[:, None], place, padding_mode="border", align_corners=False).unflatten(2, (K, -1))
    behind = (seen.depth - found[:, 0]).clamp(-1, 1)[:, :, None]
    fine = _enlarged(seen.place.movedim(-1, 2), size).movedim(2, -1).flatten(1, 2)
    picture = F.grid_sample(condition.float(), fine, padding_mode="border", align_corners=False)
    picture = picture.unflatten(2, (K, -1)).transpose(1, 2)
    return torch.cat([picture, _enlarged(behind, size)], dim=2)


def to_model(rgba: Tensor) -> Tensor:
    """Premultiplied RGBA in [0, 1] to the network's range."""
    return rgba * 2 - 1


def from_model(x: Tensor) -> Tensor:
    """The network's range to premultiplied RGBA in [0, 1], colours no brighter than their alpha."""
    rgba = (x.clamp(-1, 1) + 1) / 2
    alpha = rgba[..., 3:, :, :]
    return torch.cat([torch.minimum(rgba[..., :3, :, :], alpha), alpha], dim=-3)
