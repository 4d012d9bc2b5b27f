"""How SV3D's networks share the memory of a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from im3d.core.memory import give_back_gpu_memory
from im3d.errors import OutOfMemoryError

GIGABYTE = 2**30
# How the libraries beneath torch say it, as plain RuntimeErrors.
_DEVICE_IS_FULL = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


@dataclass(frozen=True)
class MemoryMode:
    """One way of spending memory; every mode computes the same views.

    Attributes:
        name: Size of the GPU it is meant for in GB, as in `--set sv3d.memory=12`, or "cpu".
        needs_gb: Least free memory with which it is chosen.
        batched_guidance: The conditional and the unconditional pass run as one batch.
        chunk: Pictures that the autoencoder encodes or decodes at once.
        chunked_feed_forward: The transformers' feed-forward layers run view by view.
        offload: Each network is on the GPU only while it works.
    """

    name: str
    needs_gb: float
    batched_guidance: bool
    chunk: int
    chunked_feed_forward: bool
    offload: bool


# From the largest to the smallest.
MODES = (
    MemoryMode("24", 19.0, batched_guidance=True, chunk=4, chunked_feed_forward=False, offload=False),
    MemoryMode("12", 9.5, batched_guidance=False, chunk=2, chunked_feed_forward=False, offload=True),
    # Chunking the feed-forward layers here as well was measured: 0.4 GB less, and five times slower.
    MemoryMode("8", 6.5, batched_guidance=False, chunk=1, chunked_feed_forward=False, offload=True),
)
CPU_MODE = MemoryMode("cpu", 0.0, batched_guidance=False, chunk=1, chunked_feed_forward=True, offload=False)


def choose_mode(wanted: str, device: torch.device) -> MemoryMode:
    """The mode of that name, or for "auto" the largest that the free memory allows.

    Raises:
        OutOfMemoryError: "auto" found too little for the smallest mode.
    """
    if device.type != "cuda":
        return CPU_MODE
    if wanted != "auto":
        return next(mode for mode in MODES if mode.name == wanted)
    return fitting_mode(free_gigabytes(device))


def free_gigabytes(device: torch.device) -> float:
    """GPU memory that is free, in GB; what torch has reserved and does not use counts as free."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return (torch.cuda.mem_get_info(device)[0] + unused) / GIGABYTE


def fitting_mode(free_gb: float) -> MemoryMode:
    """The largest mode for so much free memory.

    Raises:
        OutOfMemoryError: There is none.
    """
    for mode in MODES:
        if free_gb >= mode.needs_gb:
            return mode
    raise OutOfMemoryError(
        f"SV3D needs {MODES[-1].needs_gb:g} GB of free GPU memory; {free_gb:.1f} GB are free.",
        f"Close other programs that use the GPU (Blender's viewport too), or set sv3d.memory to {MODES[-1].name}.",
    )


@contextmanager
def out_of_memory_explained(name: str, mode: MemoryMode) -> Iterator[None]:
    """Turns an exhausted device into a sentence that names the next smaller mode.

    Raises:
        OutOfMemoryError: The device's memory, or the machine's, was not enough.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _DEVICE_IS_FULL):
            raise _too_small(name, mode) from error
        if "can't allocate memory" not in str(error):
            raise
        raise OutOfMemoryError(
            f"{name} does not fit into the memory of this machine.",
            "Close other programs, or choose the generator mini.",
        ) from error


def _too_small(name: str, mode: MemoryMode) -> OutOfMemoryError:
    smaller = next((m for m in MODES if m.needs_gb < mode.needs_gb), None)
    return OutOfMemoryError(
        f"{name} does not fit into the GPU's memory in the {mode.name} GB mode.",
        f"Use the next smaller one: set sv3d.memory to {smaller.name}."
        if smaller
        else "Close other programs that use the GPU, or choose the generator mini.",
    )


@contextmanager
def placed(module: nn.Module, device: torch.device, mode: MemoryMode) -> Iterator[None]:
    """The module on the device while the block runs; back on the CPU afterwards where the mode says so.

    It is moved outside of inference mode, so that its weights stay ordinary tensors, which `MODELS` can put back.
    """
    with torch.inference_mode(False):
        module.to(device)
    try:
        yield
    finally:
        if mode.offload:
            with torch.inference_mode(False):
                module.to("cpu")
            give_back_gpu_memory()
