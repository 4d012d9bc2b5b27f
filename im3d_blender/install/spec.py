"""What is installed, and from where."""

from __future__ import annotations

import hashlib
import platform
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from .accelerator import Accelerator, detect

LOCKS = Path(__file__).with_name("locks")
PYTHON = "3.11"
# The extension's root, which holds the backend's sources too.
SOURCES = Path(__file__).resolve().parents[2]
MEGABYTE = 10**6
GIGABYTE = 1 << 30


@dataclass(frozen=True)
class InstallSpec:
    """One installation; two with the same `key` are the same.

    Attributes:
        version: Of the add-on and the backend.
        sources: Folder that holds `backend/im3d` and `im3d_blender`.
        lock: Requirements with hashes, complete but for `unhashed`: nothing else is resolved.
        uv_lock: The same for the installer's tool.
        accelerator: The build of torch.
        torch_backend: Build that uv takes from the index of torch's makers; "" where the package index has it.
        unhashed: Requirement of which nobody told us the hash, with what only it needs: TLS alone vouches for it.
        host_python: A Python that can make environments: Blender's own.
        python: Python of the environment: a version that is fetched, or the path of an executable.
        download: Bytes that are fetched.
        space: Bytes that must be free.
        environment: Further environment variables of every command, e.g. another index.
    """

    version: str
    sources: Path
    lock: Path
    uv_lock: Path
    accelerator: Accelerator
    torch_backend: str = ""
    unhashed: str = ""
    host_python: str = sys.executable
    python: str = PYTHON
    download: int = 0
    space: int = 0
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Short name of the environment: what changes it changes the name."""
        digest = hashlib.sha256(self.lock.read_bytes() + self.uv_lock.read_bytes())
        facts = (self.version, self.accelerator, self.torch_backend, self.unhashed, self.python)
        digest.update(repr(facts).encode())
        for file in source_files(self.sources):
            digest.update(file.relative_to(self.sources).as_posix().encode() + file.read_bytes())
        return f"{self.version}-{self.accelerator}-{digest.hexdigest()[:10]}"


def source_files(sources: Path) -> list[Path]:
    """The files of the backend, and those of the add-on that it uses, in a fixed order."""
    folders = (sources / "backend" / "im3d", sources / "im3d_blender")
    return [p for folder in folders for p in sorted(folder.rglob("*")) if p.is_file() and "__pycache__" not in p.parts]


def default_spec(
    version: str, host_python: str = sys.executable, accelerator: Accelerator | None = None
) -> InstallSpec:
    """The installation for this machine.

    Args:
        accelerator: The build of torch; None asks the graphics driver, which takes up to a second.

    Raises:
        LookupError: There is none; the text names the platform, e.g. "linux-riscv64".
    """
    accelerator = accelerator or detect()
    name = f"{platform_name()}-{accelerator}"
    builds = tomllib.loads((LOCKS / "builds.toml").read_text(encoding="utf-8"))
    if name not in builds:
        raise LookupError(platform_name())
    build = builds[name]
    return InstallSpec(
        version=version,
        sources=SOURCES,
        lock=LOCKS / f"{name}.txt",
        uv_lock=LOCKS / "uv.txt",
        accelerator=accelerator,
        torch_backend=build.get("torch_backend", ""),
        unhashed=build.get("unhashed", ""),
        host_python=host_python,
        download=build["download_mb"] * MEGABYTE,
        space=build["space_gb"] * GIGABYTE,
    )


def platform_name() -> str:
    """As the lock files are named, e.g. "linux-x86_64"."""
    system = {"linux": "linux", "win32": "windows", "darwin": "macos"}.get(sys.platform, sys.platform)
    machine = {"amd64": "x86_64", "aarch64": "arm64"}.get(platform.machine().lower(), platform.machine().lower())
    return f"{system}-{machine}"
