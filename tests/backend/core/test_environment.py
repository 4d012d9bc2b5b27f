"""What the process tells numba and OpenMP, and where numba's cache goes when the installation cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from im3d.core import environment
from im3d.shared import paths

ROOT = Path(__file__).parents[3]


@pytest.fixture
def no_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Only the temporary folder can be written."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    monkeypatch.setattr(environment.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(environment.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(environment, "_is_writable", lambda folder: str(folder).startswith(str(tmp_path)))
    monkeypatch.setenv("IM3D_HOME", "/proc/none")
    return tmp_path


def test_numba_keeps_its_own_place_where_it_can_write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    environment.prepare_process()
    assert os.environ["NUMBA_CACHE_DIR"] == ""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "chosen"))
    environment.prepare_process()
    assert os.environ["NUMBA_CACHE_DIR"] == str(tmp_path / "chosen")


def test_a_cache_that_cannot_be_written_is_replaced(no_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IM3D_HOME", str(no_place / "home"))
    environment.prepare_process()
    assert os.environ["NUMBA_CACHE_DIR"] == str(no_place / "home" / "cache" / "numba")
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/proc/none/numba")
    monkeypatch.setenv("IM3D_HOME", "/proc/none")
    environment.prepare_process()
    chosen = Path(os.environ["NUMBA_CACHE_DIR"])
    assert (chosen.parent, chosen.stat().st_mode & 0o777) == (no_place, 0o700)
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    environment.prepare_process()
    assert os.environ["NUMBA_CACHE_DIR"] == str(chosen)  # what one process compiled serves the next


@pytest.mark.skipif(sys.platform == "win32", reason="there every user has a temporary folder of his own")
@pytest.mark.parametrize("kind", ["anybody writes it", "a file", "a link"])
def test_compiled_code_is_not_taken_from_others(no_place: Path, kind: str) -> None:
    shared = no_place / f"im3d-{os.getuid()}"
    if kind == "anybody writes it":
        shared.mkdir()
        shared.chmod(0o777)
    elif kind == "a file":
        shared.touch()
    else:
        (no_place / "elsewhere").mkdir()
        shared.symlink_to(no_place / "elsewhere")
    environment.prepare_process()
    chosen = Path(os.environ["NUMBA_CACHE_DIR"])
    assert (chosen.parent, chosen.stat().st_mode & 0o777) == (no_place, 0o700)
    assert chosen not in (shared, no_place / "elsewhere")


def test_a_user_without_a_home_has_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("IM3D_HOME", "XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(paths.Path, "home", no_home)
    assert paths.models_folder().is_absolute()


CODE = """
import os
before = dict(os.environ)
{what}
changed = {{k for k, v in os.environ.items() if before.get(k) != v}}
print(sorted(changed))
"""


def _changed(what: str) -> list[str]:
    """The environment variables that running a piece of code in a fresh process changes."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "OMP_", "GOMP_"))}
    command = [sys.executable, "-c", CODE.format(what=what)]
    done = subprocess.run(command, cwd=ROOT / "tests", env=variables, capture_output=True, text=True, check=True)
    changed: list[str] = eval(done.stdout)
    return changed


def test_the_backend_sets_them_and_blender_s_process_stays_as_it_is() -> None:
    assert _changed("import im3d") == ["GOMP_SPINCOUNT", "NUMBA_THREADING_LAYER_PRIORITY", "OMP_WAIT_POLICY"]
    assert _changed("import conftest, extension.im3d_blender.client.queue, extension.im3d_blender.install") == []


def test_numba_takes_openmp_where_there_is_one() -> None:
    code = """
import im3d, numba
assert numba.config.THREADING_LAYER == "default"
assert numba.config.THREADING_LAYER_PRIORITY[0] == "omp"
assert sorted(numba.config.THREADING_LAYER_PRIORITY) == ["omp", "tbb", "workqueue"]
"""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")}
    subprocess.run([sys.executable, "-c", code], env=variables, check=True)
