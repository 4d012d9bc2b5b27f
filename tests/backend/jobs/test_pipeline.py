"""Whole jobs through the command line: results, resuming after a kill, cancelling, bad input, a full disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from analytic import orbit_views
from PIL import Image

from im3d.core.images import read_views, write_views
from im3d.jobs.job import Job
from im3d.jobs.job_progress import planned_steps
from im3d.splats.ply import load_ply

# Small enough for seconds, large enough to go through every step.
SMALL = ("fit.iterations=90", "fit.size=64", "fit.points=1200", "fit.max_gaussians=2000", "mesh.grid=64",
         "mesh.virtual_views=8", "mesh.faces=3000", "texture.size=256")  # fmt: skip


@pytest.fixture(scope="module")
def views_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("input") / "pot"
    write_views(folder, orbit_views(128, count=12))
    return folder


def arguments(*extra: str) -> list[str]:
    settings = [part for value in SMALL for part in ("--set", value)]
    return [sys.executable, "-m", "im3d.cli", "generate", *settings, "--device", "cpu", "--json", *extra]


def environment() -> dict[str, str]:
    # The preview by Cycles has its own test; a Blender that does not exist makes it come from the splats.
    return {**os.environ, "PATH": "/nonexistent", "IM3D_HOME": "/nonexistent/im3d"}


def run(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment(), **options)


def last_object(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


@pytest.fixture(scope="module")
def finished(views_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("jobs") / "whole"
    done = run(*arguments("--views", str(views_folder), "--out", str(out), "--height", "0.3", "--blender", "/none"))
    assert done.returncode == 0, done.stderr
    return last_object(done)


@pytest.mark.slow
class TestResult:
    def test_the_object_tells_what_the_contract_promises(self, finished: dict[str, Any]) -> None:
        promised = [
            "status",
            "job",
            "mesh",
            "splats",
            "blend",
            "preview",
            "generator",
            "seed",
            "device",
            "rasterizer",
            "perceptual",
            "network_calls",
            "iterations",
            "elevation_deg",
            "orbit_from_glb",
            "timings_s",
            "mesh_stats",
            "peak_memory_mb",
        ]
        assert set(promised) <= set(finished)
        assert finished["status"] == "done"
        assert finished["generator"] == "files"
        assert finished["rasterizer"] == "cpu"
        assert finished["elevation_deg"] == pytest.approx(15.0)
        stages = {"load", "image", "orbit", "fit", "refine", "mesh", "texture", "export", "total"}
        assert set(finished["timings_s"]) == stages
        assert set(finished["mesh_stats"]) == {"faces", "vertices", "components", "watertight", "genus", "texture_size"}
        assert finished["mesh_stats"]["watertight"]
        assert 100 < finished["mesh_stats"]["faces"] <= 3000

    def test_the_mesh_stands_on_the_ground_at_its_height(self, finished: dict[str, Any]) -> None:
        low, high = trimesh.load(finished["mesh"], force="mesh").bounds
        assert low[1] == pytest.approx(0.0, abs=1e-6)
        assert high[1] == pytest.approx(0.3, abs=1e-5)
        assert low[0] + high[0] == pytest.approx(0.0, abs=1e-5)
        assert low[2] + high[2] == pytest.approx(0.0, abs=1e-5)

    def test_the_matrix_leads_back_to_the_orbit(self, finished: dict[str, Any]) -> None:
        mesh = trimesh.load(finished["mesh"], force="mesh")
        world = trimesh.transform_points(mesh.vertices, np.array(finished["orbit_from_glb"]))
        views = read_views(Path(finished["job"]) / "views")
        pixels = np.floor(views.orbit.cameras(views.size).project(world)[..., :2]).astype(int)
        inside = [views.rgba[k, y, x, 3] > 0.1 for k, (x, y) in enumerate(pixels.transpose(0, 2, 1))]
        assert np.mean(inside) > 0.95

    def test_the_pictures_are_there(self, finished: dict[str, Any]) -> None:
        with Image.open(finished["preview"]) as preview:
            assert np.asarray(preview.convert("RGB")).std() > 10
        with Image.open(finished["turntable"]) as turntable:
            assert turntable.n_frames == 36

    def test_its_steps_are_those_that_the_progress_counts(self, finished: dict[str, Any]) -> None:
        job = Job.open(Path(finished["job"]))
        assert job.state.finished == [step.name for step in planned_steps(job.request, job.state.notes)]

    def test_nothing_temporary_is_left(self, finished: dict[str, Any]) -> None:
        names = {p.name for p in Path(finished["job"]).iterdir()}
        assert names == {
            "request.json", "state.json", "log.txt", ".lock", "views", "splats.ply", "mesh.glb", "preview.png",
            "turntable.webp", "result.json",
        }  # fmt: skip

    def test_the_same_command_again_returns_the_finished_job(
        self, finished: dict[str, Any], views_folder: Path
    ) -> None:
        before = Path(finished["mesh"]).stat().st_mtime_ns
        again = run(*arguments("--views", str(views_folder), "--out", finished["job"], "--height", "0.3"))
        assert again.returncode == 0, again.stderr
        assert last_object(again)["mesh_stats"] == finished["mesh_stats"]
        assert Path(finished["mesh"]).stat().st_mtime_ns == before

    def test_a_resumed_finished_job_needs_no_input_any_more(self, finished: dict[str, Any], tmp_path: Path) -> None:
        job = tmp_path / "copy"
        shutil.copytree(finished["job"], job)
        request = json.loads((job / "request.json").read_text())
        request["views"] = str(tmp_path / "gone")
        (job / "request.json").write_text(json.dumps(request))
        done = run(sys.executable, "-m", "im3d.cli", "resume", str(job), "--device", "cpu", "--json")
        assert done.returncode == 0, done.stderr


def killed_after(step: str, command: list[str], out: Path, how: signal.Signals) -> int:
    """Starts a job and sends `how` when its log says that `step` began; returns the exit status."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment(), bufsize=1
    )
    log = out / "log.txt"
    while process.poll() is None:
        if log.exists() and f"{step}: start" in log.read_text():
            process.send_signal(how)
            break
        try:
            process.wait(0.01)
        except subprocess.TimeoutExpired:
            continue
    process.communicate(timeout=120)
    return process.returncode


