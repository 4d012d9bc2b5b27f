"""Which build of torch suits this machine."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from typing import Literal

Accelerator = Literal["cpu", "mps", "cu126", "cu130"]
# The oldest NVIDIA driver that runs programs built with each CUDA release.
DRIVERS: tuple[tuple[int, Accelerator], ...] = ((580, "cu130"), (560, "cu126"))


def detect() -> Accelerator:
    """The fastest build that this machine runs. An NVIDIA card whose driver is too old counts as none."""
    if sys.platform == "darwin":
        return "mps" if platform.machine() == "arm64" else "cpu"
    driver = _nvidia_driver()
    return next((name for oldest, name in DRIVERS if driver >= oldest), "cpu")


def _nvidia_driver() -> int:
    """Major version of the NVIDIA driver, 0 when there is none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    return parse_driver(done.stdout) if done.returncode == 0 else 0


def parse_driver(text: str) -> int:
    """The major version in what nvidia-smi prints, e.g. 580 of "580.95.05"; 0 when it prints something else."""
    found = re.match(r"\s*(\d+)\.", text)
    return int(found.group(1)) if found else 0
