"""Builds a static extension repository: dist/repository with the zip, index.json, and a page to drag the add-on from.

Served by any web server, its index.json is what *Preferences › Get Extensions › Repositories › Add Remote Repository*
asks for; links on the page can be dragged into Blender's window.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from build_zip import ROOT, blender_ext, build

OUT = ROOT / "dist" / "repository"


def build_repository(out: Path = OUT) -> Path:
    """Builds the repository anew and returns its folder.

    Raises:
        subprocess.CalledProcessError: Blender's tool refused something.
    """
    shutil.rmtree(out, ignore_errors=True)
    build(out)
    tool, _ = blender_ext()
    subprocess.run([sys.executable, str(tool), "server-generate", f"--repo-dir={out}", "--html"], check=True)
    return out


if __name__ == "__main__":
    print(build_repository())
