"""The Warp rasteriser: NVIDIA GPUs without a compiler, by kernels that Warp's own compilers build at first use.

The projection is `project_views`, in torch. Every splat gets one slot for each tile that it touches; slots are sorted
by camera, tile and depth; `warp_kernels` renders each tile from its run of slots. One number, how many slots there are,
comes back from the GPU; everything else is queued on torch's current stream.

The same kernels run on the processor, on one core: that is for tests. Sums over pixels are atomic, so gradients differ
in their last bits from run to run on a GPU, as gsplat's do.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from im3d.core.orbit import Cameras
from im3d.errors import Im3dError
from im3d.splats.gaussians import Gaussians
from im3d.splats.rasterizers.project import Projected, project_views

# A strip is finished when the transmittance of all of its pixels is below this; gsplat stops each pixel there.
MIN_TRANSMITTANCE = 1e-4
# Threads of a block on a GPU: four tiles.
BLOCK = 256


@functools.cache
def unavailable_reason(device_type: str) -> str:
    """Why Warp cannot run on such a device here, in one sentence; "" when it can.

    Args:
        device_type: torch's name of it, "cuda" or "cpu".
    """
    if device_type not in ("cuda", "cpu"):
        return f"Warp does not know {device_type}."
    if device_type == "cuda" and not torch.cuda.is_available():
        return "No CUDA device is visible to torch."
    if importlib.util.find_spec("warp") is None:
        return "The package warp-lang is not installed."
    try:
        import warp as wp

        wp.config.log_level = wp.LOG_WARNING  # or the banner goes to stdout
        usable = device_type == "cpu" or wp.is_cuda_available()
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return f"The package warp-lang cannot be loaded: {(str(error).splitlines() or ['no reason given'])[0]}"
    return "" if usable else "Warp sees no CUDA device; it needs driver 525 or newer."


@functools.cache
def load_kernels(device: torch.device) -> ModuleType:
    """The kernels, compiled for `device` if that has not been done on this machine.

    Raises:
        Im3dError: They cannot be compiled.
    """
    import warp as wp

    from im3d.splats.rasterizers import warp_kernels

    wp.init()
    logging.getLogger(__name__).info("Loading Warp's kernels; the first time they are compiled.")
    try:
        # Modules are compiled for one size of block: that of `_launch`.
        block = BLOCK if device.type == "cuda" else 1
        wp.load_module(warp_kernels, device=wp.device_from_torch(device), block_dim=block)
    except Exception as error:  # Warp raises nothing more specific
        raise Im3dError(
            f"The splats' kernels could not be compiled by Warp: {(str(error).splitlines() or [''])[0]}",
            "Use the device cpu.",
        ) from error
    return warp_kernels


def rasterize(gaussians: Gaussians, cameras: Cameras, colors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Renders one image for each of C cameras.

    Args:
        gaussians: float32, on a CUDA device or the processor.
        cameras: C cameras.
        colors: (N, 3) what each splat carries.

    Returns:
        Premultiplied colour (C, S, S, 3), transmittance (C, S, S), screen positions (C, N, 2) that keep their gradient,
        and whether each splat is visible, (C, N).

    Raises:
        Im3dError: The kernels cannot be compiled.
    """
    projected = project_views(gaussians, cameras)
    if projected.means2d.requires_grad:
        projected.means2d.retain_grad()
    slots = sort_into_tiles(projected, cameras.size)
    image, transmittance = _Rasterize.apply(
        projected.means2d, projected.conics, projected.opacities, colors, slots, cameras.size
    )
    return image, transmittance, projected.means2d, projected.visible


@dataclass(frozen=True)
class Slots:
    """Which splats touch which tile, near to far.

    Attributes:
        per_side: Tiles along each side of the image.
        offsets: (C · per_side² + 1,) int64: slots of tile t of camera c are offsets[l] … offsets[l + 1] with
            l = c · per_side² + t.
        splats: (M,) int32, c · N + n for splat n seen by camera c.
    """

    per_side: int
    offsets: Tensor
    splats: Tensor


