"""Writes the locked requirements that the installer ships: one file a platform, every version and hash fixed.

    python tools/lock.py            # needs uv on the PATH

Run it when pyproject.toml or requirements.txt changes, and try the installer afterwards.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "im3d_blender" / "install" / "locks"
UV = "uv==0.13.9"
PYTHON = "3.11"
PLATFORMS = {
    "linux-x86_64": "x86_64-manylinux_2_28",
    "windows-x86_64": "x86_64-pc-windows-msvc",
    "macos-arm64": "aarch64-apple-darwin",
}


def compile_lock(name: str, platform: str) -> None:
    """Resolves the backend's requirements for a platform."""
    command = ["uv", "pip", "compile", "pyproject.toml", "-c", "requirements.txt", "--python-version", PYTHON]
    command += ["--python-platform", platform, "--only-binary", ":all:", "--generate-hashes", "--no-header"]
    command += ["--no-annotate", "--no-emit-index-url", "--quiet", "-o", str(LOCKS / f"{name}.txt")]
    # torch's wheels for macOS need 14, more than uv assumes.
    subprocess.run(command, cwd=ROOT, env={**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"}, check=True)


def lock_uv() -> None:
    """Fixes uv itself, for all platforms."""
    command = ["uv", "pip", "compile", "-", "--generate-hashes", "--no-header", "--no-annotate", "--universal"]
    command += ["--no-emit-index-url", "--quiet", "-o", str(LOCKS / "uv.txt")]
    subprocess.run(command, cwd=ROOT, input=UV, text=True, check=True)


if __name__ == "__main__":
    LOCKS.mkdir(parents=True, exist_ok=True)
    lock_uv()
    for name, platform in PLATFORMS.items():
        compile_lock(name, platform)
        print(LOCKS / f"{name}.txt")
