"""The backend's installer with the real uv, against an index on this machine that fails in every way."""

from __future__ import annotations

import dataclasses
import importlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from package_index import PackageIndex, lock_of, make_wheel, wheel_of_installed

ROOT = Path(__file__).parents[2]
install: Any = importlib.import_module("extension.im3d_blender.install")
accelerator: Any = importlib.import_module("extension.im3d_blender.install.accelerator")
spec_module: Any = importlib.import_module("extension.im3d_blender.install.spec")
steps_module: Any = importlib.import_module("extension.im3d_blender.install.steps")
environment: Any = importlib.import_module("extension.im3d_blender.link.environment")

CLI = """
import sys, json, torch, helper
if sys.argv[1] == "doctor":
    print(json.dumps({"torch": torch.version}))
elif sys.argv[1] == "serve":
    print('{"v":2,"id":"","type":"hello","product":"im3d","version":"0","device":"cpu"}')
"""


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
    (sources / "im3d_blender").mkdir()
    (sources / "backend" / "im3d" / "__init__.py").touch()
    (sources / "backend" / "im3d" / "cli.py").write_text(CLI)
    (sources / "im3d_blender" / "importing.py").touch()
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


def run(home: Path, spec: Any, **options: Any) -> Any:
    """Installs to the end and returns the last progress."""
    installation = install.Installation(home, spec, **options)
    installation.start()
    seen = []
    while not installation.poll().done:
        seen.append(installation.poll().fraction)
        time.sleep(0.01)
    assert seen == sorted(seen)
    assert not [c for c in psutil.Process().children(recursive=True) if str(home) in " ".join(c.cmdline())]
    return installation.poll()


def answer(home: Path) -> dict[str, Any]:
    """What the installed backend's doctor says."""
    command = environment.backend_command(home)
    command[command.index("serve")] = "doctor"
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_one_button_and_the_second_press_does_nothing(tmp_path: Path, spec: Any, index: PackageIndex) -> None:
    home = tmp_path / "home with spaces"
    assert install.find_installed(home) is None
    done = run(home, spec)
    assert (done.failure, done.fraction) == (None, 1.0)
    found = install.find_installed(home)
    assert (found.version, found.accelerator, found.key) == ("1.2.3", "cpu", spec.key)
    assert answer(home) == {"torch": "1.0"}
    assert home.joinpath("backend", spec.key, "sources", "im3d_blender", "importing.py").exists()
    asked = list(index.asked)
    assert run(home, spec).failure is None
    assert index.asked == asked
    # Everything is under its home.
    assert {p.name for p in home.iterdir()} <= {"backend", "cache", "logs"}

    (home / "models").mkdir()
    (home / "jobs").mkdir()
    install.uninstall(home)
    assert sorted(p.name for p in home.iterdir()) == ["jobs", "models"]
    assert install.find_installed(home) is None
    install.uninstall(home, keep_models=False)
    assert [p.name for p in home.iterdir()] == ["jobs"]


@pytest.mark.parametrize(
    ("wheel", "fault", "codes"),
    [
        ("uv", "cut", {"network", "hash"}),  # some versions of pip find it out by the hash alone
        ("uv", "corrupt", {"hash"}),
        ("torch", "cut", {"network"}),
        ("helper", "corrupt", {"hash"}),
    ],
)
def test_what_fails_goes_on_where_it_stopped(
    home: Path, spec: Any, index: PackageIndex, wheels: Path, wheel: str, fault: str, codes: set[str]
) -> None:
    if wheel == "uv":
        (home / "backend" / "uv").unlink()
    (name,) = (p.name for p in wheels.glob(f"{wheel}-*.whl"))
    index.faults[name] = fault
    failed = run(home, spec)
    log = (home / "logs" / "install.log").read_text()
    assert failed.done
    assert failed.failure.code in codes, log[-2000:]
    assert install.find_installed(home) is None
    index.faults.clear()
    index.asked.clear()
    assert run(home, spec).failure is None
    assert answer(home) == {"torch": "1.0"}
    if wheel != "uv":
        assert not [a for a in index.asked if a.startswith("uv-")]


