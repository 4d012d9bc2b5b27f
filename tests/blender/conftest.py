"""What all tests in a real Blender share: the built zip, and a finished job."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blender_process import INSIDE, ROOT, inside
from PIL import Image


@pytest.fixture(scope="session")
def extension(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built and validated zip."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, str(ROOT / "tools" / "build_zip.py"), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished job: a box of 0.3 × 0.2 × 0.25 m with a texture, written by our own exporter."""
    from im3d.mesh.build import TexturedMesh
    from im3d.mesh.gltf import write_glb
    from im3d.mesh.surface import TriangleMesh
    from im3d.mesh.texture.tangents import vertex_tangents
    from im3d.mesh.texture.unwrap import unwrap

    folder = tmp_path_factory.mktemp("jobs") / "box"
    folder.mkdir()
    corners = np.array([[x, y, z] for x in (-0.6, 0.6) for y in (-0.4, 0.4) for z in (-0.5, 0.5)], np.float32)
    faces = np.array(
        [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1], [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4],
         [1, 5, 7], [1, 7, 3]], np.int32,
    )  # fmt: skip
    mesh = TriangleMesh(corners, faces)
    atlas = unwrap(mesh, 64)
    normals = mesh.vertex_normals()[atlas.source]
    color = np.full((64, 64, 3), 0.6, np.float32)
    flat = np.tile(np.array([0.5, 0.5, 1.0], np.float32), (64, 64, 1))
    textured = TexturedMesh(atlas, normals, vertex_tangents(atlas, normals), color, flat, 0.0)
    matrix = write_glb(folder / "mesh.glb", textured, "Kiste grün", 0.25)
    result = {
        "status": "done", "name": "Kiste grün", "prompt": "a green box", "mesh": "mesh.glb", "preview": "preview.png",
        "generator": "files", "seed": 7, "height_m": 0.25, "mesh_stats": {"faces": 12},
        "orbit_from_glb": matrix.tolist(),
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return folder


@pytest.fixture
def blender(extension: Path, job: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs a function of generating.py, or of another script, with the extension and an empty jobs folder."""
    finished = tmp_path / "finished"
    shutil.copytree(job, finished)
    Image.new("RGB", (64, 64), (20, 160, 60)).save(finished / "preview.png")
    # Started as a Python would be; what follows is the backend's command.
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{shutil.which("python3")}" "{INSIDE.with_name("backend_stand_in.py")}" "$@"\n')
    python.chmod(0o755)
    (tmp_path / "jobs").mkdir()

    def run(function: str, *arguments: object, script: str = "generating.py") -> dict[str, Any]:
        variables = {"IM3D_PYTHON": str(python), "STAND_IN_JOB": str(finished)}
        jobs = [tmp_path / "jobs"] if function != "drop_handler" else []
        return inside(
            function, tmp_path, extension, *jobs, *arguments, script=INSIDE.with_name(script), variables=variables
        )

    return run
