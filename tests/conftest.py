"""The add-on's modules that need no Blender, importable as `extension.im3d_blender…`, as Blender has them under the
extension's package; the two __init__ files that import bpy are left out."""

from __future__ import annotations

import sys
import types
from pathlib import Path

ROOT = Path(__file__).parents[1]

for name, folder in (("extension", ROOT), ("extension.im3d_blender", ROOT / "im3d_blender")):
    package = types.ModuleType(name)
    package.__path__ = [str(folder)]
    sys.modules[name] = package
