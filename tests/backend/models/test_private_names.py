"""Names that other packages keep to themselves, and that are in use all the same: a new version may drop them."""

from __future__ import annotations

import ast
import importlib
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[3]
SOURCES = ROOT / "backend"
# What is used → what it is for.
TORCH = {
    "torch._foreach_add_": "the optimiser's steps, all parameters at once",
    "torch._foreach_mul_": "the same",
    "torch._foreach_lerp": "the same",
    "torch._foreach_lerp_": "the same, and the averaged weights of training",
    "torch._dynamo.config.recompile_limit": "a compiled network has more variants than torch expects",
    "torch.nn.Module._compiled_call_impl": "networks compiled in place are put back",
    "torch.nn.Module()._parameters": "kept models rest in the processor's memory",
    "torch.nn.Module()._buffers": "the same",
    "torch.cpu._is_amx_tile_supported": "whether bfloat16 is fast on this processor",
    "torch.utils.cpp_extension._get_build_directory": "whether gsplat's kernels were compiled before",
}
DOCUMENTED = {"_ArgumentGroup", "_asdict", "_exit"}  # private by name only
# Packages of which one release alone is allowed may be used as that release is.
PINNED = {"gsplat": {"_C", "_backend"}, "warp-lang": {"_shape_"}}


def test_the_list_names_all_that_are_in_use() -> None:
    used: set[str] = set()
    own: set[str] = set()
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and not node.level and not (node.module or "").startswith("im3d"):
                used |= {*(node.module or "").split("."), *(alias.name for alias in node.names)}
            elif isinstance(node, ast.Attribute):
                (used if isinstance(node.ctx, ast.Load) else own).add(node.attr)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.AnnAssign | ast.Assign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                own |= {target.id for target in targets if isinstance(target, ast.Name)}
    listed = {part.removesuffix("()") for name in TORCH for part in name.split(".")}.union(*PINNED.values())
    private = {name for name in used - own if name.startswith("_") and not name.startswith("__")}
    assert private - DOCUMENTED == {name for name in listed if name.startswith("_")} - own


@pytest.mark.parametrize("name", TORCH)
def test_torch_still_has_it(name: str) -> None:
    found: Any = importlib.import_module("torch")
    for number, part in enumerate(name.split(".")[1:], 2):
        called, part = part.endswith("()"), part.removesuffix("()")
        if not hasattr(found, part):
            try:  # a module that torch imports when it is first asked for
                importlib.import_module(".".join(name.split(".")[:number]))
            except ImportError:
                pytest.fail(f"torch has no {name} any more; it is used for: {TORCH[name]}")
        found = getattr(found, part)
        found = found() if called else found


def test_what_is_not_pinned_is_bounded_by_what_was_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {r.name: r for r in map(Requirement, project["dependencies"])}
    (tested,) = (r for r in _requirements() if r.name == "torch")
    (version,) = (s.version for s in tested.specifier)
    assert wanted["torch"].specifier.contains(version)
    major, minor = (int(part) for part in version.split(".")[:2])
    assert not wanted["torch"].specifier.contains(f"{major}.{minor + 1}.0")
    for name in PINNED:
        assert {s.operator for s in wanted[name].specifier} == {"=="}


def _requirements() -> list[Requirement]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]
