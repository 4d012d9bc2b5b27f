"""What the tests of the installer share: a home, a specification, and an index of packages on this machine."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from installing import CLI
from package_index import PackageIndex, lock_of, make_wheel, wheel_of_installed

spec_module: Any = importlib.import_module("extension.im3d_blender.install.spec")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    wheel_of_installed(folder, "uv")
    for name in ("torch", "helper"):
        make_wheel(folder, name)
    return folder


@pytest.fixture
def index(wheels: Path) -> Iterator[PackageIndex]:
    server = PackageIndex(wheels)
    yield server
    server.close()


@pytest.fixture(scope="module")
def uv(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Path:
    """The installer's tool, made once: with pip it takes five seconds."""
    folder = tmp_path_factory.mktemp("tool") / "uv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (wheel,) = wheels.glob("uv-*.whl")
    python = folder.joinpath("Scripts", "python.exe") if sys.platform == "win32" else folder / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "uv", "pip", "install", "-q", "--python", str(python), str(wheel)], check=True
    )
    (folder / "lock.txt").write_text(lock_of(wheel))
    return folder


@pytest.fixture
def home(tmp_path: Path, uv: Path) -> Path:
    """A home in which the first step is done already."""
    (tmp_path / "home" / "backend").mkdir(parents=True)
    (tmp_path / "home" / "backend" / "uv").symlink_to(uv, target_is_directory=True)
    return tmp_path / "home"


@pytest.fixture
def spec(tmp_path: Path, wheels: Path, index: PackageIndex) -> Any:
    sources = tmp_path / "sources"
    (sources / "backend" / "im3d").mkdir(parents=True)
    (sources / "im3d_blender" / "scene").mkdir(parents=True)
    (sources / "backend" / "im3d" / "__init__.py").touch()
    (sources / "backend" / "im3d" / "cli.py").write_text(CLI)
    (sources / "im3d_blender" / "scene" / "importing.py").touch()
    (uv,) = wheels.glob("uv-*.whl")
    (tmp_path / "uv.txt").write_text(lock_of(uv))
    (tmp_path / "lock.txt").write_text(lock_of(*sorted(wheels.glob("torch-*")), *sorted(wheels.glob("helper-*"))))
    variables = {"UV_DEFAULT_INDEX": index.url, "PIP_INDEX_URL": index.url, "UV_HTTP_RETRIES": "0", "PIP_RETRIES": "0"}
    # Nothing of this machine's own configuration takes part.
    variables |= {
        "UV_FIND_LINKS": "",
        "PIP_FIND_LINKS": "",
        "UV_INDEX": "",
        "UV_EXTRA_INDEX_URL": "",
        "PIP_EXTRA_INDEX_URL": "",
    }
    return spec_module.InstallSpec(
        version="1.2.3",
        sources=sources,
        lock=tmp_path / "lock.txt",
        uv_lock=tmp_path / "uv.txt",
        accelerator="cpu",
        host_python=sys.executable,
        python=sys.executable,
        space=1,
        environment=variables,
    )
