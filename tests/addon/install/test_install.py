"""The backend's installer with the real uv, against an index on this machine that fails in every way."""

from __future__ import annotations

import dataclasses
import importlib
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from installing import CLI, answer, install, run
from package_index import PackageIndex

ROOT = Path(__file__).parents[3]
accelerator: Any = importlib.import_module("extension.im3d_blender.install.accelerator")
spec_module: Any = importlib.import_module("extension.im3d_blender.install.spec")


def test_one_button_and_the_second_press_does_nothing(tmp_path: Path, spec: Any, index: PackageIndex) -> None:
    home = tmp_path / "home with spaces"
    assert install.find_installed(home) is None
    done = run(home, spec)
    assert (done.failure, done.fraction) == (None, 1.0)
    found = install.find_installed(home)
    assert (found.version, found.accelerator, found.key) == ("1.2.3", "cpu", spec.key)
    assert answer(home) == {"torch": "1.0"}
    assert home.joinpath("backend", spec.key, "sources", "im3d_blender", "scene", "importing.py").exists()
    asked = list(index.asked)
    assert run(home, spec).failure is None
    assert index.asked == asked
    # Everything is under its home.
    assert {p.name for p in home.iterdir()} <= {"backend", "cache", "logs"}


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


def test_an_add_on_that_is_updated_meanwhile_loses_nothing(home: Path, spec: Any, monkeypatch: Any) -> None:
    steps = importlib.import_module("extension.im3d_blender.install.steps")
    check = steps.Steps._check

    def check_and_update(self: Any) -> None:
        check(self)
        (spec.sources / "im3d_blender" / "scene" / "importing.py").write_text("# newer")

    monkeypatch.setattr(steps.Steps, "_check", check_and_update)
    assert run(home, spec).failure is None
    assert answer(home) == {"torch": "1.0"}
    assert install.find_installed(home).key != spec.key  # so that the newer one can be installed


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


def test_a_build_without_a_known_hash_comes_after_the_others(home: Path, spec: Any, index: PackageIndex) -> None:
    lock = spec.lock.read_text().splitlines(keepends=True)
    spec.lock.write_text("".join(line for line in lock if "helper" in line or "helper" in lock[lock.index(line) - 1]))
    assert "torch" not in spec.lock.read_text()
    done = run(home, dataclasses.replace(spec, unhashed="torch==1.0"))
    assert done.failure is None
    assert [name.split("-")[0] for name in dict.fromkeys(index.asked)] == ["helper", "torch"]
    assert answer(home) == {"torch": "1.0"}


def test_a_download_is_as_far_as_the_disk_has_filled(
    tmp_path: Path, spec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([100_000, 81_000, 90_000, 0])
    installation = install.Installation(tmp_path, spec)
    steps = importlib.import_module("extension.im3d_blender.install.steps")
    monkeypatch.setattr(steps.Steps, "free", lambda self: next(free))
    step = steps.Step("packages", 0.5, lambda: None, download=10_000)
    installation._begin(steps.Steps(tmp_path, spec, threading.Event()), step, 0.1)
    seen = []
    for _ in range(3):
        installation._tick()
        seen.append(installation.poll().fraction)
    # The disk is used by others, too: what they give back is no way back, and the step ends only when it says so.
    assert seen == pytest.approx([0.6 - 0.5 * 0.02, 0.59, 0.59], abs=1e-6)
    assert installation.poll().message == "Downloading packages"


def test_the_driver_and_the_card_decide_which_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    two = "580.95.05, 6.1\n580.95.05, 8.9\n"
    parsed = [accelerator.parse_cards(text) for text in (two, "535.1, 7.5", "", "No devices", "580.95.05, [N/A]")]
    assert parsed == [(580, 8.9), (535, 7.5), (0, 0.0), (0, 0.0), (0, 0.0)]
    monkeypatch.setattr(accelerator.sys, "platform", "linux")
    # CUDA 13 leaves out the cards before Turing (7.5).
    wanted = {"": "cpu", "535.1, 8.9": "cpu", "565.1, 8.9": "cu126", "600.1, 12.0": "cu130", "580.9, 6.1": "cu126",
              "580.9, 3.5": "cpu"}  # fmt: skip
    for text, build in wanted.items():
        monkeypatch.setattr(accelerator, "_ask_driver", lambda text=text: text)
        assert accelerator.detect() == build, text


def test_what_this_machine_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec_module, "platform_name", lambda: "linux-x86_64")
    monkeypatch.setattr(spec_module, "detect", lambda: "cu130")
    chosen = spec_module.default_spec("1.0")
    assert (chosen.lock.name, chosen.torch_backend, chosen.unhashed) == ("linux-x86_64-cu130.txt", "", "")
    assert (chosen.sources, chosen.accelerator) == (ROOT, "cu130")
    assert 3e9 < chosen.download < chosen.space
    monkeypatch.setattr(spec_module, "platform_name", lambda: "linux-riscv64")
    with pytest.raises(LookupError, match="linux-riscv64"):
        spec_module.default_spec("1.0")


@pytest.mark.parametrize("chosen", ["the checkout", "the environment"])
def test_a_development_environment_is_a_backend_as_it_is(tmp_path: Path, chosen: str) -> None:
    environment = importlib.import_module("extension.im3d_blender.client.environment")
    python = environment.python_in(tmp_path / ".venv")
    python.parent.mkdir(parents=True)
    python.touch()
    folder = tmp_path if chosen == "the checkout" else tmp_path / ".venv"
    assert install.find_installed(folder) is None
    (tmp_path / ".venv" / "pyvenv.cfg").touch()
    assert install.find_installed(folder) is None  # im3d is not installed in it
    python.with_name("im3d.exe" if sys.platform == "win32" else "im3d").touch()
    found = install.find_installed(folder)
    assert (found.python, found.version, found.accelerator) == (python, "", "")
    assert environment.backend_command(folder)[0] == str(python)
