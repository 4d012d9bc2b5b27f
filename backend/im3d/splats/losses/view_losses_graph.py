"""The losses of the fit on a GPU: recorded once as a CUDA graph, with their gradients, and replayed every iteration.

All shapes are fixed, so the few hundred kernels of an iteration need to be launched only once. VGG16 computes in
float16; targets of both backgrounds lie in one array, from which the graph picks its rows.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from torch import Tensor

from im3d.settings import FitSettings
from im3d.splats.losses import perceptual_triton, ssim_triton
from im3d.splats.losses.image_losses import (
    C1,
    C2,
    SsimTarget,
    gaussian_window,
    mask_loss,
    ms_ssim,
    ms_ssim_of,
    rgb_loss,
)
from im3d.splats.losses.perceptual import EPS, PACKED_UNIT, TINY, Features, Perceptual, Vgg16
from im3d.splats.losses.vgg16_triton import vgg16_distance
from im3d.splats.losses.view_losses import ViewLosses, summed

# Runs before a graph is recorded: libraries choose their kernels in the first ones.
WARM_UP = 3


class CudaViewLosses(ViewLosses):
    """As `ViewLosses`, for tensors on a GPU and always the same number of views.

    Args:
        rgba: (K, S, S, 4) premultiplied views.
        settings: Their weights.
        perceptual: None when its weight is 0; VGG16 is turned to float16.
        recorded: Whether the losses become a graph; otherwise every kernel is launched anew.
    """

    def __init__(
        self, rgba: Tensor, settings: FitSettings, perceptual: Perceptual | None, recorded: bool = True
    ) -> None:
        if perceptual is not None:
            perceptual.in_half()
        super().__init__(rgba, settings, perceptual)
        self._count = len(rgba)
        self._targets = torch.cat(self.images)
        self._target_ssim = _joined(self._ssim) if self._ssim else None
        self._window = gaussian_window().float().to(rgba.device)
        self._target_features: list[Tensor] = []
        if perceptual is not None:
            self._target_features = _stacked([f for of_one in self._features for f in of_one])
        self._features, self._ssim = [], []  # the same again
        self._recorded = recorded
        self._graph: _LossGraph | None = None

    def __call__(
        self, images: Tensor, alpha: Tensor, rows: list[int], background: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As of `ViewLosses`; the gradient of the sum alone is kept."""
        index = self._index(rows, background)
        if not self._recorded:
            return summed(self.parts(images, alpha, index))
        if self._graph is None:
            self._graph = _LossGraph(self, images, alpha, index)
        values = _Replayed.apply(images, alpha, index, self._graph, self)
        names = self._graph.names
        return values.sum(), dict(zip(names, values.detach(), strict=True))

    def parts(self, images: Tensor, alpha: Tensor, index: Tensor) -> dict[str, Tensor]:
        """The weighted losses by name, of renders (V, 3, S, S), coverages (V, S, S) and rows (V,) of the targets."""
        weights, targets = self.settings, self._targets
        parts = {"mask": weights.mask * mask_loss(alpha, self.alpha[index % self._count])}
        if weights.rgb > 0:
            parts["rgb"] = weights.rgb * rgb_loss(images, targets[index])
        if self._target_ssim is not None:
            parts["ms_ssim"] = weights.ms_ssim * (1 - self._ms_ssim(images, index))
        if self._target_features:
            parts["lpips"] = weights.lpips * self._perceptual_distance(images, index)
        return parts

    def ms_ssim(self, images: Tensor, rows: list[int], background: int) -> Tensor:
        """As of `ViewLosses`, launched kernel by kernel."""
        return self._ms_ssim(images, self._index(rows, background))

    def distance(self, images: Tensor, rows: list[int], background: int) -> Tensor:
        """As of `ViewLosses`, launched kernel by kernel."""
        return self._perceptual_distance(images, self._index(rows, background))

    def _index(self, rows: list[int], background: int) -> Tensor:
        """Where the targets of some views over a background lie."""
        wanted = torch.tensor([background * self._count + k for k in rows])
        # Not waited for: the copy is taken before the call returns.
        return wanted.to(self._targets.device, non_blocking=True)

    def _ms_ssim(self, images: Tensor, index: Tensor) -> Tensor:
        target = self._target_ssim
        assert target is not None
        if not perceptual_triton.available(images.device):
            return ms_ssim(images, target[index])

        def similarity(scale: int, x: Tensor, last: bool) -> Tensor:
            theirs = target.images[scale], target.means[scale], target.variances[scale]
            return ssim_triton.similarity(x, *theirs, index, self._window, (C1, C2), last)

        return ms_ssim_of(images, len(target.images), similarity)

    def _perceptual_distance(self, images: Tensor, index: Tensor) -> Tensor:
        assert self.perceptual is not None
        shown = self._shrunk(images)
        perceptual, targets = self.perceptual, self._target_features
        if not perceptual_triton.available(images.device):
            return perceptual(shown, Features([t[index].permute(0, 3, 1, 2) for t in targets]))
        weights = [perceptual.get_buffer(f"weight{i}") for i in range(len(targets))]
        constants = (PACKED_UNIT, TINY, EPS)
        if isinstance(perceptual.network, Vgg16):
            normal = perceptual.get_buffer("mean"), perceptual.get_buffer("std")
            return vgg16_distance(shown, *normal, perceptual.network.convolutions, targets, index, weights, *constants)

        def distance(layer: int, mine: Tensor) -> Tensor:
            return perceptual_triton.layer_distance(mine, targets[layer], index, weights[layer], *constants)

        return perceptual.summed(shown, distance)


