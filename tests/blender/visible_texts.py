"""Every text of the add-on that a user can read, found in its sources without running them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "im3d_blender"
# Arguments of Blender's property and layout functions that it shows, and translates, itself.
SHOWN = {"name", "description", "text", "placeholder"}
CLASS_TEXTS = {"bl_label", "bl_description"}
# Not shown: names of data that Blender keeps, and classes whose docstring is no tooltip.
TOOLTIPS = ("_OT_", "_UL_")
# Constants that hold texts for the panel: as values, or as (identifier, label, description).
TABLES = {
    "STAGES", "COMMERCIAL", "OFFLINE", "SOURCES", "PLACES", "GENERATORS", "ALL_GENERATORS", "PRESETS",
    "COMMERCIAL_NOTES", "OTHER_FILE", "MISSING_SOURCES", "PURPOSES", "DEVICES", "ACCOUNT", "YOUR_VIEWS",
    "INSTALL_BUILDS", "INSTALL_STEPS", "INSTALL_FAILURES",
}  # fmt: skip


def visible_texts() -> dict[str, str]:
    """Each text with a file in which it stands."""
    found: dict[str, str] = {}
    for path in sorted(p for p in PACKAGE.rglob("*.py") if p.parent.name != "client"):
        for text in _texts(ast.parse(path.read_text(encoding="utf-8"))):
            if any(character.isalpha() for character in text):
                found.setdefault(text, path.name)
    return found


def _texts(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield from _class_texts(node)
        elif isinstance(node, ast.Call):
            yield from _call_texts(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if {t.id for t in targets if isinstance(t, ast.Name)} & TABLES:
                yield from _table_texts(node.value)


def _class_texts(node: ast.ClassDef) -> Iterator[str]:
    if any(mark in node.name for mark in TOOLTIPS) and ast.get_docstring(node):
        yield str(ast.get_docstring(node))
    for statement in node.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant):
            names = {t.id for t in statement.targets if isinstance(t, ast.Name)}
            if names & CLASS_TEXTS:
                yield str(statement.value.value)


def _call_texts(node: ast.Call) -> Iterator[str]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    keywords = {k.arg: k.value for k in node.keywords}
    untranslated = keywords.get("translate")
    if name in ("_", "pgettext_iface", "translated"):
        yield from _table_texts(node.args[0])
    elif name == "report" and len(node.args) == 2:
        yield from _table_texts(node.args[1])
    elif name.endswith("Error") and name != "InstallError" and node.args:  # whose first argument is a code
        yield from _table_texts(node.args[0])
    elif name.endswith("Property") or name in ("label", "operator", "prop", "progress"):
        if not (isinstance(untranslated, ast.Constant) and untranslated.value is False):
            for key in SHOWN & set(keywords):
                yield from _table_texts(keywords[key])
        if "items" in keywords:
            yield from _table_texts(keywords["items"])


def _table_texts(node: ast.expr) -> Iterator[str]:
    """The texts of a constant, of a table's values, or of an enumeration's (identifier, label, description)."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from _table_texts(node.body)
        yield from _table_texts(node.orelse)
    elif isinstance(node, ast.Dict | ast.Tuple):
        for value in node.values if isinstance(node, ast.Dict) else node.elts:
            yield from _table_texts(value)
    elif isinstance(node, ast.List):
        for item in node.elts:
            if isinstance(item, ast.Tuple):
                for text in item.elts[1:]:
                    yield from _table_texts(text)
