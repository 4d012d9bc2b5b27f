"""Parts of the documentation that are made from the code: mkdocs calls this file while `make docs` builds the pages.

A line `<!-- generated: NAME ARGUMENTS -->` of a page is replaced by what the function of that name returns: Markdown.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

sys.path.insert(0, str(Path(__file__).parent))

import rooms

from im3d.cli.main import available_commands
from im3d.models.catalog import models
from im3d.settings import Settings, allowed, preset_settings
from im3d.shared.names import PRESETS

ROOT = Path(__file__).resolve().parents[1]
PAGE = re.compile(r"docs/([\w/-]*/)?([\w-]+)\.md")
MARKER = re.compile(r"^<!-- generated: (\w+) ?(.*?) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: object) -> str:
    """mkdocs' hook: the page with its generated parts."""
    all_rooms = {room for name, own in MARKER.findall(markdown) if name == "messages" for room in own.split()}
    parts = {
        "settings": settings,
        "presets": presets,
        "commands": commands,
        "models": model_table,
        "rooms": room_table,
        "messages": lambda *own: messages(set(own), all_rooms),
        "file": lambda name: (ROOT / name).read_text(encoding="utf-8"),
    }
    return MARKER.sub(lambda found: parts[found[1]](*found[2].split()), markdown)


# ---------------------------------------------------------------- settings


def settings() -> str:
    """Every setting: a table for each section, with the meanings of its docstring."""
    return "\n\n".join(f"## {name}\n\n{text}" for name, text in _sections())


def _sections() -> Iterator[tuple[str, str]]:
    for section in dataclasses.fields(Settings):
        values = getattr(Settings(), section.name)
        hints = get_type_hints(type(values), include_extras=True)
        summary, meanings = _docstring(type(values))
        meanings = {name: PAGE.sub(r"[\2](../\1\2.md)", text) for name, text in meanings.items()}
        rows = [
            [f"`{section.name}.{name}`", _value(value), allowed(hints[name]), meanings.get(name, "")]
            for name, value in dataclasses.asdict(values).items()
        ]
        yield section.name, f"{summary}\n\n{_table(['setting', 'default', 'may be', 'meaning'], rows)}"


def _docstring(cls: type) -> tuple[str, dict[str, str]]:
    """Its summary, and the meaning of each attribute."""
    head, _, attributes = inspect.getdoc(cls).partition("Attributes:\n")  # type: ignore[union-attr]
    entries = re.split(r"^    (\w+): ", attributes, flags=re.MULTILINE)[1:]
    return head.strip(), {name: " ".join(text.split()) for name, text in zip(entries[::2], entries[1::2], strict=True)}


def presets() -> str:
    """What each preset changes, for views that are provided and for views that a network makes."""
    columns = {(preset, given): _flat(preset_settings(preset, given)) for preset in PRESETS for given in (False, True)}
    defaults = _flat(Settings())
    rows = [
        [f"`{name}`", *(_value(values[name]) for values in columns.values())]
        for name in defaults
        if any(values[name] != defaults[name] for values in columns.values())
    ]
    heads = [f"{preset}, {'own views' if given else 'one picture'}" for preset, given in columns]
    return _table(["setting", *heads], rows)


def _flat(values: Settings) -> dict[str, Any]:
    return {
        f"{section}.{name}": value for section, fields in values.to_json().items() for name, value in fields.items()
    }


def _value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value}"


def model_table() -> str:
    """The models of models.toml."""
    rows = [
        [f"`{m.name}`", m.title, PURPOSES[m.purpose], m.size, f"{m.vram_gb:g} GB", f"[{m.licence}]({m.licence_url})",
         m.commercial, "yes" if m.gated else "no"]
        for m in models().values()
    ]  # fmt: skip
    return _table(["name", "title", "purpose", "download", "GPU memory", "licence", "commercial use", "account"], rows)


PURPOSES = {
    "orbit": "views from a picture",
    "image": "a picture from a sentence",
    "mask": "cuts the object out",
    "loss": "compares renders with views",
}


# ---------------------------------------------------------------- commands


def commands() -> str:
    """Every command with its options, as `--help` has them."""
    parts = []
    for name, (module, summary) in available_commands().items():
        parser = argparse.ArgumentParser(prog=f"im3d {name}")
        importlib.import_module(module).configure(parser)
        parts.append(f"## im3d {name}\n\n{summary[0].upper()}{summary[1:]}.\n\n{_options(parser, 3)}")
    return "\n\n".join(parts)


