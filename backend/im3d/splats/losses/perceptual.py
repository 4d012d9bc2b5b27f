"""The perceptual loss: LPIPS (Zhang et al. 2018) with the targets' features computed once.

With VGG16's weights installed this equals the `lpips` package. Without them, and without a network, the features are
those of EfficientNet-Lite0 trained on ImageNet, whose weights a Python package ships (Apache-2.0); distances are taken
the same way with equal weights for all channels. Which of the two was used stands in every result.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from im3d.models.catalog import unreadable
from im3d.models.efficientnet import LITE0_MEAN, LITE0_STAGES, LITE0_STD, EfficientNetLite0, lite0_weights
from im3d.shared.paths import models_folder

EPS = 1e-10
# Features of unit length lie in [−1, 1]; the finest step of 16 bits.
PACKED_UNIT = 1 / 32767
# Squared length below which a feature counts as zero: the square root has no gradient at 0.
TINY = 1e-14
# LPIPS shifts and scales images in [−1, 1]; these are its constants for images in [0, 1].
LPIPS_MEAN = tuple((s + 1) / 2 for s in (-0.030, -0.088, -0.188))
LPIPS_STD = tuple(s / 2 for s in (0.458, 0.448, 0.450))
VGG16_LAYERS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
LITE0_CHANNELS = (32, 16, 24, 40)  # of the stem and the stages


def vgg16_path() -> Path:
    """Where `im3d models download vgg16` puts VGG16 (torchvision's names, safetensors)."""
    return models_folder() / "vgg16" / "model.safetensors"


def perceptual_name() -> str:
    """Which features `load_perceptual` will use: "lpips-vgg16" or "efficientnet-lite0"."""
    return "lpips-vgg16" if vgg16_path().exists() else "efficientnet-lite0"


def load_perceptual(device: torch.device) -> Perceptual:
    """The best perceptual loss that is installed.

    Raises:
        ModelError: The weights of VGG16 are damaged.
    """
    if vgg16_path().exists():
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(vgg16_path(), framework="pt") as file:
                names = file.keys()
                # Nine tenths of the file are the classifier, which is not used.
                vgg16 = Vgg16({name: file.get_tensor(name) for name in names if name.startswith("features.")})
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            raise unreadable(vgg16_path(), error) from error
        return Perceptual("lpips-vgg16", vgg16, lpips_weights(), LPIPS_MEAN, LPIPS_STD).to(device)
    # Not scaled to the distances of LPIPS with VGG16: how the two compare could not be measured (docs/paper.md).
    weights = [torch.full((channels,), 1 / len(LITE0_CHANNELS)) for channels in LITE0_CHANNELS]
    network = EfficientNetLite0(lite0_weights(), LITE0_STAGES[:3])
    return Perceptual("efficientnet-lite0", network, weights, (LITE0_MEAN,) * 3, (LITE0_STD,) * 3).to(device)


@dataclass(frozen=True)
class Features:
    """Unit-length features of B images, one tensor (B, C, H, W) a layer; as numbers, or packed in 16 bits."""

    layers: list[Tensor]

    def packed(self) -> Features:
        """In steps of `PACKED_UNIT`: those of VGG16 for 16 views of 512² on two backgrounds need 2 GB even so."""
        return Features([(layer / PACKED_UNIT).round().to(torch.int16) for layer in self.layers])

    def __getitem__(self, rows: Tensor) -> Features:
        return Features([layer[rows] for layer in self.layers])


class Perceptual(nn.Module):
    """Σ over layers of the mean over pixels of Σ_c w_c·(f_c − f'_c)², features scaled to unit length per pixel.

    Args:
        name: Stands in the result.
        network: (B, 3, S, S) normalised images → list of feature maps.
        weights: Per layer (C,) weights of the channels.
        mean, std: The normalisation the network was trained with, for images in [0, 1].
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        weights: list[Tensor],
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.name = name
        self.network = network.requires_grad_(False).eval()
        self._dtype = torch.float32
        for i, weight in enumerate(weights):
            self.register_buffer(f"weight{i}", weight)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def features(self, images: Tensor) -> Features:
        """Unit-length features of (B, 3, S, S) images in [0, 1]."""
        return Features([f / _length(f.square())[:, None] for f in (m.float() for m in self.maps(images))])

    def forward(self, images: Tensor, target: Features) -> Tensor:
        """Distance of (B, 3, S, S) images from their targets, mean over the batch.

        With f/|f| and t of unit length, Σ w·(f/|f| − t)² = Σ w·f²/|f|² − 2·Σ w·f·t/|f| + Σ w·t²: three sums over the
        channels instead of a normalised copy of every feature map.
        """
        return self.summed(images, lambda i, mine: self._layer_distance(i, mine, target.layers[i]))

    def summed(self, images: Tensor, layer_distance: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Σ over layers of a distance, which is given the layer's number and the images' features (B, C, H, W)."""
        scale = float(images.shape[0] * images.shape[2] * images.shape[3]) if self._dtype == torch.float16 else 1.0
        # A pixel's share of a mean is too small a gradient for half precision: it passes the network without it.
        maps = self.maps(_with_gradient_times(images, 1 / scale))
        total = images.new_zeros(())
        for i, mine in enumerate(maps):
            total = total + layer_distance(i, mine)
        return _with_gradient_times(total, scale)

    def _layer_distance(self, layer: int, mine: Tensor, cached: Tensor) -> Tensor:
        from im3d.splats.losses import perceptual_numba

        weight = self.get_buffer(f"weight{layer}")
        packed = cached.dtype == torch.int16
        if packed and mine.device.type == "cpu" and mine.dtype == torch.float32:
            return perceptual_numba.layer_distance(mine, cached, weight, PACKED_UNIT, TINY, EPS)
        mine = mine.float()
        theirs = cached.float() * PACKED_UNIT if packed else cached.float()
        weight = weight.view(1, -1, 1, 1)
        squared = mine.square()
        length = _length(squared)
        energy = (weight * squared).sum(dim=1) / length.square()
        shared = (weight * mine * theirs).sum(dim=1) / length
        return (energy - 2 * shared + (weight * theirs.square()).sum(dim=1)).mean()

    def maps(self, images: Tensor) -> list[Tensor]:
        """The network's feature maps of (B, 3, S, S) images in [0, 1]."""
        x = (images - self.get_buffer("mean")) / self.get_buffer("std")
        maps: list[Tensor] = self.network(x.to(self._dtype, memory_format=torch.channels_last))
        return maps

    def in_half(self) -> None:
        """From now on VGG16 computes in float16, the distances still in float32.

        In bfloat16 the gradients are off by a fifth; EfficientNet's, whose activations are clipped, suffer from both.
        """
        if isinstance(self.network, Vgg16):
            self._dtype = torch.float16
            self.network.to(self._dtype).to(memory_format=torch.channels_last)


def _length(squared: Tensor) -> Tensor:
    """Length of each pixel's feature vector, from the squares (B, C, H, W): (B, H, W)."""
    return squared.sum(dim=1).clamp_min(TINY).sqrt() + EPS


class _GradientTimes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return upstream[0] * ctx.factor, None


def _with_gradient_times(x: Tensor, factor: float) -> Tensor:
    result: Tensor = _GradientTimes.apply(x, factor) if factor != 1 else x
    return result


class Vgg16(nn.Module):
    """VGG16's convolutions (Simonyan & Zisserman 2014), tapped after the last activation of each block, as LPIPS does.

    Args:
        state: "features.N.weight" and "features.N.bias" as torchvision names them.
    """

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        index, channels = 0, 3
        for block in VGG16_LAYERS:
            convolutions = nn.ModuleList()
            for width in block:
                convolution = nn.Conv2d(channels, width, 3, padding=1)
                name = f"features.{index}"
                convolution.load_state_dict({"weight": state[f"{name}.weight"], "bias": state[f"{name}.bias"]})
                convolutions.append(convolution)
                index, channels = index + 2, width
            self.blocks.append(convolutions)
            index += 1

    @property
    def convolutions(self) -> list[list[nn.Conv2d]]:
        """The convolutions of each block."""
        return [
            [c for c in block if isinstance(c, nn.Conv2d)] for block in self.blocks if isinstance(block, nn.ModuleList)
        ]

    def forward(self, x: Tensor) -> list[Tensor]:
        taps = []
        for i, block in enumerate(self.convolutions):
            if i:
                x = F.max_pool2d(x, 2)
            for convolution in block:
                x = F.relu(convolution(x), inplace=True)
            taps.append(x)
        return taps


def lpips_weights() -> list[Tensor]:
    """LPIPS's calibrated channel weights for VGG16, from the `lpips` package: five tensors (C,)."""
    package = importlib.util.find_spec("lpips")  # not imported: it would want torchvision
    assert package is not None
    assert package.origin is not None
    path = Path(package.origin).parent / "weights" / "v0.1" / "vgg.pth"
    state = torch.load(path, map_location="cpu", weights_only=True)
    return [state[f"lin{i}.model.1.weight"].flatten() for i in range(5)]
