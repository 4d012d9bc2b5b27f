"""Which build of torch suits this machine."""

from __future__ import annotations

import platform
import re
import sys
from typing import Literal

from ...backend.im3d.shared.processes import query_nvidia

Accelerator = Literal["cpu", "mps", "cu126", "cu130"]
# The oldest NVIDIA driver that runs programs built with each CUDA release, and the oldest cards these are built for.
BUILDS: tuple[tuple[int, float, Accelerator], ...] = ((580, 7.5, "cu130"), (560, 5.0, "cu126"))


def detect() -> Accelerator:
    """The fastest build that this machine runs. An NVIDIA card whose driver is too old counts as none."""
    if sys.platform == "darwin":
        return "mps" if platform.machine() == "arm64" else "cpu"
    driver, capability = parse_cards(_ask_driver())
    fitting = (name for oldest, card, name in BUILDS if driver >= oldest and capability >= card)
    return next(fitting, "cpu")


def _ask_driver() -> str:
    """Version of the driver and compute capability of each card, a line each; "" when there is none."""
    return query_nvidia("driver_version,compute_cap", 10.0)


def parse_cards(text: str) -> tuple[int, float]:
    """The driver's major version and the best card's compute capability: (580, 8.9) of "580.95.05, 8.9".

    (0, 0.0) when there is no card, or nvidia-smi prints something else.
    """
    cards = [(int(driver), float(card)) for driver, card in re.findall(r"^\s*(\d+)\.[\d.]+,\s*(\d+\.\d+)", text, re.M)]
    return max(cards, default=(0, 0.0))