def _options(parser: argparse.ArgumentParser, level: int) -> str:
    formatter = argparse.HelpFormatter(parser.prog, width=100)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups)
    parts = [f"```text\n{formatter.format_help().strip()}\n```"]
    rows: list[list[str]] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help for choice in action._choices_actions}
            for name, child in action.choices.items():
                title = f"{'#' * level} {parser.prog} {name}"
                parts.append(f"{title}\n\n{_sentence(helps.get(name))}\n\n{_options(child, level + 1)}")
        elif not isinstance(action, argparse._HelpAction):
            rows.append([_option(action), _sentence((action.help or "") % {**vars(action), "prog": parser.prog})])
    if rows:
        parts.insert(1, _table(["option", "meaning"], rows))
    return "\n\n".join(parts)


def _option(action: argparse.Action) -> str:
    if action.nargs == 0:
        value = ""
    elif action.choices and not action.metavar:
        value = f"{{{','.join(map(str, action.choices))}}}"
    else:
        value = str(action.metavar or action.dest.upper())
    return f"`{' '.join(filter(None, [', '.join(action.option_strings), value]))}`"


def _sentence(text: str | None) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""


# ---------------------------------------------------------------- rooms


def room_table() -> str:
    """Every package, what its docstring says of it, and which others it imports."""
    rows = []
    for package in rooms.PACKAGES:
        graph = rooms.room_graph(package)
        for name in (name for floor in reversed(rooms.floors(graph)) for name in floor):
            knows = ", ".join(sorted(f"`{target.split('.')[1]}`" for target in graph[name])) or "nothing"
            doc = ast.get_docstring(ast.parse(rooms.modules(package)[name].read_text(encoding="utf-8"))) or ""
            subject = doc.split("\n\n")[0].replace("\n", " ")
            rows.append([f"`{name}`", subject, knows])
    return _table(["room", "subject", "knows"], rows)


# ---------------------------------------------------------------- messages


class Message(NamedTuple):
    """An error as the user sees it.

    Attributes:
        module: Where it is raised, dotted.
        text: What is wrong; "…" stands for names and numbers.
        hint: What to do.
    """

    module: str
    text: str
    hint: str


def messages(own: set[str], all_rooms: set[str]) -> str:
    """The errors of some packages or modules, of each those that no longer name in `all_rooms` is closer to."""
    found = sorted({(m.text, m.hint) for m in all_messages() if closest(m.module, all_rooms) in own})
    return _table(["message", "what to do"], [list(row) for row in found])


def closest(module: str, rooms: set[str]) -> str:
    """The longest of these names that a module lies in, or "" for none."""
    return max((room for room in rooms if f"{module}.".startswith(f"{room}.")), key=len, default="")


def all_messages() -> Iterator[Message]:
    """Every error of the backend and the add-on that is written out where it is raised."""
    for base, package in ((ROOT / "backend", "im3d"), (ROOT, "im3d_blender")):
        for path in sorted((base / package).rglob("*.py")):
            module = ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                text, hint = [*map(_text, _shown_arguments(node)), "", ""][:2]
                hint = hint if hint.endswith((".", "…")) else ""
                # What lacks both a capital and a hint is a part of another sentence; one word is a cancelled job.
                if re.search(r"\w+ .*\w{3}.*[.…]$", text) and (hint or text[0].isupper() or text[0] == "…"):
                    yield Message(module, text, hint)


def _shown_arguments(node: ast.AST) -> list[ast.expr]:
    """What the user is shown of a call that makes an error, or of a pair of sentences in a table of failures."""
    if isinstance(node, ast.Tuple) and len(node.elts) == 2 and all(_text(e).endswith(".") for e in node.elts):
        return node.elts
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name == "report" and node.args and ast.unparse(node.args[0]) == "{'ERROR'}":
            return node.args[1:]
        if name == "Failure":  # its code stands first
            return node.args[1:]
        if name == "Obstacle" or (name.endswith("Error") and not hasattr(builtins, name)):
            return node.args
    return []


def _text(node: ast.expr) -> str:
    """A sentence with "…" for what is filled in; "" where the code does not show it."""
    return re.sub(r"…[….]+", "…", _literal(node))


def _literal(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(_literal(v) if isinstance(v, ast.Constant) else "…" for v in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (_literal(node.left) or "…") + (_literal(node.right) or "…")
    if isinstance(node, ast.IfExp):
        return " or: ".join(filter(None, [_literal(node.body), _literal(node.orelse)]))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_":
        return _literal(node.args[0])
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        return re.sub(r"\{[^}]*\}", "…", _literal(node.func.value))
    return ""


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
