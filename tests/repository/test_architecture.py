"""Who may know whom, how large a file may be, and how full a folder: the rules of docs/architecture.md."""

from __future__ import annotations

import importlib.util
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("im3d_blender", "im3d", "im3d_lab")
MOST_LINES = 500
MOST_FILES = 15


@pytest.fixture(scope="module")
def rooms() -> Any:
    spec = importlib.util.spec_from_file_location("rooms", ROOT / "tools" / "rooms.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def imported(rooms: Any, package: str, *places: str) -> dict[str, set[str]]:
    """Module → what it imports, of the modules in these rooms, or of all."""
    return {
        name: rooms.imports(name, path)
        for name, path in rooms.modules(package).items()
        if not places or rooms.room(name) in {f"{package}.{place}" for place in places}
    }


def test_the_reader_of_imports_sees_every_kind(rooms: Any, tmp_path: Path) -> None:
    path = tmp_path / "here.py"
    path.write_text(
        "import a.b\nfrom . import near\nfrom ..up import name\nfrom ...backend.im3d.shared import tables\n"
        "def f():\n    from c import later\n"
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import seen_by_checkers_only\n"
    )
    assert rooms.imports("house.room.here", path) == {
        "a.b", "house.room.near", "house.up.name", "im3d.shared.tables", "c.later", "typing.TYPE_CHECKING"
    }  # fmt: skip


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_imports_itself_through_others(rooms: Any, package: str) -> None:
    try:
        TopologicalSorter(rooms.module_graph(package)).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' imports '.join(reversed(error.args[1]))}")


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_stand_above_what_they_know(rooms: Any, package: str) -> None:
    floors = rooms.floors(rooms.room_graph(package))
    assert sum(map(len, floors)) == len(rooms.room_graph(package))


def test_a_circle_of_rooms_is_found(rooms: Any) -> None:
    with pytest.raises(ValueError, match="a circle among a, b"):
        rooms.floors({"a": {"b"}, "b": {"a", "c"}, "c": set()})


def test_the_order_of_the_addon_s_rooms(rooms: Any) -> None:
    """The order that the package's docstring promises."""
    order = ["core", "client", "install", "scene", "state", "ui", "ops"]
    for name, targets in rooms.room_graph("im3d_blender").items():
        known = {target.split(".")[1] for target in targets} & set(order)
        if (own := name.split(".")[1]) in order:
            assert known <= set(order[: order.index(own)]), name


def test_what_both_sides_share_needs_the_standard_library_only(rooms: Any) -> None:
    for module, names in imported(rooms, "im3d", "shared").items():
        foreign = {name for name in names if name.split(".")[0] not in sys.stdlib_module_names}
        assert {name for name in foreign if not name.startswith("im3d.shared.")} == set(), module


def test_the_add_on_knows_only_the_shared_package_of_the_backend(rooms: Any) -> None:
    for module, names in imported(rooms, "im3d_blender").items():
        assert {n for n in names if n.startswith("im3d.") and not n.startswith("im3d.shared.")} == set(), module


def test_bpy_stays_where_it_belongs(rooms: Any) -> None:
    for names in imported(rooms, "im3d_blender", "core", "client", "install").values():
        assert {name for name in names if name.split(".")[0] in ("bpy", "blf", "gpu", "mathutils")} == set()
    for module, names in imported(rooms, "im3d").items():
        if rooms.room(module) != "im3d.blender":
            assert {name for name in names if name.split(".")[0] == "bpy"} == set(), module


def test_the_backend_does_not_know_the_laboratory(rooms: Any) -> None:
    for module, names in imported(rooms, "im3d").items():
        assert {name for name in names if name.startswith("im3d_lab")} == set(), module


def test_no_file_is_long_and_no_folder_is_full(rooms: Any) -> None:
    files = [path for package in PACKAGES for path in rooms.modules(package).values()]
    files += [*(ROOT / "tests").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]
    assert {str(p) for p in files if len(p.read_text(encoding="utf-8").splitlines()) > MOST_LINES} == set()
    folders = {path.parent for path in files}
    full = {str(f) for f in folders if sum(p.name != "__init__.py" for p in f.glob("*.py")) > MOST_FILES}
    assert full == set()


def test_the_picture_shows_every_room(rooms: Any) -> None:
    drawn = (ROOT / "docs" / "images" / "rooms.svg").read_text(encoding="utf-8")
    missing = [name for p in PACKAGES for name in rooms.room_graph(p) if f"<title>{name} knows" not in drawn]
    assert missing == [], "run: python tools/rooms.py"
