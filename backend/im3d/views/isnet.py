"""IS-Net (Qin et al., "Highly Accurate Dichotomous Image Segmentation", 2022): the object's mask in any picture.

The paper masks its generated frames with it (3.3). The network is two nested U-Nets: an outer one whose stages are
themselves small U-Nets, the residual U-blocks of U²-Net (Qin et al. 2020). Modules carry the names of the published
weights.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from im3d.core.images import FloatArray
from im3d.errors import OutOfMemoryError
from im3d.models.cache import MODELS
from im3d.models.catalog import find_model, installed, unreadable
from im3d.views.masks import Segment

# Side of the picture that the network was trained on.
SIZE = 1024


class ConvNormRelu(nn.Module):
    """3×3 convolution, batch norm, ReLU; "REBNCONV" in the published code."""

    def __init__(self, channels_in: int, channels_out: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv_s1 = nn.Conv2d(channels_in, channels_out, 3, padding=dilation, dilation=dilation)
        self.bn_s1 = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H, W)."""
        return F.relu(self.bn_s1(self.conv_s1(x)))


class ResidualUBlock(nn.Module):
    """RSU-L: a U-Net of L levels whose output is added to its first convolution.

    Args:
        levels: L. The deepest two have the same resolution; the lower one is dilated instead of reduced.
        channels_in: Of the input.
        middle: Of all levels inside.
        channels_out: Of the output.
        dilated: RSU-4F: no level is reduced; dilations 1, 2, 4, 8 widen the view instead.
    """

    def __init__(self, levels: int, channels_in: int, middle: int, channels_out: int, dilated: bool = False) -> None:
        super().__init__()
        self.levels, self.dilated = levels, dilated
        self.rebnconvin = ConvNormRelu(channels_in, channels_out)
        for level in range(1, levels + 1):
            dilation = 2 ** (level - 1) if dilated else 2 if level == levels else 1
            entry = channels_out if level == 1 else middle
            setattr(self, f"rebnconv{level}", ConvNormRelu(entry, middle, dilation))
        for level in range(levels - 1, 0, -1):
            dilation = 2 ** (level - 1) if dilated else 1
            exit_ = channels_out if level == 1 else middle
            setattr(self, f"rebnconv{level}d", ConvNormRelu(2 * middle, exit_, dilation))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H, W)."""
        first = self.rebnconvin(x)
        skips: list[Tensor] = []
        h = first
        for level in range(1, self.levels):
            # All but the first level and the dilated deepest one work at half the resolution of the one above.
            h = getattr(self, f"rebnconv{level}")(h if level == 1 else self._reduced(h))
            skips.append(h)
        h = getattr(self, f"rebnconv{self.levels}")(h)
        for level in range(self.levels - 1, 0, -1):
            skip = skips.pop()
            h = getattr(self, f"rebnconv{level}d")(torch.cat([_resized(h, skip), skip], dim=1))
        return h + first

    def _reduced(self, x: Tensor) -> Tensor:
        return x if self.dilated else _halved(x)


class IsNet(nn.Module):
    """The outer U-Net: six stages down, five up, and a side output at each resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, 64, 3, stride=2, padding=1)
        self.stage1 = ResidualUBlock(7, 64, 32, 64)
        self.stage2 = ResidualUBlock(6, 64, 32, 128)
        self.stage3 = ResidualUBlock(5, 128, 64, 256)
        self.stage4 = ResidualUBlock(4, 256, 128, 512)
        self.stage5 = ResidualUBlock(4, 512, 256, 512, dilated=True)
        self.stage6 = ResidualUBlock(4, 512, 256, 512, dilated=True)
        self.stage5d = ResidualUBlock(4, 1024, 256, 512, dilated=True)
        self.stage4d = ResidualUBlock(4, 1024, 128, 256)
        self.stage3d = ResidualUBlock(5, 512, 64, 128)
        self.stage2d = ResidualUBlock(6, 256, 32, 64)
        self.stage1d = ResidualUBlock(7, 128, 16, 64)
        self.side1 = nn.Conv2d(64, 1, 3, padding=1)
        # The coarser outputs guided the training; they belong to the weights and are not looked at.
        for level, channels in enumerate((64, 128, 256, 512, 512), start=2):
            setattr(self, f"side{level}", nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """The mask, not yet normalised.

        Args:
            x: (B, 3, H, W), sRGB in [0, 1] minus 0.5.

        Returns:
            (B, 1, H, W) in [0, 1].
        """
        h1 = self.stage1(self.conv_in(x))
        h2 = self.stage2(_halved(h1))
        h3 = self.stage3(_halved(h2))
        h4 = self.stage4(_halved(h3))
        h5 = self.stage5(_halved(h4))
        h = self.stage6(_halved(h5))
        for stage, skip in ((self.stage5d, h5), (self.stage4d, h4), (self.stage3d, h3), (self.stage2d, h2)):
            h = stage(torch.cat([_resized(h, skip), skip], dim=1))
        h = self.stage1d(torch.cat([_resized(h, h1), h1], dim=1))
        return torch.sigmoid(_resized(self.side1(h), x))


def load_isnet(path: Path) -> IsNet:
    """The network with the weights of a file, .safetensors or .pth, on the CPU and in evaluation mode.

    Raises:
        ModelError: The file is not readable, or not IS-Net's.
    """
    try:
        if path.suffix == ".safetensors":
            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        with torch.device("meta"):
            network = IsNet()
        network.load_state_dict(weights, assign=True)
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged file makes the readers raise
        raise unreadable(path) from error
    return network.requires_grad_(False).eval()


def installed_isnet(device: torch.device) -> Segment | None:
    """IS-Net as `masks.isolate` uses it, or None where it is not installed. The weights are read at the first call."""
    folder = installed("isnet")
    if folder is None:
        return None
    path = folder / find_model("isnet").files[0]
    network: IsNet | None = None

    def segment(rgb: FloatArray) -> FloatArray:
        nonlocal network
        if network is None:
            network = MODELS.get("isnet", [path], (), lambda: load_isnet(path))
        with torch.inference_mode(False):
            network.to(device)  # at every call: it may have been put to rest since the last
        return segmented(network, rgb)

    return segment


@torch.inference_mode()
def segmented(network: IsNet, rgb: FloatArray, size: int = SIZE) -> FloatArray:
    """The mask of the object in a picture.

    Args:
        network: IS-Net.
        rgb: (H, W, 3) sRGB in [0, 1].
        size: Side of the square that the network sees; the picture is stretched to it.

    Returns:
        (H, W) float32 in [0, 1], its least value 0 and its largest 1 as in the published inference code.

    Raises:
        OutOfMemoryError: The GPU is full.
    """
    device = network.conv_in.weight.device
    picture = torch.from_numpy(np.ascontiguousarray(np.moveaxis(rgb, -1, 0)))[None].to(device)
    try:
        mask = network(F.interpolate(picture, size=(size, size), mode="bilinear") - 0.5)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            "IS-Net does not fit into the memory of the GPU.", "Close other programs that use it."
        ) from error
    mask = F.interpolate(mask, size=rgb.shape[:2], mode="bilinear")[0, 0].float()
    low, high = mask.min(), mask.max()
    result: FloatArray = ((mask - low) / (high - low).clamp_min(1e-6)).cpu().numpy()
    return result


def _halved(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2, stride=2, ceil_mode=True)


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear")
