"""The Blenders that are supported are the same wherever they are named: manifest, documents, tests, backend."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = runpy.run_path(str(ROOT / "tools" / "test_blenders.py"))["VERSIONS"]
SUITES = runpy.run_path(str(ROOT / "tests" / "window" / "room.py"))["SUITES"]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


TESTED = sorted({*VERSIONS, *SUITES.values()}, key=number)
OLDEST, NEWEST = TESTED[0], TESTED[-1]


def test_the_oldest_tested_blender_is_the_oldest_that_installs_it() -> None:
    manifest = tomllib.loads(read("blender_manifest.toml"))
    assert manifest["blender_version_min"] == f"{OLDEST}.0"
    assert "blender_version_max" not in manifest
    assert re.findall(r"^OLDEST = (.*)$", read("backend/im3d/blender/studio.py"), re.MULTILINE) == [
        str((*number(OLDEST), 0))
    ]


def test_documents_name_the_tested_versions() -> None:
    assert f"Blender add-on ({OLDEST} to {NEWEST})" in read("README.md")
    said = {version for name in ("README.md", "docs/first-prop.md", "docs/guides/scripting.md")
            for version in re.findall(r"Blender (\d\.\d) or newer", read(name))}  # fmt: skip
    assert said == {OLDEST}
    contributing = read("CONTRIBUTING.md")
    for versions in (VERSIONS, tuple(SUITES.values())):
        assert f"Blender {', '.join(versions[:-1])} and {versions[-1]}" in contributing


def test_the_pictures_are_of_the_newest() -> None:
    assert f"a real window of Blender {NEWEST}," in read("docs/first-prop.md")


def test_bpy_for_each_python_is_within_them() -> None:
    asked = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]["blender"]
    found = [found for line in asked if (found := re.search(r"bpy>=(\d\.\d)", line))]
    assert len(found) == len(asked)
    assert {match[1] for match in found} <= set(TESTED)
