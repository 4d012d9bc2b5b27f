"""Installing the backend: one button, no compiler, nothing outside its home. No bpy here.

    home/backend/current.json        which environment is in use; written last, in one piece
    home/backend/<environment>/      a Python environment, the backend's sources, and `steps.json`
    home/backend/uv/, python/        the installer's tools
    home/cache/                      downloads
    home/models/, home/jobs/         never touched by an installation

An installation is made beside the one in use and takes its place when it has answered. What is interrupted goes on
where it stopped; what fails leaves the old one as it was.

    accelerator   which build of torch suits this machine
    spec          what is installed, and from where
    locks/        the wheels of each platform and build of torch, with hashes; tools/lock.py writes them
    steps         the steps, each a command with a deadline
    failures      why one failed, in sentences
    installation  running them on a thread, looked at from Blender's main thread
"""

from __future__ import annotations

from .installation import Installation, Installed, InstallProgress, find_installed
from .spec import InstallSpec, default_spec

__all__ = [
    "InstallProgress",
    "InstallSpec",
    "Installation",
    "Installed",
    "default_spec",
    "find_installed",
]
