"""The locked requirements that the installer ships fit what the project declares."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "im3d_blender" / "install" / "locks"
PLATFORMS = {
    "linux-x86_64": {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
    "windows-x86_64": {"sys_platform": "win32", "platform_system": "Windows", "platform_machine": "AMD64"},
    "macos-arm64": {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
}


@pytest.mark.parametrize("name", PLATFORMS)
def test_a_lock_fits_the_project(name: str) -> None:
    blocks = re.split(r"\n(?=\S)", (LOCKS / f"{name}.txt").read_text(encoding="utf-8").strip())
    locked = {}
    for block in blocks:
        package, version = block.split()[0].split("==")
        locked[package] = version
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", block), package
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    environment = {**default_environment(), **PLATFORMS[name], "python_version": "3.11"}
    for text in (*project["dependencies"], *filter(None, pinned)):
        wanted = Requirement(text)
        if wanted.marker is None or wanted.marker.evaluate(environment):
            assert wanted.specifier.contains(locked[wanted.name]), f"{text}: run tools/lock.py"
    assert not {"bpy", "pytest", "mypy", "moderngl"} & set(locked)


def test_the_lock_tool_and_the_project_name_the_same_uv() -> None:
    locked = (LOCKS / "uv.txt").read_text(encoding="utf-8").split()[0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert locked in project["optional-dependencies"]["dev"]
    assert f'UV = "{locked}"' in (ROOT / "tools" / "lock.py").read_text(encoding="utf-8")
