"""What one click or one command can do about an error: worded for the terminal here, kept out of the sentences."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import im3d
from im3d.cli import main as cli
from im3d.errors import Im3dError, ModelError
from im3d.models.catalog import models, require

PACKAGE = Path(im3d.__file__).parent
KINDS = {kind.__name__ for kind in (Im3dError, *Im3dError.__subclasses__())}
# What only a terminal starts: these may speak its language.
TERMINAL = {"cli"}
# Words that are no help where there are only buttons.
COMMAND = re.compile(r"\bim3d (?:models|resume|generate|train|batch|doctor)\b|(?<!\w)--[a-z]|\bhf auth\b")


def sentences(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The constant parts of what errors and warnings are made of, with their lines."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name.endswith("Error") or name == "warn":
            for part in (p for argument in node.args for p in ast.walk(argument)):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield node.lineno, part.value


def remedies(tree: ast.AST) -> Iterator[str]:
    """What is given as the third argument of our errors, as far as it is written there."""
    for node in ast.walk(tree):
        name = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
        if name in KINDS and len(node.args) > 2:  # type: ignore[attr-defined]
            given = node.args[2]  # type: ignore[attr-defined]
            first = given.values[0] if isinstance(given, ast.JoinedStr) else given
            if isinstance(first, ast.Constant):
                yield str(first.value)


def test_every_remedy_is_one_that_both_sides_know() -> None:
    given = {r.split()[0] for p in PACKAGE.rglob("*.py") for r in remedies(ast.parse(p.read_text("utf-8"))) if r}
    assert {"download", "licence", "token", "draft", "resume"} >= given >= {"download", "licence", "token", "draft"}


def test_no_sentence_that_the_panel_shows_names_a_command_line() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {text}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] not in TERMINAL
        for line, text in sentences(ast.parse(path.read_text(encoding="utf-8")))
        if COMMAND.search(text)
    ]
    assert found == []


def test_the_search_finds_what_it_looks_for() -> None:
    for line in ('InputError("x", "Use --device cpu.")', 'E.ModelError(f"{a} or run im3d models verify {b}")'):
        assert [text for _, text in sentences(ast.parse(line)) if COMMAND.search(text)]


@pytest.mark.parametrize(
    ("remedy", "words"),
    [
        ("download isnet", "im3d models download isnet"),
        ("download flux2_klein sv3d_u", "im3d models download flux2_klein sv3d_u"),
        ("licence sv3d_p", "im3d models licence sv3d_p --accept"),
        ("token sv3d_p", "https://huggingface.co/stabilityai/sv3d, then run: hf auth login"),
        ("draft", "--preset draft"),
        ("resume", ""),
        ("", ""),
    ],
)
def test_the_terminal_says_the_command(remedy: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    cli.report_error(ModelError("It is missing.", "Get it.", remedy), as_json=False)
    said = capsys.readouterr().err
    assert said.startswith("im3d: It is missing. Get it.\n")
    assert words in said
    assert (said.count("\n") == 2) is bool(words)


def test_every_missing_model_says_how_to_get_it(home: Path) -> None:
    for model in models().values():
        if not model.shipped:
            with pytest.raises(ModelError) as caught:
                require(model.name)
            assert caught.value.remedy == f"download {model.name}"
            assert model.size in caught.value.hint
            assert ("Hugging Face account" in caught.value.hint) is model.gated
