"""Running a function inside a Blender process. `IM3D_TEST_BLENDER` names another Python with bpy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
INSIDE = Path(__file__).parent / "inside.py"
PYTHON = os.environ.get("IM3D_TEST_BLENDER", sys.executable)


def inside(
    function: str,
    tmp_path: Path,
    *arguments: object,
    python: str = PYTHON,
    script: Path = INSIDE,
    variables: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Runs a function of inside.py, or of another script, under Blender and returns what it reports."""
    report = tmp_path / "report.json"
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"BLENDER_USER_RESOURCES": str(tmp_path / "user"), "IM3D_HOME": str(tmp_path / "home")}
    environment |= variables or {}
    (tmp_path / "user").mkdir(exist_ok=True)
    command = [python, "-I", str(script), function, str(report), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, cwd=tmp_path)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    result: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return result
