"""What is installed, and from where."""

from __future__ import annotations

import hashlib
import platform
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

from .accelerator import Accelerator, detect

LOCKS = Path(__file__).with_name("locks")
PYTHON = "3.11"
# The extension's root, which holds the backend's sources too.
SOURCES = Path(__file__).resolve().parents[2]
# Packages that come from torch's own builds when the default ones do not suit the accelerator.
TORCH = re.compile(r"^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==")
# What only an NVIDIA card can use.
GPU_ONLY = re.compile(r"^warp-lang==")
GIGABYTE = 1 << 30


@dataclass(frozen=True)
class InstallSpec:
    """One installation; two with the same `key` are the same.

    Attributes:
        version: Of the add-on and the backend.
        sources: Folder that holds `backend/im3d` and `im3d_blender`.
        lock: Requirements with hashes, complete: nothing else is resolved.
        uv_lock: The same for the installer's tool.
        accelerator: The build of torch.
        torch_backend: Passed to uv where the lock's torch does not suit the accelerator; "" takes the lock's.
        host_python: A Python that can make environments: Blender's own.
        python: Python of the environment: a version that is fetched, or the path of an executable.
        space: Bytes that must be free.
        environment: Further environment variables of every command, e.g. another index.
    """

    version: str
    sources: Path
    lock: Path
    uv_lock: Path
    accelerator: Accelerator
    torch_backend: str = ""
    host_python: str = sys.executable
    python: str = PYTHON
    space: int = 12 * GIGABYTE
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Short name of the environment: what changes it changes the name."""
        digest = hashlib.sha256(self.lock.read_bytes() + self.uv_lock.read_bytes())
        digest.update(repr((self.version, self.accelerator, self.torch_backend, self.python)).encode())
        for file in source_files(self.sources):
            digest.update(file.relative_to(self.sources).as_posix().encode() + file.read_bytes())
        return f"{self.version}-{self.accelerator}-{digest.hexdigest()[:10]}"


def source_files(sources: Path) -> list[Path]:
    """The files of the backend, and those of the add-on that it uses, in a fixed order."""
    folders = (sources / "backend" / "im3d", sources / "im3d_blender")
    return [p for folder in folders for p in sorted(folder.rglob("*")) if p.is_file() and "__pycache__" not in p.parts]


def default_spec(version: str, host_python: str = sys.executable) -> InstallSpec:
    """The installation for this machine.

    Raises:
        LookupError: There is none; the text is a sentence for the user.
    """
    lock = LOCKS / f"{platform_name()}.txt"
    if not lock.is_file():
        raise LookupError(f"The backend cannot be installed on {platform_name()}.")
    accelerator = detect()
    # Linux's default build is for CUDA 13, Windows' for the processor, and macOS' for Metal.
    default = {"linux": "cu130", "win32": "cpu", "darwin": "mps"}[sys.platform]
    return InstallSpec(
        version=version,
        sources=SOURCES,
        lock=lock,
        uv_lock=LOCKS / "uv.txt",
        accelerator=accelerator,
        torch_backend="" if accelerator == default else accelerator,
        host_python=host_python,
        space=(14 if accelerator.startswith("cu") else 5) * GIGABYTE,
    )


def platform_name() -> str:
    """As the lock files are named, e.g. "linux-x86_64"."""
    system = {"linux": "linux", "win32": "windows", "darwin": "macos"}.get(sys.platform, sys.platform)
    machine = {"amd64": "x86_64", "aarch64": "arm64"}.get(platform.machine().lower(), platform.machine().lower())
    return f"{system}-{machine}"


def without_gpu_packages(lock: str) -> str:
    """A lock without what is of no use on a machine whose NVIDIA card is missing or too old."""
    return "\n".join(b for b in re.split(r"\n(?=\S)", lock.strip()) if not GPU_ONLY.match(b)) + "\n"


def without_torch(lock: str) -> tuple[str, list[str]]:
    """A lock without torch and what only its default build needs, and torch's own requirements ("torch==2.14.1", …)."""
    blocks = re.split(r"\n(?=\S)", lock.strip())
    torch = [block.split()[0] for block in blocks if re.match(r"^(torch|torchvision)==", block)]
    kept = [block for block in blocks if not TORCH.match(block)]
    return "\n".join(kept) + "\n", torch
