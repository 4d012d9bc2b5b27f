"""The locked requirements that the installer ships fit what the project declares."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[3]
LOCKS = ROOT / "im3d_blender" / "install" / "locks"
BUILDS = tomllib.loads((LOCKS / "builds.toml").read_text(encoding="utf-8"))
PLATFORMS = {
    "linux-x86_64": {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
    "windows-x86_64": {"sys_platform": "win32", "platform_system": "Windows", "platform_machine": "AMD64"},
    "macos-arm64": {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
}
LINE = re.compile(r"([a-z0-9.-]+)==([a-z0-9.+]+) --hash=sha256:[0-9a-f]{64}")


def locked(name: str) -> dict[str, str]:
    """The packages of a lock, each of which has exactly one hash, and their versions."""
    lines = (LOCKS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    matches = [LINE.fullmatch(line) for line in lines]
    assert [line for line, match in zip(lines, matches, strict=True) if match is None] == []
    return {match.group(1): match.group(2) for match in matches if match is not None}


def test_every_build_has_its_lock_and_every_accelerator_its_build() -> None:
    assert {f"{name}.txt" for name in BUILDS} | {"uv.txt"} == {path.name for path in LOCKS.glob("*.txt")}
    nvidia = {f"{system}-x86_64-{build}" for system in ("linux", "windows") for build in ("cpu", "cu126", "cu130")}
    assert set(BUILDS) == nvidia | {"macos-arm64-mps"}
    for build in BUILDS.values():
        # Unpacked the downloads are about twice as large, and models and jobs want room as well.
        assert 100 < build["download_mb"] < build["space_gb"] * 1000 / 3


@pytest.mark.parametrize("name", BUILDS)
def test_a_lock_fits_the_project(name: str) -> None:
    platform, _, accelerator = name.rpartition("-")
    packages = locked(name)
    assert len(packages) > 50
    if unhashed := BUILDS[name].get("unhashed"):
        assert "torch" not in packages
        packages["torch"] = unhashed.removeprefix("torch==")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    environment = {**default_environment(), **PLATFORMS[platform], "python_version": "3.11"}
    for wanted in map(Requirement, (*project["dependencies"], *filter(None, pinned))):
        gpu_only = wanted.name == "warp-lang" and not accelerator.startswith("cu")
        if (
            gpu_only
            or wanted.name == "torchvision"
            or not (wanted.marker is None or wanted.marker.evaluate(environment))
        ):
            assert wanted.name not in packages
        else:
            assert wanted.specifier.contains(packages[wanted.name]), f"{wanted}: run tools/lock.py"
    extras = {Requirement(line).name for extra in project["optional-dependencies"].values() for line in extra}
    assert {"bpy", "matplotlib", "pytest"} <= extras
    assert not extras & set(packages)


def test_the_locks_differ_by_nothing_but_torch() -> None:
    cuda = {package for package in locked("linux-x86_64-cu130") if package.startswith(("nvidia-", "cuda-"))}
    assert len(cuda) > 10
    without = {k: v for k, v in locked("linux-x86_64-cu130").items() if k not in {*cuda, "triton", "torch"}}
    assert locked("linux-x86_64-cu126") == without
    del without["warp-lang"]
    cpu = locked("linux-x86_64-cpu")
    assert cpu.pop("torch").partition("+")[0] == locked("linux-x86_64-cu130")["torch"]
    assert cpu == without


def test_the_lock_tool_and_the_project_name_the_same_uv() -> None:
    locked = (LOCKS / "uv.txt").read_text(encoding="utf-8").split()[0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert locked in project["optional-dependencies"]["dev"]
    assert f'UV = "{locked}"' in (ROOT / "tools" / "lock.py").read_text(encoding="utf-8")
