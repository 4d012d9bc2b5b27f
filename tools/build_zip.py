"""Builds and validates dist/im3d-<version>.zip, the extension that Blender installs.

    python tools/build_zip.py [FOLDER]

Uses Blender's own tool, which comes with bpy and needs no Blender to run.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Larger weights are downloaded, not shipped.
MAX_FILE_BYTES = 60_000_000


def build(folder: Path) -> Path:
    """Writes the archive into `folder` and returns its path.

    Raises:
        SystemExit: Blender's tool refused the build or the archive, or a file in it is too large.
    """
    manifest = tomllib.loads((ROOT / "blender_manifest.toml").read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"{manifest['id']}-{manifest['version']}.zip"
    archive.unlink(missing_ok=True)
    scripts = _bpy_scripts()
    tags = scripts / "modules" / "_bpy_internal" / "extensions" / "tags.py"
    tool = [sys.executable, str(scripts / "addons_core" / "bl_pkg" / "cli" / "blender_ext.py")]
    _run([*tool, "build", f"--source-dir={ROOT}", f"--output-dir={folder}"])
    _run([*tool, "validate", f"--valid-tags={tags}", str(archive)])
    with zipfile.ZipFile(archive) as opened:
        large = [info.filename for info in opened.infolist() if info.file_size > MAX_FILE_BYTES]
    if large:
        archive.unlink()
        raise SystemExit(f"too large for the archive: {', '.join(large)}")
    return archive


def _bpy_scripts() -> Path:
    """Blender's scripts folder inside the installed bpy."""
    spec = importlib.util.find_spec("bpy")
    if spec is None or spec.origin is None:
        raise SystemExit("bpy is not installed in this Python; run make setup")
    return next(Path(spec.origin).parent.glob("*/scripts"))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command[1:3])} failed:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    print(build(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist"))
