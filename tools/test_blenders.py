"""Runs the add-on's tests in other Blenders: `python tools/test_blenders.py`, with versions for only some.

Each version is installed as bpy in an environment of its own, `.venv-blender-<version>`, and the same tests run against
its Python.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Those that are published as bpy for one Python; others are tried in real windows (tests/window/room.py).
VERSIONS = ("4.2", "4.5", "5.0")


def interpreter(version: str) -> Path:
    """A Python that has bpy of that version; installed at the first call."""
    folder = ROOT / f".venv-blender-{version}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not (folder / ".installed").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        packages = [f"bpy=={version}.*", "numpy<2"]
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        (folder / ".installed").touch()
    return python


def main(versions: list[str]) -> int:
    status = 0
    for version in versions:
        python = interpreter(version)
        print(f"Blender {version}: {python}", flush=True)
        environment = {**os.environ, "IM3D_TEST_BLENDER": str(python)}
        command = [sys.executable, "-m", "pytest", "-q", str(ROOT / "tests" / "blender")]
        status = subprocess.run(command, env=environment, cwd=ROOT).returncode or status
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(VERSIONS)))
