"""The add-on's texts in other languages: a JSON file a language, from the English text to the translated one.

Blender looks its own labels, tooltips and reports up here; texts that are put together while drawing ask for it
themselves. A text that is not here stays English.
"""

from __future__ import annotations

import json
from pathlib import Path

import bpy

# The contexts in which Blender looks texts up: everything, and the names of operators.
CONTEXTS = ("*", "Operator")
# Simplified Chinese was called so before Blender 4.0.
ALIASES = {"zh_HANS": "zh_CN"}


def read_translations() -> dict[str, dict[str, str]]:
    """Language, as Blender names it → English text → translation."""
    files = sorted(Path(__file__).parent.glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}


def attach(module: str) -> None:
    """Registers all languages under the add-on's module name."""
    texts = {
        language: {(context, english): text for english, text in known.items() for context in CONTEXTS}
        for language, known in read_translations().items()
    }
    texts.update({alias: texts[language] for language, alias in ALIASES.items() if language in texts})
    bpy.app.translations.register(module, texts)


def detach(module: str) -> None:
    bpy.app.translations.unregister(module)
