"""Builds and validates the extension: dist/im3d-<version>.zip, one file for all platforms.

Blender's own tool does both; it lies in the bpy wheel and runs without Blender.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def blender_ext() -> tuple[Path, Path]:
    """Blender's extension tool and its list of valid tags, in the installed bpy.

    Raises:
        SystemExit: bpy is not installed.
    """
    spec = importlib.util.find_spec("bpy")
    if spec is None or spec.origin is None:
        raise SystemExit("bpy is not installed: run make setup with Python 3.11 or 3.13.")
    (scripts,) = Path(spec.origin).parent.glob("*/scripts")
    tool = scripts / "addons_core" / "bl_pkg" / "cli" / "blender_ext.py"
    (tags,) = [*scripts.glob("modules/_bpy_internal/extensions/tags.py"), *scripts.glob("modules/bl_extension_tags.py")]
    return tool, tags


def build(out: Path) -> Path:
    """Builds the zip into `out` and returns its path.

    Raises:
        subprocess.CalledProcessError: The tool refused the sources or the zip.
    """
    tool, tags = blender_ext()
    manifest = tomllib.loads((ROOT / "blender_manifest.toml").read_text(encoding="utf-8"))
    path = out / f"{manifest['id']}-{manifest['version']}.zip"
    out.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    validate = [sys.executable, str(tool), "validate", f"--valid-tags={tags}"]
    subprocess.run([*validate, str(ROOT)], check=True)
    subprocess.run(
        [sys.executable, str(tool), "build", f"--source-dir={ROOT}", f"--output-filepath={path}"], check=True
    )
    subprocess.run([*validate, str(path)], check=True)
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    print(build(parser.parse_args().out))
