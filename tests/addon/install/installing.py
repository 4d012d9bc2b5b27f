"""Runs the installer to its end, and asks what it installed."""

from __future__ import annotations

import importlib
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil

install: Any = importlib.import_module("extension.im3d_blender.install")
environment: Any = importlib.import_module("extension.im3d_blender.client.environment")

CLI = """
import sys, json, torch, helper
if sys.argv[1] == "doctor":
    print(json.dumps({"torch": torch.version}))
elif sys.argv[1] == "serve":
    print('{"v":2,"id":"","type":"hello","product":"im3d","version":"0","device":"cpu"}')
"""


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
