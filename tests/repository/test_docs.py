"""The examples of docs/guides/scripting.md are run as they stand there; only the amount of work is made smaller."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from im3d.settings import Settings, allowed

ROOT = Path(__file__).parents[2]
SMALL = ("fit.iterations=40", "fit.size=64", "fit.points=900", "fit.max_gaussians=1200", "mesh.grid=40",
         "mesh.virtual_views=4", "mesh.faces=2000", "mesh.outline_rounds=1", "texture.size=128",
         "texture.normal_map=false", "texture.polish=1")  # fmt: skip


def blocks(language: str) -> list[str]:
    text = (ROOT / "docs" / "guides" / "scripting.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def settings_table() -> str:
    """Every setting with its default and its range, as docs/reference/cli.md has it."""
    rows = ["| setting | default | may be |", "|---|---|---|"]
    for section in dataclasses.fields(Settings):
        values = getattr(Settings(), section.name)
        hints = get_type_hints(type(values), include_extras=True)
        for name, default in dataclasses.asdict(values).items():
            shown = str(default).lower() if isinstance(default, bool) else f"{default}"
            rows.append(f"| `{section.name}.{name}` | {shown} | {allowed(hints[name])} |")
    return "\n".join(rows)


def test_the_settings_page_has_every_setting_with_its_range() -> None:
    assert settings_table() in (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_commands_of_the_scripting_page(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (table,) = blocks("csv")
    (tmp_path / "props.csv").write_text(table, encoding="utf-8")
    environment = {**os.environ, "IM3D_HOME": str(tmp_path / "home"), "PATH": "/nonexistent"}
    answers = []
    for command in blocks("sh"):
        program, *arguments = shlex.split(command)
        assert program == "im3d"
        smaller = [] if arguments[0] == "resume" else [p for value in SMALL for p in ("--set", value)]
        done = subprocess.run(
            [sys.executable, "-m", "im3d.cli", *arguments, *smaller, "--blender", "/none"],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        answers.append(json.loads(done.stdout.splitlines()[-1]))
    assert [a["status"] for a in answers] == ["done"] * 3
    assert answers[0]["mesh"] == answers[1]["mesh"] == str(tmp_path / "out" / "playhouse" / "mesh.glb")
    assert (answers[2]["done"], answers[2]["rows"]) == (2, 2)


def test_the_python_examples_use_what_exists() -> None:
    """They are run in Blender by tests/blender; here that no property is named that the operator lacks."""
    source = (ROOT / "im3d_blender" / "ops" / "generate.py").read_text(encoding="utf-8")
    properties = set(re.findall(r"^    (\w+): bpy\.props", source, re.MULTILINE))
    used = set(re.findall(r"(\w+)=", "".join(b for b in blocks("python") if "im3d.generate" in b)))
    assert used <= properties
    listed = re.search(
        r"Every input of the panel is a property: (.*?)\n\n",
        (ROOT / "docs" / "guides" / "scripting.md").read_text(),
        re.DOTALL,
    )
    assert listed is not None
    assert set(re.findall(r"`(\w+)`", listed.group(1))) <= properties