def test_no_network_no_permission_no_space(tmp_path: Path, home: Path, spec: Any, index: PackageIndex) -> None:
    offline = run(home, spec, online=False)
    assert (offline.failure.code, index.asked) == ("offline", [])
    for first_home, variable in ((tmp_path / "other", "PIP_INDEX_URL"), (home, "UV_DEFAULT_INDEX")):
        nowhere = {**spec.environment, variable: "http://127.0.0.1:9/simple/"}
        assert run(first_home, dataclasses.replace(spec, environment=nowhere)).failure.code == "network"
    greedy = run(home, dataclasses.replace(spec, space=1 << 60))
    assert greedy.failure.code == "disk"
    assert "GB" in greedy.failure.message
    blocked = tmp_path / "file"
    blocked.touch()
    assert run(blocked / "home", spec).failure.code == "disk"
    assert index.asked == []


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
def test_a_disk_that_fills_up_is_named(tmp_path: Path, spec: Any) -> None:
    steps = steps_module.Steps(tmp_path / "home", spec, threading.Event())
    steps.prepare()
    write = f"open({str(tmp_path / 'big')!r}, 'wb').write(bytes(5_000_000))"
    with pytest.raises(steps_module.InstallError) as raised:
        steps._run(["/bin/sh", "-c", f'ulimit -f 2000; exec "{sys.executable}" -c "$0"', write])
    assert raised.value.failure.code == "disk"


def test_an_upgrade_that_fails_leaves_the_old_one(home: Path, spec: Any) -> None:
    assert run(home, spec).failure is None
    old = install.find_installed(home)
    cli = spec.sources / "backend" / "im3d" / "cli.py"
    cli.write_text("raise SystemExit('it is broken')")
    newer = dataclasses.replace(spec, version="2.0.0")
    failed = run(home, newer)
    assert (failed.failure.code, failed.failure.message) == ("install", "it is broken")
    assert install.find_installed(home) == old
    assert answer(home) == {"torch": "1.0"}
    cli.write_text("import torch")  # starts, but never says hello
    assert run(home, newer).failure.message == "The new backend does not answer."
    assert answer(home) == {"torch": "1.0"}
    cli.write_text(CLI)
    assert run(home, newer).failure is None
    assert install.find_installed(home).version == "2.0.0"
    kept = {p.name for p in (home / "backend").iterdir() if p.is_dir()}
    assert old.key not in kept
    assert newer.key in kept


def test_stopping_is_heard_at_once_and_loses_nothing(home: Path, spec: Any, index: PackageIndex, wheels: Path) -> None:
    (name,) = (p.name for p in wheels.glob("torch-*.whl"))
    index.faults[name] = "stall"
    installation = install.Installation(home, spec)
    installation.start()
    end = time.monotonic() + 60
    while name not in index.asked:
        assert time.monotonic() < end, installation.poll()
        time.sleep(0.01)
    installation.cancel()
    stopped = installation.wait(10)
    assert (stopped.done, stopped.failure.code) == (True, "cancelled")
    index.faults.clear()
    assert run(home, spec).failure is None


def test_torch_is_taken_out_of_a_lock() -> None:
    for lock in sorted((ROOT / "im3d_blender" / "install" / "locks").glob("*-*.txt")):
        text, torch = spec_module.without_torch(lock.read_text())
        assert [t.split("==")[0] for t in torch] == ["torch", "torchvision"]
        assert "nvidia-" not in text.replace("nvidia-ml-py", "")
        assert "\ndiffusers==" in text
        assert text.count("--hash") > 100
        # Every requirement has a hash, or uv would refuse the file.
        names = [line for line in lock.read_text().splitlines() if line and line[0] not in " #"]
        assert len(names) > 50
        assert all(line.endswith("\\") for line in names)


def test_what_only_a_gpu_uses_is_taken_out_of_a_lock() -> None:
    locks = ROOT / "im3d_blender" / "install" / "locks"
    for name, held in (("linux-x86_64", 1), ("windows-x86_64", 1), ("macos-arm64", 0)):
        lock = (locks / f"{name}.txt").read_text(encoding="utf-8")
        assert lock.count("warp-lang==") == held
        kept = spec_module.without_gpu_packages(lock)
        assert "warp-lang" not in kept
        assert kept.count("==") == lock.count("==") - held


def test_the_driver_decides_which_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [accelerator.parse_driver(t) for t in ("580.95.05\n", "535.1", "", "No devices")] == [580, 535, 0, 0]
    monkeypatch.setattr(accelerator.sys, "platform", "linux")
    for driver, expected in ((0, "cpu"), (535, "cpu"), (565, "cu126"), (600, "cu130")):
        monkeypatch.setattr(accelerator, "_nvidia_driver", lambda d=driver: d)
        assert accelerator.detect() == expected
    chosen = spec_module.default_spec("1.0")
    if sys.platform == "linux" and spec_module.platform_name() == "linux-x86_64":
        assert (chosen.accelerator, chosen.torch_backend) == ("cu130", "")
        assert chosen.sources == ROOT
