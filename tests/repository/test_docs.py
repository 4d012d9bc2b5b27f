"""The documentation: parts made from the code, links, and examples, which are run as they stand there."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from im3d.cli.main import COMMANDS, LAB_COMMANDS
from im3d.settings import Settings

ROOT = Path(__file__).parents[2]
SCRIPTING = ROOT / "docs" / "guides" / "scripting.md"
PAGES = SimpleNamespace(**runpy.run_path(str(ROOT / "tools" / "docs_pages.py")))
SMALL = ("fit.iterations=40", "fit.size=64", "fit.points=900", "fit.max_gaussians=1200", "mesh.grid=40",
         "mesh.virtual_views=4", "mesh.faces=2000", "mesh.outline_rounds=1", "texture.size=128",
         "texture.normal_map=false", "texture.polish=1")  # fmt: skip


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", SCRIPTING.read_text(encoding="utf-8"), re.DOTALL)


def page(name: str) -> str:
    """A page as the site has it, in Markdown."""
    return str(PAGES.on_page_markdown((ROOT / "docs" / name).read_text(encoding="utf-8")))


def test_the_site_builds_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(ROOT / "tools" / "mkdocs.yml")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run([*command, "-d", str(tmp_path)], env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    # Nothing that readers load comes from elsewhere.
    for html in tmp_path.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|img|link)[^>]* (?:src|href)=\"?(https?:[^\" >]*)", html.read_text(encoding="utf-8")
        )
        assert loaded == [], html


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md"])
def test_links_outside_the_site_lead_somewhere(name: str) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text(encoding="utf-8")):
        assert ((ROOT / name).parent / link).exists(), link


def test_the_settings_page_has_every_setting_with_its_meaning() -> None:
    rows = {row.split(" | ")[0]: row.split(" | ")[1:] for row in page("reference/settings.md").splitlines()}
    for section in dataclasses.fields(Settings):
        for setting in dataclasses.fields(getattr(Settings(), section.name)):
            _default, allowed, meaning = rows[f"| `{section.name}.{setting.name}`"]
            assert allowed, setting.name
            assert len(meaning) > 10, f"{section.name}.{setting.name} has no meaning in its docstring"


def test_the_command_line_page_has_every_command_and_option() -> None:
    text = page("reference/cli.md")
    for name in COMMANDS | LAB_COMMANDS:
        assert f"## im3d {name}\n" in text
    for option in ("`--views DIR_OR_VIDEO`", "`--preset {", "### im3d models download", "`--ablation"):
        assert option in text


def test_the_result_page_has_every_field_and_no_other() -> None:
    table = page("reference/result.md").split("## result.json")[1]
    documented = {
        name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    written: set[str] = set()
    texts: set[str] = set()
    for path in (ROOT / "backend" / "im3d" / "jobs").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.add(node.value)
            if isinstance(node, ast.Dict):
                keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
                written |= keys if "orbit_from_glb" in keys else set()
    assert len(written) > 20
    assert written <= documented
    assert documented <= texts


def test_troubleshooting_has_every_message() -> None:
    source = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rooms = {room for name, rooms in PAGES.MARKER.findall(source) if name == "messages" for room in rooms.split()}
    messages = list(PAGES.all_messages())
    assert len(messages) > 200
    assert {m.module for m in messages if not PAGES.closest(m.module, rooms)} == set()
    text = page("troubleshooting.md")
    for message in ("The object cannot be separated from this background.", "… is a HEIC picture.",
                    "Online access is switched off in Blender.", "This folder does not exist."):  # fmt: skip
        assert f"| {message} |" in text


def test_the_paths_that_architecture_names_exist() -> None:
    """Its answers to a newcomer's questions: `backend/im3d/…/file.py` with the names that are to be found there."""
    text = "".join(
        (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("architecture.md", "add-a-generator.md")
    )
    found = re.findall(r"`((?:backend|im3d_blender|tests|tools)/[\w./]+)`(?: \(((?:`[\w.]+`(?:, )?)+)\))?", text)
    assert len(found) > 25
    for path, names in found:
        assert (ROOT / path).exists(), path
        for name in re.findall(r"`([\w.]+)`", names):
            assert name.rpartition(".")[2] in (ROOT / path).read_text(encoding="utf-8"), f"{name} in {path}"


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
    (listed,) = re.findall(r"Every input of the panel is a property: (.*?)\n\n", SCRIPTING.read_text(), re.DOTALL)
    assert set(re.findall(r"`(\w+)`", listed)) <= properties
