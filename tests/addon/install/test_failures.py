"""What the installer says when it cannot: no network, no permission, no space, foreign certificates, half a Python."""

from __future__ import annotations

import dataclasses
import errno
import importlib
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from installing import answer, run
from package_index import ROOT_CERTIFICATE, PackageIndex

failures: Any = importlib.import_module("extension.im3d_blender.install.failures")
steps_module: Any = importlib.import_module("extension.im3d_blender.install.steps")


@pytest.fixture
def inspected(wheels: Path) -> Iterator[PackageIndex]:
    """An index behind a network that shows certificates of its own."""
    server = PackageIndex(wheels, tls=True)
    yield server
    server.close()


def test_no_network_no_permission_no_space(tmp_path: Path, home: Path, spec: Any, index: PackageIndex) -> None:
    offline = run(home, spec, online=False)
    assert (offline.failure.code, index.asked) == ("offline", [])
    for first_home, variable in ((tmp_path / "other", "PIP_INDEX_URL"), (home, "UV_DEFAULT_INDEX")):
        nowhere = {**spec.environment, variable: "http://127.0.0.1:9/simple/"}
        assert run(first_home, dataclasses.replace(spec, environment=nowhere)).failure.code == "network"
    greedy = run(home, dataclasses.replace(spec, space=1 << 60))
    assert greedy.failure.code == "space"
    blocked = tmp_path / "file"
    blocked.touch()
    assert run(blocked / "home", spec).failure.code == "place"
    assert index.asked == []


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
def test_a_disk_that_fills_up_is_named(tmp_path: Path, spec: Any) -> None:
    steps = steps_module.Steps(tmp_path / "home", spec, threading.Event())
    steps.prepare()
    write = f"open({str(tmp_path / 'big')!r}, 'wb').write(bytes(5_000_000))"
    with pytest.raises(steps_module.InstallError) as raised:
        steps._run(["/bin/sh", "-c", f'ulimit -f 2000; exec "{sys.executable}" -c "$0"', write])
    assert raised.value.failure.code == "disk"


def through(spec: Any, index: PackageIndex, **variables: str) -> Any:
    """The specification with all downloads through an index, and certificates as a user's machine has them."""
    here = {"PIP_INDEX_URL": index.url, "UV_DEFAULT_INDEX": index.url, "PIP_CERT": "", "SSL_CERT_DIR": ""}
    return dataclasses.replace(spec, environment={**spec.environment, "SSL_CERT_FILE": "", **here, **variables})


@pytest.mark.parametrize("program", ["pip", "uv"])
def test_a_network_with_certificates_of_its_own(
    tmp_path: Path, home: Path, spec: Any, inspected: PackageIndex, program: str
) -> None:
    first = home if program == "uv" else tmp_path / "other"
    failed = run(first, through(spec, inspected))
    log = (first / "logs" / "install.log").read_text()
    assert failed.failure.code == "certificate", log[-2000:]
    assert failed.failure.log == str(first / "logs" / "install.log")
    assert inspected.asked == []
    if program == "uv":
        assert log.count("UnknownIssuer") == 1
        assert "certificates were loaded from the system" in log  # asked next; there are none here
        known = through(spec, inspected, SSL_CERT_FILE=str(ROOT_CERTIFICATE))
        assert run(first, known).failure is None
        assert answer(first) == {"torch": "1.0"}


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in for uv")
def test_the_system_s_certificates_are_tried_by_themselves(tmp_path: Path, spec: Any) -> None:
    home = tmp_path / "home"
    uv = home / "backend" / "uv" / "bin" / "uv"
    uv.parent.mkdir(parents=True)
    words = "  cause: invalid peer certificate: UnknownIssuer"
    uv.write_text(f'#!/bin/sh\n[ "$UV_SYSTEM_CERTS" = 1 ] && exit 0\necho "{words}"\nexit 2\n')
    uv.chmod(0o755)
    steps = steps_module.Steps(home, spec, threading.Event())
    steps.prepare()
    steps._make_environment()
    assert (home / "logs" / "install.log").read_text().count("UnknownIssuer") == 1
    steps._get_packages()  # known by now
    assert (home / "logs" / "install.log").read_text().count("UnknownIssuer") == 1


