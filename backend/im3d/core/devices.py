"""Where to compute: the GPU or the processor, and what each of them is."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

from im3d.errors import InputError

if TYPE_CHECKING:
    import torch


def choose_device(wanted: str) -> torch.device:
    """The device of that name; "auto" takes the GPU where there is one.

    Args:
        wanted: "auto", "cuda" or "cpu".

    Raises:
        InputError: There is no such device.
    """
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("There is no CUDA device.", "Use the device cpu.")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def fast_in_half(device: torch.device) -> bool:
    """Whether bfloat16 saves time on a device: on GPUs, and on processors with matrix units for it (Intel's AMX)."""
    import torch

    return device.type == "cuda" or torch.cpu._is_amx_tile_supported()


def device_name(device: torch.device) -> str:
    """The GPU's model, or "cpu"."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def processor_name() -> str:
    """The processor's model, as the system calls it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