def sort_into_tiles(projected: Projected, size: int) -> Slots:
    """Sorts the splats of C cameras into the tiles of their square images of `size` pixels.

    Splats at one depth keep their order.
    """
    centres, extents, depths, visible = (
        t.detach().contiguous() for t in (projected.means2d, projected.extents, projected.depths, projected.visible)
    )
    device, (cameras, count) = centres.device, visible.shape
    kernels = load_kernels(device)
    per_side = -(-size // kernels.TILE)
    counts = torch.empty(cameras * count, dtype=torch.int32, device=device)
    _launch(kernels.count_tiles, len(counts), (centres, extents, visible, per_side, counts))
    ends = counts.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0  # the one number that the processor waits for
    keys = torch.empty(total, dtype=torch.int64, device=device)
    splats = torch.empty(total, dtype=torch.int32, device=device)
    inputs = (centres, extents, depths.view(torch.int32), counts, ends, count, per_side)
    _launch(kernels.write_keys, len(counts), (*inputs, keys, splats))
    keys, order = keys.sort(stable=True)
    starts = torch.arange(cameras * per_side**2 + 1, dtype=torch.int64, device=device) << 32
    return Slots(per_side, torch.searchsorted(keys, starts), splats[order])


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, means2d: Tensor, conics: Tensor, opacities: Tensor, colors: Tensor, slots: Slots, size: int
    ) -> tuple[Tensor, Tensor]:
        device, cameras = means2d.device, len(means2d)
        kernels = load_kernels(device)
        inputs = [t.detach().contiguous() for t in (means2d, conics, opacities, colors)]
        image = torch.empty(cameras, size, size, 3, device=device)
        through = torch.empty(cameras, size, size, device=device)
        last = torch.empty(cameras * slots.per_side**2 * kernels.STRIPS, dtype=torch.int32, device=device)
        rendered = (MIN_TRANSMITTANCE, image, through, last)
        _launch(kernels.draw, len(last), (*inputs, slots.offsets, slots.splats, slots.per_side, size, *rendered))
        ctx.save_for_backward(*inputs, slots.offsets, slots.splats, image, through, last)
        ctx.sides = (slots.per_side, size)
        return image, through

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_image: Tensor, g_through: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, offsets, splats, image, through, last = ctx.saved_tensors
        kernels = load_kernels(image.device)
        gradients = [torch.zeros_like(t) for t in inputs]
        rendered = (image, through, last, g_image.contiguous(), g_through.contiguous())
        _launch(kernels.draw_gradient, len(last), (*inputs, offsets, splats, *ctx.sides, *rendered, *gradients))
        return (*gradients, None, None)


def _launch(kernel: Any, threads: int, arguments: tuple[Tensor | float, ...]) -> None:
    """Queues a kernel behind what torch has queued. Tensors are passed without copies, as the kernel declares them."""
    import warp as wp

    if threads == 0:
        return
    converted: list[Any] = []
    for argument, declared in zip(arguments, kernel.adj.args, strict=True):
        if not isinstance(argument, Tensor):
            converted.append(argument)
        else:
            dtype = declared.type.dtype
            # Kernels count along one axis, and nothing checks that: a row too far is another's memory.
            flat = argument.view(-1, *dtype._shape_) if hasattr(dtype, "_shape_") else argument.view(-1)
            converted.append(wp.from_torch(flat, dtype=dtype, requires_grad=False, return_ctype=True))
    device = next(a.device for a in arguments if isinstance(a, Tensor))
    if device.type == "cuda":
        stream = wp.stream_from_torch(torch.cuda.current_stream(device))
        wp.launch(kernel, threads, converted, stream=stream, block_dim=BLOCK)
    else:
        wp.launch(kernel, threads, converted, device="cpu")