# A new environment's Python is asked for ensurepip; Debian's venv looks before it asks.
LAME = {
    "taken out": "raise subprocess.CalledProcessError(1, [new.env_exec_cmd, '-m', 'ensurepip', '--upgrade'])",
    "Debian": "sys.exit('The virtual environment was not created successfully because ensurepip is not available.')",
}


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in for Python")
@pytest.mark.parametrize("kind", LAME)
def test_a_python_without_ensurepip(tmp_path: Path, spec: Any, kind: str) -> None:
    code = tmp_path / "lame.py"
    code.write_text(
        f"import subprocess, sys, venv\ndef _setup_pip(self, new):\n    {LAME[kind]}\n"
        "venv.EnvBuilder._setup_pip = _setup_pip\nsys.argv.pop(1)\nsys.argv.pop(1)\n"
        "try:\n    venv.main()\nexcept Exception as error:\n    sys.exit(f'Error: {error}')\n"
    )
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{code}" "$@"\n')
    python.chmod(0o755)
    failed = run(tmp_path / "home", dataclasses.replace(spec, host_python=str(python)))
    log = tmp_path / "home" / "logs" / "install.log"
    assert failed.failure.code == "ensurepip", log.read_text()
    assert "python3-venv" in failed.failure.hint
    assert Path(failed.failure.log) == log


@pytest.mark.parametrize("step", ["at once", "in the middle"])
def test_a_disk_that_cannot_be_written(
    tmp_path: Path, home: Path, spec: Any, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    if step == "at once":

        def refuse(path: Path, content: object) -> None:
            raise OSError(errno.EROFS, "Read-only file system", str(path))

        monkeypatch.setattr(steps_module, "write_json", refuse)
        monkeypatch.setattr(steps_module.tempfile, "gettempdir", lambda: str(tmp_path))
        failed = run(home, spec)
        assert Path(failed.failure.log).parent == tmp_path  # not on that disk
        assert "Read-only" in Path(failed.failure.log).read_text()
    else:
        steps = steps_module.Steps(home, spec, threading.Event())
        steps.prepare()
        words = "error: failed to create directory `/mnt/im3d`: Read-only file system (os error 30)"
        with pytest.raises(failures.InstallError) as raised:
            steps._run([sys.executable, "-c", f"import sys; print({words!r}); sys.exit(2)"])
        failed = raised.value
    assert failed.failure.code == "place"
    assert failed.failure.message == "The folder cannot be written."


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs Linux's mount namespaces")
def test_a_read_only_mount_is_named(tmp_path: Path) -> None:
    """The real thing, where this user may mount."""
    home, seen = tmp_path / "home", tmp_path / "seen"
    (home / "backend").mkdir(parents=True)
    code = f"""
import sys, threading, dataclasses, importlib
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import conftest
from pathlib import Path
steps = importlib.import_module("extension.im3d_blender.install.steps")
spec = importlib.import_module("extension.im3d_blender.install.spec")
spec.detect = lambda: "cpu"
try:
    steps.Steps(Path({str(home)!r}), spec.default_spec("1.0"), threading.Event()).prepare()
except Exception as error:
    Path({str(seen)!r}).write_text(error.failure.code)
"""
    script = f"mount --bind '{home}' '{home}' && mount -o remount,ro,bind '{home}' && exec '{sys.executable}' -c \"$0\""
    done = subprocess.run(["unshare", "-m", "sh", "-c", script, code], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"may not mount here: {done.stderr[-200:]}")
    assert seen.read_text() == "place"


def test_every_sign_has_its_sentence() -> None:
    said = {
        "error: No space left on device (os error 28)": "disk",
        "PermissionError: [WinError 5] Access is denied: 'C:\\\\im3d'": "place",
        "Hash mismatch for torch": "hash",
        "  cause: invalid peer certificate: UnknownIssuer\nerror sending request": "certificate",
        "SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] unable to get local issuer": "certificate",
        "error: Failed to fetch: `https://…`": "network",
    }
    assert {words: failures.explained(words, "").failure.code for words in said} == said
    unknown = failures.explained("something\n  it is broken  \n\n", "log").failure
    assert (unknown.code, unknown.message, unknown.log) == ("install", "it is broken", "log")
    assert failures.explained("", "").failure.message == "A step failed."
