"""The networks of Stable Video 3D (Voleti et al. 2024) as diffusers and transformers modules.

A U-Net that denoises the latents of all views together, an image autoencoder, and OpenCLIP's image tower. `sv3d_u`
and `sv3d_p` differ in one number: the length of the vector that conditions each view.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNetSpatioTemporalConditionModel
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.resnet import SpatioTemporalResBlock
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

# Ratio of the latents that the U-Net sees to what the autoencoder encodes to. The conditioning latent is not scaled.
LATENT_SCALE = 0.18215
# The noise that SV3D says was added to the conditioning picture; too small to matter, but part of each vector.
CONDITIONING_NOISE = 1e-5
# Pixels of a picture per pixel of its latent, and of a latent per pixel of the U-Net's coarsest level.
LATENT_STRIDE, UNET_STRIDE = 8, 8
# CLIP's own mean and standard deviation of RGB.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Sv3dConfig:
    """Sizes of the networks; the defaults are those of the published weights.

    Attributes:
        vector_channels: Length of each view's conditioning vector: 256 (`sv3d_u`) or 1280 (`sv3d_p`).
        channels: Channels of the U-Net's four levels.
        heads: Attention heads of the four levels.
        context: Channels of the image embedding.
        vae_channels: Channels of the autoencoder's levels.
        clip_width, clip_mlp, clip_layers, clip_heads, clip_patch: OpenCLIP ViT-H/14.
        clip_size: Side of the picture it sees.
    """

    vector_channels: int
    channels: tuple[int, int, int, int] = (320, 640, 1280, 1280)
    heads: tuple[int, int, int, int] = (5, 10, 20, 20)
    context: int = 1024
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)
    clip_width: int = 1280
    clip_mlp: int = 5120
    clip_layers: int = 32
    clip_heads: int = 16
    clip_patch: int = 14
    clip_size: int = 224


SV3D_U = Sv3dConfig(vector_channels=256)
SV3D_P = Sv3dConfig(vector_channels=1280)


@dataclass
class Sv3dNetworks:
    """The three networks of one checkpoint."""

    unet: OrbitUNet
    vae: AutoencoderKL
    image_encoder: CLIPVisionModelWithProjection


class OrbitUNet(UNetSpatioTemporalConditionModel):
    """Diffusers' video U-Net with a conditioning vector for each view instead of one for the whole video.

    Its residual blocks get the epsilon 1e-5 that the weights were trained with; diffusers builds them with 1e-6.
    """

    def __init__(self, config: Sv3dConfig) -> None:
        super().__init__(
            in_channels=8,
            out_channels=4,
            block_out_channels=config.channels,
            num_attention_heads=config.heads,
            cross_attention_dim=config.context,
            projection_class_embeddings_input_dim=config.vector_channels,
        )
        for block in self.modules():
            if isinstance(block, SpatioTemporalResBlock):
                for part in (block.spatial_res_block, block.temporal_res_block):
                    part.norm1.eps = part.norm2.eps = 1e-5

    def forward(self, sample: Tensor, noise_level: Tensor, context: Tensor, vector: Tensor) -> Tensor:
        """The network F of the preconditioned denoiser.

        Args:
            sample: (B, K, 8, h, w): scaled noisy latents and the conditioning latent.
            noise_level: Scalar, ln(σ)/4.
            context: (B, 1, context) image embedding.
            vector: (B, K, vector_channels) from `conditioning_vectors`.

        Returns:
            (B, K, 4, h, w), the v-prediction.
        """
        B, K = sample.shape[:2]
        time = self.time_embedding(self.time_proj(noise_level.reshape(1).expand(B)).to(sample.dtype))
        embedding = (time[:, None] + self.add_embedding(vector.to(sample.dtype))).flatten(0, 1)
        common = {"temb": embedding, "image_only_indicator": sample.new_zeros(B, K)}
        attended = {**common, "encoder_hidden_states": context.repeat_interleave(K, dim=0)}

        h = self.conv_in(sample.flatten(0, 1))
        skips = [h]
        for block in self.down_blocks:
            h, outputs = block(hidden_states=h, **(attended if _attends(block) else common))
            skips.extend(outputs)
        h = self.mid_block(hidden_states=h, **attended)
        for block in self.up_blocks:
            count = len(block.resnets)
            skips, outputs = skips[:-count], tuple(skips[-count:])
            h = block(hidden_states=h, res_hidden_states_tuple=outputs, **(attended if _attends(block) else common))
        h = self.conv_out(self.conv_act(self.conv_norm_out(h)))
        return h.unflatten(0, (B, K))


def _attends(block: nn.Module) -> bool:
    return bool(getattr(block, "has_cross_attention", False))


def empty_networks(config: Sv3dConfig) -> Sv3dNetworks:
    """The networks with their parameters on the meta device, waiting for a checkpoint."""
    levels = len(config.vae_channels)
    with init_empty_weights(include_buffers=False):
        unet = OrbitUNet(config)
        vae = AutoencoderKL(
            block_out_channels=config.vae_channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=2,
            latent_channels=4,
            use_post_quant_conv=False,
        )
        image_encoder = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=config.clip_width,
                intermediate_size=config.clip_mlp,
                num_hidden_layers=config.clip_layers,
                num_attention_heads=config.clip_heads,
                patch_size=config.clip_patch,
                image_size=config.clip_size,
                projection_dim=config.context,
                hidden_act="gelu",
            )
        )
    return Sv3dNetworks(unet.eval(), vae.eval(), image_encoder.eval())


def sinusoid(values: Tensor, channels: int) -> Tensor:
    """Sinusoidal embedding (N,) → (N, channels), cosines first."""
    return get_timestep_embedding(values, channels, flip_sin_to_cos=True, downscale_freq_shift=0)


def conditioning_vectors(config: Sv3dConfig, azimuths_deg: Sequence[float], elevation_deg: float | None) -> Tensor:
    """What tells the U-Net about each view: (K, vector_channels) float32.

    Args:
        azimuths_deg: Azimuth of each view from the input view.
        elevation_deg: Absolute elevation of the cameras; used by `sv3d_p` only.
    """
    noise = sinusoid(torch.full((len(azimuths_deg),), CONDITIONING_NOISE), 256)
    if config.vector_channels == noise.shape[1]:
        return noise
    if elevation_deg is None:
        raise ValueError("sv3d_p needs an elevation")
    polar = torch.full((len(azimuths_deg),), math.radians(90 - elevation_deg))
    azimuth = torch.deg2rad(torch.tensor([a % 360 for a in azimuths_deg]))
    return torch.cat([noise, sinusoid(polar, 512), sinusoid(azimuth, 512)], dim=1)


def clip_pixels(picture: Tensor, size: int) -> Tensor:
    """What the image tower sees.

    The reduction is the one the weights were trained with: a Gaussian of σ = (factor − 1)/2, cut at 2σ, then bicubic
    sampling with aligned corners. Torch's own antialiasing differs visibly.

    Args:
        picture: (B, 3, S, S) in [0, 1].

    Returns:
        (B, 3, size, size), standardised.
    """
    sigma = max((picture.shape[-1] / size - 1) / 2, 0.001)
    taps = int(max(4 * sigma, 3)) // 2 * 2 + 1
    offsets = torch.arange(taps, device=picture.device, dtype=picture.dtype) - taps // 2
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, taps)
    padding = taps // 2
    blurred = F.pad(picture, (padding,) * 4, mode="reflect")
    blurred = F.conv2d(blurred, kernel, groups=3)
    blurred = F.conv2d(blurred, kernel.transpose(2, 3), groups=3)
    small = F.interpolate(blurred, size=(size, size), mode="bicubic", align_corners=True)
    mean, std = (torch.tensor(v, device=small.device, dtype=small.dtype).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    return (small - mean) / std
