"""The blocks of which mini's networks are made."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 16
HEAD_DIM = 64
# Inputs of convolutions are filled up with zeros to a multiple of this: a GPU's matrix units read no odd numbers.
ALIGNMENT = 8


class ResidualBlock(nn.Module):
    """Two convolutions of width 3, in 2D or 3D; an embedding scales and shifts between them (adaptive group norm).

    Args:
        channels_in: Of the input.
        channels_out: Of the output.
        embedding: Width of the embedding; 0: there is none.
        dims: 2 or 3.
    """

    def __init__(self, channels_in: int, channels_out: int, embedding: int, dims: int = 2) -> None:
        super().__init__()
        convolution = nn.Conv3d if dims == 3 else nn.Conv2d
        self.norm1 = nn.GroupNorm(GROUPS, channels_in)
        self.conv1 = convolution(channels_in, channels_out, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * channels_out) if embedding else None
        self.norm2 = nn.GroupNorm(GROUPS, channels_out)
        self.conv2 = convolution(channels_out, channels_out, 3, padding=1)
        self.skip = nn.Identity() if channels_in == channels_out else convolution(channels_in, channels_out, 1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """x (N, C, …), embedding (N, E) → (N, C', …)."""
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        if self.modulation is not None:
            assert embedding is not None
            scale, shift = self.modulation(embedding).view(len(x), -1, *[1] * (x.ndim - 2)).chunk(2, dim=1)
            h = h * (1 + scale) + shift
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


def attended(attention: nn.Module, x: Tensor, position: Tensor | None = None, context: Tensor | None = None) -> Tensor:
    """Attention among the cells of a map (B, C, …), to which positions (1, N, C) are added first."""
    tokens = x.flatten(2).transpose(1, 2)
    tokens = attention(tokens if position is None else tokens + position, context)
    return tokens.transpose(1, 2).unflatten(2, x.shape[2:])


def aligned(channels: int) -> int:
    """The next multiple of `ALIGNMENT`."""
    return -(-channels // ALIGNMENT) * ALIGNMENT


def filled(x: Tensor) -> Tensor:
    """(N, C, …) with zeros up to an aligned number of channels."""
    missing = aligned(x.shape[1]) - x.shape[1]
    return F.pad(x, (0, 0) * (x.ndim - 2) + (0, missing)) if missing else x


def channels_last(model: nn.Module) -> nn.Module:
    """The model with the weights of its convolutions laid out as the fast kernels read them."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)
        elif isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            module.to(memory_format=torch.channels_last_3d)
    return model