class _LossGraph:
    """The recorded losses, and what they read and write.

    It does not keep the losses that it belongs to: in a circle of references the features of a fit's views, gigabytes,
    would outlive it until Python looks for such circles.
    """

    def __init__(self, losses: CudaViewLosses, images: Tensor, alpha: Tensor, index: Tensor) -> None:
        self._inputs = [x.detach().clone(memory_format=torch.contiguous_format) for x in (images, alpha, index)]
        self.names: list[str] = []
        self._graph: torch.cuda.CUDAGraph | None = torch.cuda.CUDAGraph()
        beside = _stream_beside(images.device)
        beside.wait_stream(torch.cuda.current_stream(images.device))
        # The same choice of kernels in both: one that is first loaded while a graph is recorded may spoil it.
        # `flags` turns off what it is not given.
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=torch.backends.cudnn.allow_tf32):
            with torch.cuda.stream(beside):
                for _ in range(WARM_UP):
                    self._computed(losses)
            torch.cuda.current_stream(images.device).wait_stream(beside)
            try:
                self._record(losses, beside)
            except RuntimeError as error:
                logging.getLogger(__name__).warning("The losses are not recorded as a CUDA graph: %s", error)
                self._graph = None

    def _record(self, losses: CudaViewLosses, beside: torch.cuda.Stream) -> None:
        """As `torch.cuda.graph` does, but without handing all unused memory back to the driver, which takes longer."""
        assert self._graph is not None
        torch.cuda.synchronize(beside.device)
        with torch.cuda.stream(beside):
            # Relaxed: libraries may still load a kernel, from autograd's thread too.
            self._graph.capture_begin(capture_error_mode="relaxed")
            try:
                self._values, self._gradients = self._computed(losses)
            finally:
                self._graph.capture_end()
        torch.cuda.current_stream(beside.device).wait_stream(beside)

    def replayed(
        self, losses: CudaViewLosses, images: Tensor, alpha: Tensor, index: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """The losses in the order of `names`, and the gradients of their sum by images and coverages."""
        for mine, given in zip(self._inputs, (images, alpha, index), strict=True):
            mine.copy_(given)
        if self._graph is None:
            return self._computed(losses)
        self._graph.replay()
        return self._values.clone(), [g.clone() for g in self._gradients]

    def _computed(self, losses: CudaViewLosses) -> tuple[Tensor, list[Tensor]]:
        images, alpha, index = self._inputs
        images, alpha = images.detach().requires_grad_(), alpha.detach().requires_grad_()
        with torch.enable_grad():
            parts = losses.parts(images, alpha, index)
            self.names = list(parts)
            values = torch.stack(list(parts.values()))
            gradients = torch.autograd.grad(values.sum(), (images, alpha))
        return values.detach(), list(gradients)


@functools.cache
def _stream_beside(device: torch.device) -> torch.cuda.Stream:
    """The stream that graphs are recorded on, always the same: what is freed on one stream is kept for that one."""
    return torch.cuda.Stream(device)


class _Replayed(torch.autograd.Function):
    """Losses whose sum has a gradient; the parts alone have none."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, alpha: Tensor, index: Tensor, graph: _LossGraph, losses: CudaViewLosses
    ) -> Tensor:
        values, gradients = graph.replayed(losses, images, alpha, index)
        ctx.save_for_backward(*gradients)
        return values

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        images, alpha = ctx.saved_tensors
        scale = upstream[0][0]
        return images * scale, alpha * scale, None, None, None


def _stacked(features: list[Features]) -> list[Tensor]:
    """Packed features of single pictures, a layer at a time as (K, H, W, C)."""
    layers = []
    for i in range(len(features[0].layers)):
        layers.append(torch.cat([f.layers[i].permute(0, 2, 3, 1) for f in features]).contiguous())
        for f in features:
            f.layers[i] = f.layers[i][:0]  # two gigabytes of VGG16's need not be there twice
    return layers


def _joined(targets: list[SsimTarget]) -> SsimTarget:
    """The targets of all backgrounds, one after another."""
    parts = ([getattr(t, name) for t in targets] for name in ("images", "means", "variances"))
    return SsimTarget(*([torch.cat(scale) for scale in zip(*part, strict=True)] for part in parts))
