"""The blocks of which mini's networks are made."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_DIM = 64


class ChannelNorm(nn.Module):
    """Layer norm over the channels of (B, C, H, W): on CPUs several times faster than a group norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        normal = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, 1e-5)
        return normal.permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """Two convolutions of width 3; an embedding scales and shifts what comes between them. Starts as the identity.

    Args:
        channels: Of input and output.
        embedding: Width of the embedding; 0: there is none.
    """

    def __init__(self, channels: int, embedding: int = 0) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * channels) if embedding else None
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """x (N, C, H, W), embedding (N, E) → (N, C, H, W)."""
        h = self.conv1(self.norm(x))
        if self.modulation is not None:
            assert embedding is not None
            scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
            h = h * (1 + scale) + shift
        return x + self.conv2(F.silu(h))


class Attention(nn.Module):
    """Attention among the places of a map, followed by a two-layer perceptron. Starts as the identity."""

    def __init__(self, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = max(1, channels // HEAD_DIM)
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.mlp[3].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) → (B, N, C), for a few dozen tokens."""
        B, N, C = x.shape
        q, k, v = self.qkv(self.norm(x)).view(B, N, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()
        # Written out: for so few tokens the fused kernels are slower, on CPUs by far.
        weights = ((q @ k.mT) * (C // self.heads) ** -0.5).softmax(dim=-1)
        x = x + self.dropout(self.out((weights.to(v.dtype) @ v).transpose(1, 2).reshape(B, N, C)))
        return x + self.dropout(self.mlp(x))


def channels_last(model: nn.Module) -> nn.Module:
    """The model with the weights of its convolutions laid out as the fast kernels read them."""
    return model.to(memory_format=torch.channels_last)
