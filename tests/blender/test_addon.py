"""The extension as a user gets it: the zip installed in a real Blender, a job imported, everything removed again.

Each test runs a function of `inside.py` in a Blender process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from blender_process import ROOT, inside

import im3d

pytestmark = pytest.mark.blender


class TestZip:
    def test_what_it_holds(self, extension: Path) -> None:
        names = set(zipfile.ZipFile(extension).namelist())
        assert {"__init__.py", "blender_manifest.toml", "LICENSE", "im3d_blender/scene/importing.py"} <= names
        assert {"backend/im3d/shared/protocol.py", "backend/LICENSE", "pyproject.toml"} <= names
        unwanted = ("tests", "examples", "docs", "tools", "out", "runs", ".venv", ".git")
        assert not [n for n in names if n.split("/")[0] in unwanted or "__pycache__" in n or "im3d_lab" in n]
        assert extension.stat().st_size < 70e6

    def test_its_backend_works_without_the_lab(self, extension: Path, tmp_path: Path) -> None:
        zipfile.ZipFile(extension).extractall(tmp_path)
        # Without site: the development install would add this repository's own backend to the path.
        code = (
            f"import sys; sys.path += {[str(tmp_path / 'backend'), str(Path(np.__file__).parents[1])]}\n"
            "from importlib.util import find_spec; import im3d.cli.main\n"
            f"assert im3d.__file__.startswith({str(tmp_path)!r}) and find_spec('im3d_lab') is None\n"
            "sys.exit(im3d.cli.main.main())"
        )

        def answer(*arguments: str) -> str:
            command = [sys.executable, "-I", "-S", "-c", code, *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
            return done.stdout

        assert "generate" in answer("--help")
        facts = json.loads(answer("doctor", "--json"))
        assert (facts["im3d"], facts["models"]["mini"]) == (im3d.__version__, "installed")

    def test_one_version_everywhere(self) -> None:
        manifest = tomllib.loads((ROOT / "blender_manifest.toml").read_text())
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert manifest["version"] == project["version"] == im3d.__version__

    def test_what_validation_lets_pass(self) -> None:
        manifest = tomllib.loads((ROOT / "blender_manifest.toml").read_text())
        assert manifest["license"] == ["SPDX:GPL-3.0-or-later"]
        assert set(manifest.get("platforms", [])) <= {"windows-x64", "linux-x64", "macos-arm64", "macos-x64"}
        assert all((ROOT / wheel).exists() for wheel in manifest.get("wheels", []))

    def test_the_add_on_imports_only_what_it_may(self) -> None:
        import ast

        allowed = {"bpy", "bpy_extras", "blf", "mathutils", "numpy", "gpu"} | set(sys.stdlib_module_names)
        for path in (ROOT / "im3d_blender").rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    assert all(a.name.split(".")[0] in allowed for a in node.names), path
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    assert (node.module or "").split(".")[0] in allowed, path


class TestInstalled:
    def test_install_import_undo_uninstall(self, extension: Path, job: Path, tmp_path: Path) -> None:
        got = inside("whole_life", tmp_path, extension, job)
        assert got["before"] == got["after_uninstall"] == {"operator": False, "panel": False, "scene": False}
        assert got["installed"] == {"operator": True, "panel": True, "scene": True}
        assert got["variables"] == []  # threads and memory of Blender's own process are left alone
        assert got["imported"] == ["FINISHED"]
        assert got["objects"] == ["Kiste grün"]
        assert got["undone"] == []
        assert got["redone"] == ["Kiste grün"]

    def test_the_object_is_clean(self, extension: Path, job: Path, tmp_path: Path) -> None:
        got = inside("clean_object", tmp_path, extension, job)
        assert got["new"] == {"objects": 1, "meshes": 1, "materials": 1, "images": 2, "collections": 0}
        assert got["rotation"] == [0.0, 0.0, 0.0]
        assert got["scale"] == [1.0, 1.0, 1.0]
        assert got["parent"] is None
        assert got["location"] == pytest.approx([1.0, 2.0, 3.0], abs=1e-5)
        assert got["low"] == pytest.approx([-0.15, -0.1, 0.0], abs=1e-5)
        assert got["high"] == pytest.approx([0.15, 0.1, 0.25], abs=1e-5)
        assert got["collection"] == "Props"
        assert got["selected"] == ["Kiste grün"]
        assert got["closed"] is True
        assert got["principled"] == {"Roughness": 1.0, "Metallic": 0.0}
        assert got["packed"] == [True, True]
        assert sorted(got["color_spaces"]) == ["Non-Color", "sRGB"]

    @pytest.mark.parametrize(("scale_length", "height"), [(0.01, 25.0), (1.0, 0.25), (1000.0, 0.00025)])
    def test_metres_in_any_unit(
        self, scale_length: float, height: float, extension: Path, job: Path, tmp_path: Path
    ) -> None:
        got = inside("height_in_units", tmp_path, extension, job, scale_length)
        assert got["height"] == pytest.approx(height, rel=1e-4)

    def test_from_edit_mode_keeping_the_selection(self, extension: Path, job: Path, tmp_path: Path) -> None:
        got = inside("from_edit_mode", tmp_path, extension, job)
        assert got["mode"] == "OBJECT"
        assert got["selected"] == ["Cube"]
        assert got["active"] == "Cube"
        assert got["objects"] == ["Cube", "Second", "Second.001"]

    def test_objects_do_not_arrive_inside_one_another(self, extension: Path, job: Path, tmp_path: Path) -> None:
        got = inside("in_each_others_way", tmp_path, extension, job)
        # 0.3 m wide, a tenth of it apart, on the ground and in the room.
        assert np.allclose(got["in_room"], [[0, 0, 0], [0.33, 0, 0], [0.66, 0, 0]], atol=1e-4)
        assert got["beside"] == pytest.approx([1 + 0.03 + 0.15, 4, 0], abs=1e-4)
        assert got["inside"] == pytest.approx([0, 4, 0], abs=1e-6)
        assert got["level"] == [False, True, True]  # the outliner's eye shows it

    def test_exports_keep_the_textures(self, extension: Path, job: Path, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        got = inside("exported", tmp_path, extension, job, tmp_path / "out")
        assert len(got["names"]) == 2
        assert all(name.endswith(".png") and len(name.encode()) <= 63 for name in got["names"])
        assert sum("normal" in name for name in got["names"]) == 1
        fbx, mtl = (tmp_path / "out" / "a.fbx").read_bytes(), (tmp_path / "out" / "a.mtl").read_text(encoding="utf-8")
        assert fbx.count(b"\x89PNG") == 2
        assert b".png" in fbx
        assert [line.split(" ")[0] for line in mtl.splitlines() if line.endswith(".png")] == ["map_Kd", "map_Bump"]
        files = list((tmp_path / "out" / "textures").glob("*.png"))
        assert len(files) == 2
        assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)

    def test_a_broken_job_changes_nothing(self, extension: Path, job: Path, tmp_path: Path) -> None:
        broken = tmp_path / "broken"
        broken.mkdir()
        (broken / "result.json").write_bytes((job / "result.json").read_bytes())
        (broken / "mesh.glb").write_bytes(b"glTF nonsense")
        got = inside("broken_job", tmp_path, extension, broken, tmp_path / "nothing")
        assert "could not be imported" in got["errors"][0] or "not a mesh" in got["errors"][0]
        assert "no finished job" in got["errors"][1]
        assert got["left"] == {"objects": 0, "meshes": 0, "materials": 0, "images": 0, "collections": 0}

    def test_the_panel_lists_the_jobs(self, extension: Path, job: Path, tmp_path: Path) -> None:
        got = inside("job_list", tmp_path, extension, job.parent)
        assert got["titles"] == ["Kiste grün"]
        assert got["height"] == pytest.approx(0.25)


def test_save_blend_holds_one_object(job: Path, tmp_path: Path) -> None:
    from im3d.blender import find_blender, save_blend

    blend = tmp_path / "deep" / "box.blend"
    save_blend(find_blender(), job / "mesh.glb", "Kiste grün", blend)
    # By the Blender that wrote it: 5.0 writes files that 4.2 cannot read.
    got = inside("look_into_blend", tmp_path, blend, python=sys.executable)
    assert got["meshes"] == ["Kiste grün"]
    assert got["camera"] is True
    assert got["packed"] == [True, True]


def test_a_blender_without_denoiser_takes_more_samples_instead_of_failing(tmp_path: Path) -> None:
    got = inside("without_denoiser", tmp_path, ROOT / "backend" / "im3d" / "blender")
    assert got["said"] == [[True, 8], [False, 32]]


def test_render_preview_shows_the_object(job: Path, tmp_path: Path) -> None:
    from PIL import Image

    from im3d.blender import find_blender, render_preview

    render_preview(find_blender(), job / "mesh.glb", tmp_path / "preview.png", size=96)
    with Image.open(tmp_path / "preview.png") as picture:
        pixels = np.asarray(picture.convert("RGB"), np.float32)
    assert pixels.shape == (96, 96, 3)
    middle, corner = pixels[40:56, 40:56].mean(), pixels[:8, :8].mean()
    assert abs(middle - corner) > 20


@pytest.mark.skipif(os.name == "nt", reason="a shell script stands for the Blender executable")
def test_a_blender_executable_is_given_script_and_task(job: Path, tmp_path: Path) -> None:
    """The executable is played by this Python's bpy: script and task are the 6th and 8th argument of Blender's own."""
    from im3d.blender import find_blender, save_blend
    from im3d.errors import Im3dError

    program = tmp_path / "blender"
    program.write_text(f'#!/bin/sh\n[ "$5$7" = "--python--" ] && exec "{sys.executable}" -I "$6" "$8"\n')
    program.chmod(0o755)
    save_blend(find_blender(program), job / "mesh.glb", "Kiste grün", tmp_path / "box.blend")
    assert (tmp_path / "box.blend").stat().st_size > 1000
    with pytest.raises(Im3dError, match="There is no file"):
        save_blend(find_blender(program), tmp_path / "absent.glb", "x", tmp_path / "absent.blend")
    assert [p.name for p in tmp_path.glob("*absent*")] == []


def test_a_program_that_is_no_blender_is_refused(tmp_path: Path) -> None:
    from im3d.blender import find_blender
    from im3d.errors import InputError

    with pytest.raises(InputError, match="not a Blender executable"):
        find_blender(tmp_path / "nothing")
