"""The rooms of the house: which package imports which. Draws docs/images/rooms.svg: `python tools/rooms.py`.

A room is a folder of a package, or a file at its top. Rooms stand above everything that they import, so a picture of
floors needs no arrows. tests/repository/test_architecture.py keeps the rules.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"im3d_blender": ROOT, "im3d": ROOT / "backend", "im3d_lab": ROOT / "backend"}
TITLES = {
    "im3d_blender": "im3d_blender — inside Blender",
    "im3d": "im3d — the backend",
    "im3d_lab": "im3d_lab — not shipped",
}
Graph = dict[str, set[str]]
WIDTH, FLOOR, GAP, TITLE = 980, 46, 6, 34


def modules(package: str) -> dict[str, Path]:
    """Dotted name → file of every module of a package; a folder's `__init__` bears the folder's name."""
    top = PACKAGES[package]
    found = {}
    for path in sorted((top / package).rglob("*.py")):
        parts = path.relative_to(top).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(module: str, path: Path) -> set[str]:
    """Everything that a file imports, at its top or later, by full dotted name, but what only type checkers see.

    `from a import b` counts as `a.b`, whatever b is.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = {id(inner) for node in ast.walk(tree) if _for_type_checkers(node) for inner in ast.walk(node)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            here = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
            base = ["", *here][: len(here) + 2 - node.level][1:] if node.level else []
            outside = node.level > len(here)  # the add-on imports the backend's shared package by its place
            name = ".".join([*base, *filter(None, [node.module])])
            found |= {f"{name.removeprefix('backend.') if outside else name}.{alias.name}" for alias in node.names}
    return found


def _for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def module_graph(*packages: str) -> Graph:
    """Module → the modules of these packages that it imports."""
    known = {name: path for package in packages for name, path in modules(package).items()}

    def nearest(name: str) -> str:
        return name if name in known else name.rpartition(".")[0]

    return {m: {t for n in imports(m, path) if (t := nearest(n)) in known} - {m} for m, path in known.items()}


def room(module: str) -> str:
    """The room of a module: "im3d.mesh" for im3d.mesh.texture.bake; a package's own `__init__` is none, ""."""
    return ".".join(module.split(".")[:2]) if "." in module else ""


def room_graph(*packages: str) -> Graph:
    """Room → the other rooms that its modules import."""
    graph: Graph = {}
    for module, targets in module_graph(*packages).items():
        if room(module):
            graph.setdefault(room(module), set()).update(filter(None, map(room, targets)))
    return {name: targets - {name} for name, targets in graph.items()}


def floors(graph: Graph) -> list[list[str]]:
    """The rooms from the ground up, each above all that it imports.

    Raises:
        ValueError: Rooms import each other in a circle; it names them.
    """
    done: list[list[str]] = []
    left = dict(graph)
    while left:
        placed = {name for floor in done for name in floor}
        free = sorted(name for name, targets in left.items() if targets & graph.keys() <= placed)
        if not free:
            raise ValueError(f"a circle among {', '.join(sorted(left))}")
        done.append(free)
        left = {name: targets for name, targets in left.items() if name not in free}
    return done


def draw() -> str:
    """The picture, an SVG: one house a package, one row a floor, a room's width by its lines of code."""
    out: list[str] = []
    top = 0
    for package in PACKAGES:
        graph = room_graph(package)
        top += TITLE
        out.append(f'<text x="0" y="{top - 12}" class="title">{TITLES[package]}</text>')
        for floor in reversed(floors(graph)):
            lines = {name: _lines(package, name) for name in floor}
            space = WIDTH - GAP * (len(floor) - 1)
            shares = {name: max(0.09, n / sum(lines.values())) for name, n in lines.items()}
            left = 0.0
            for name in floor:
                width = space * shares[name] / sum(shares.values())
                knows = ", ".join(sorted(target.split(".")[1] for target in graph[name])) or "nothing here"
                middle = left + width / 2
                out.append(f'<g><title>{name} knows {knows}</title><rect x="{left:.0f}" y="{top}" width="{width:.0f}"')
                out.append(f' height="{FLOOR - GAP}" class="{package}"/><text x="{middle:.0f}" y="{top + 18}">')
                out.append(f'{name.split(".")[1]}</text><text x="{middle:.0f}" y="{top + 33}" class="lines">')
                out.append(f"{lines[name]}</text></g>")
                left += width + GAP
            top += FLOOR
    style = (
        "text{font:13px sans-serif;text-anchor:middle;fill:#222}.title{text-anchor:start;font-weight:bold}"
        ".lines{font-size:10px;fill:#555}rect{rx:4}.im3d_blender{fill:#f5d7b2}.im3d{fill:#c9dcf0}.im3d_lab{fill:#d6e7cc}"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-10 0 {WIDTH + 20} {top + 4}" width="{WIDTH + 20}">'
    paper = '<rect x="-10" y="0" width="100%" height="100%" fill="#fff"/>'
    return f"{head}<style>{style}</style>{paper}{''.join(out)}</svg>\n"


def _lines(package: str, name: str) -> int:
    files = [path for module, path in modules(package).items() if room(module) == name]
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)


if __name__ == "__main__":
    (ROOT / "docs" / "images" / "rooms.svg").write_text(draw(), encoding="utf-8")
