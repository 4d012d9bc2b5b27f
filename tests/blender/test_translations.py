"""Every text of the add-on that a user can read is translated, and Blender shows the translation."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from visible_texts import PACKAGE, visible_texts

SCRIPT = Path(__file__).with_name("in_languages.py")
LANGUAGES = ("de", "es", "fr", "ja", "zh_HANS")


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_is_translated_and_no_other(language: str) -> None:
    known = json.loads((PACKAGE / "translations" / f"{language}.json").read_text(encoding="utf-8"))
    texts = visible_texts()
    assert {text: texts[text] for text in texts if text not in known} == {}
    assert [text for text in known if text not in texts] == []
    assert [text for text, translated in known.items() if not translated.strip()] == []
    # A translation without its place for a number would lose it, one with two would raise.
    assert [text for text, translated in known.items() if text.count("{}") != translated.count("{}")] == []


def test_the_collector_finds_all_kinds_of_texts() -> None:
    texts = visible_texts()
    kinds = {
        "Generate": "a button's text", "Finished Jobs": "a panel's label", "Draft": "a choice",
        "For work": "a choice's description", "Seed": "a property",
        "Pick another seed at random": "an operator's tooltip",
        "Fitting Splats": "a stage", "This folder does not exist.": "a report",
        "Give an image or orbit views, not both.": "an error", "Not for commercial use.": "a note",
        "{} s left": "a time",
    }  # fmt: skip
    assert [what for text, what in kinds.items() if text not in texts] == []


@pytest.mark.blender
@pytest.mark.skipif(shutil.which("blender") is None, reason="the bpy wheel has no languages, a Blender executable has")
def test_blender_shows_them(tmp_path: Path) -> None:
    report = tmp_path / "shown.json"
    command = ["blender", "-b", "--factory-startup", "--python", str(SCRIPT), "--", str(report)]
    environment = {**os.environ, "IM3D_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert report.exists(), done.stdout + done.stderr
    shown = json.loads(report.read_text(encoding="utf-8"))
    assert shown["de_DE"] == ["Fertige Aufträge", "3D-Objekt erzeugen", "Entwurf", "noch {} s"]
    assert shown["ja_JP"] == ["完了したジョブ", "3Dオブジェクトを生成", "ドラフト", "残り{}秒"]
    chinese = shown.get("zh_HANS") or shown["zh_CN"]
    assert chinese == ["已完成的任务", "生成 3D 物体", "草稿", "剩余 {} 秒"]
    assert len([language for language in shown if language.split("_")[0] in ("es", "fr")]) >= 2
    assert shown["after"] == ["Finished Jobs", "Generate 3D Object", "Draft", "{} s left"]