@pytest.mark.slow
@pytest.mark.parametrize("step", ["orbit", "fit to 90", "mesh", "texture", "export"])
def test_a_killed_job_resumes_to_the_same_result(
    step: str, finished: dict[str, Any], views_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "job"
    command = arguments("--views", str(views_folder), "--out", str(out), "--height", "0.3", "--blender", "/none")
    assert killed_after(step, command, out, signal.SIGKILL) == -signal.SIGKILL
    assert not (out / "result.json").exists()
    done = run(sys.executable, "-m", "im3d.cli", "resume", str(out), "--device", "cpu", "--blender", "/none", "--json")
    assert done.returncode == 0, done.stderr
    resumed = last_object(done)
    assert resumed["mesh_stats"] == finished["mesh_stats"]
    mine, theirs = load_ply(Path(resumed["splats"])), load_ply(Path(finished["splats"]))
    assert len(mine) == len(theirs)
    assert np.allclose(mine.means, theirs.means, atol=1e-6)
    assert Path(resumed["mesh"]).read_bytes() == Path(finished["mesh"]).read_bytes()


@pytest.mark.slow
def test_ctrl_c_leaves_a_resumable_job(views_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "job"
    command = arguments("--views", str(views_folder), "--out", str(out), "--set", "fit.iterations=5000")
    assert killed_after("fit to 5000", command, out, signal.SIGINT) == 130
    state = json.loads((out / "state.json").read_text())
    assert state["status"] == "cancelled"
    assert state["finished"] == ["load", "image", "orbit"]
    assert not list(out.rglob("*.part*"))


class TestBadInput:
    """Exit status 2, one clear sentence, and nothing half-written."""

    @pytest.mark.parametrize(
        ("extra", "says"),
        [
            (["--views", "nowhere"], "nowhere does not exist"),
            (["--image", "nowhere.png"], "nowhere.png does not exist"),
            ([], "nothing to start from"),
            (["--prompt", "a mug", "--height", "nan"], "--height is nan"),
            (["--prompt", "a mug", "--height", "-1"], "height of -1"),
            (["--prompt", "a mug", "--set", "fit.speed=3"], "no setting fit.speed"),
            (["--prompt", "a mug", "--blend", "mug.png"], "does not end in .blend"),
        ],
    )
    def test_wrong_arguments(self, extra: list[str], says: str, tmp_path: Path) -> None:
        out = tmp_path / "job"
        done = run(*arguments(*extra, "--out", str(out)), cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert says in done.stderr
        assert last_object(done)["status"] == "error"
        assert last_object(done)["code"] == "bad_input"
        assert not out.exists()

    def test_a_text_file_called_png(self, tmp_path: Path) -> None:
        (tmp_path / "views").mkdir()
        for k in range(3):
            (tmp_path / "views" / f"view_{k:03d}.png").write_text("hello")
        self.refused(tmp_path, "not a picture")

    def test_one_view(self, tmp_path: Path) -> None:
        self.save(tmp_path, [picture(64)])
        self.refused(tmp_path, "only one picture")

    def test_views_of_different_sizes(self, tmp_path: Path) -> None:
        self.save(tmp_path, [picture(64), picture(72), picture(64)])
        self.refused(tmp_path, "differ in size")

    def test_an_empty_mask(self, tmp_path: Path) -> None:
        empty = picture(64)
        empty[..., 3] = 0
        self.save(tmp_path, [picture(64), empty, picture(64)])
        self.refused(tmp_path, "empty")

    def test_a_picture_of_a_hundred_megapixels(self, tmp_path: Path) -> None:
        (tmp_path / "views").mkdir()
        Image.new("1", (10000, 10000)).save(tmp_path / "views" / "view_000.png")
        Image.new("1", (10000, 10000)).save(tmp_path / "views" / "view_001.png")
        self.refused(tmp_path, "too large")

    def test_not_a_number_in_the_orbit(self, tmp_path: Path) -> None:
        self.save(tmp_path, [picture(64)] * 4)
        (tmp_path / "views" / "orbit.json").write_text('{"elevation_deg": NaN, "radius": 2.0}')
        self.refused(tmp_path, "finite")

    def test_views_without_a_common_volume(self, tmp_path: Path) -> None:
        left, right = np.zeros((64, 64, 4), np.uint8), np.zeros((64, 64, 4), np.uint8)
        left[10:20, 5:12] = 255
        right[44:60, 40:60] = 255
        self.save(tmp_path, [left, right] * 4)
        (tmp_path / "views" / "orbit.json").write_text(
            json.dumps({"azimuths_deg": [45.0 * k for k in range(8)], "elevation_deg": 10, "radius": 2.0})
        )
        self.refused(tmp_path, "common volume", folder_stays=True)

    def save(self, folder: Path, pictures: list[np.ndarray[Any, np.dtype[np.uint8]]]) -> None:
        (folder / "views").mkdir()
        for k, pixels in enumerate(pictures):
            Image.fromarray(pixels).save(folder / "views" / f"view_{k:03d}.png")

    def refused(self, folder: Path, says: str, folder_stays: bool = False) -> None:
        out = folder / "job"
        done = run(*arguments("--views", str(folder / "views"), "--out", str(out)))
        assert done.returncode == 2, done.stderr
        assert says in last_object(done)["message"]
        assert "Traceback" not in done.stderr
        if out.exists():  # a job that failed says so and can be looked at; it holds no results
            assert json.loads((out / "state.json").read_text())["status"] == "failed"
            assert not [p for p in out.rglob("*") if p.suffix in (".glb", ".ply") or ".part" in p.name]


def picture(size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A red disc on transparency, (size, size, 4) uint8."""
    y, x = np.mgrid[:size, :size] - size / 2
    result = np.zeros((size, size, 4), np.uint8)
    result[x**2 + y**2 < (size / 3) ** 2] = (200, 30, 30, 255)
    return result


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder(views_folder: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    done = run(*arguments("--views", str(views_folder), "--out", str(tmp_path / "job")))
    tmp_path.chmod(0o700)
    assert done.returncode == 2
    assert "permission denied" in done.stderr


def test_a_folder_below_a_file(views_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run(*arguments("--views", str(views_folder), "--out", str(tmp_path / "file" / "job")))
    assert done.returncode == 2
    assert "not a folder" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="uses resource limits")
def test_a_file_that_cannot_grow_is_explained(views_folder: Path, tmp_path: Path) -> None:
    """A full disk, imitated by a limit on the size of files: writing beyond it fails as it would on a full disk."""
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000));"
        "from im3d.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    out = tmp_path / "job"
    command = arguments("--views", str(views_folder), "--out", str(out))
    done = run(sys.executable, "-c", limited, *command[3:])
    assert done.returncode == 1
    assert last_object(done)["code"] == "disk"
    assert not list(out.rglob("*.part*"))


@pytest.mark.parametrize("command", ["generate", "resume", "doctor"])
def test_help_answers_without_heavy_imports(command: str) -> None:
    code = (
        "import sys; from im3d.cli.main import main\n"
        f"try: main([{command!r}, '--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'numba', 'scipy', 'PIL', 'diffusers') if m in sys.modules])"
    )
    done = run(sys.executable, "-c", code)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_doctor_says_what_there_is() -> None:
    done = run(sys.executable, "-m", "im3d.cli", "doctor", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["rasterizers"]["cpu"] == "available"
    assert facts["perceptual"] in ("efficientnet-lite0", "lpips-vgg16")
    assert (facts["models"]["vgg16"] == "installed") == (facts["perceptual"] == "lpips-vgg16")
    assert str(Path.home()) not in json.dumps({k: v for k, v in facts.items() if k != "blender"})
