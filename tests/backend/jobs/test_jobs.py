"""The job folder: atomic files, states, locks, requests."""

from __future__ import annotations

import dataclasses
import errno
import json
import multiprocessing
import os
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from analytic import orbit_views

from im3d.core.images import write_png, write_views
from im3d.core.progress import silent
from im3d.core.storage import make_folder, replacing, require_file, write_bytes, write_json
from im3d.errors import DiskError, InputError
from im3d.jobs.job import Job, Request, State, stage_seed
from im3d.jobs.job_progress import JobProgress
from im3d.jobs.runner import StepRunner
from im3d.jobs.stages import Stages
from im3d.pipeline import run_pipeline
from im3d.settings import RENAMED, Settings, changed, parse_overrides, preset_settings, settings_from_json
from im3d.shared.names import PRESETS, default_name


def request(**changes: Any) -> Request:
    return Request(**{"name": "mug", "views": "/somewhere/mug", **changes})


class TestStorage:
    def test_a_failed_write_leaves_the_old_file_and_no_other(self, tmp_path: Path) -> None:
        path = tmp_path / "state.json"
        write_json(path, {"a": 1})
        with pytest.raises(RuntimeError), replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError
        assert json.loads(path.read_text()) == {"a": 1}
        assert os.listdir(tmp_path) == ["state.json"]

    def test_a_full_disk_is_explained(self, tmp_path: Path) -> None:
        with pytest.raises(DiskError, match="The disk is full"), replacing(tmp_path / "x.bin") as temporary:
            temporary.write_bytes(b"begun")
            raise OSError(errno.ENOSPC, "No space left on device")
        assert os.listdir(tmp_path) == []

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
    def test_a_really_full_device_is_explained(self, tmp_path: Path) -> None:
        with pytest.raises(DiskError), replacing(tmp_path / "x.bin"), open("/dev/full", "wb") as full:
            full.write(b"x")
            full.flush()

    def test_a_folder_below_a_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(InputError, match="in the way"):
            make_folder(tmp_path / "file" / "job")

    def test_a_name_that_is_too_long_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no name for a file"):
            Job.create(tmp_path / ("long" * 65), request())

    def test_names_that_are_not_utf8_survive_json(self, tmp_path: Path) -> None:
        name = os.fsdecode(b"m_\xfc.png")
        write_json(tmp_path / "x.json", {name: [name, "ü"]})
        text = (tmp_path / "x.json").read_text(encoding="utf-8")
        assert json.loads(text) == {name: [name, "ü"]}
        assert "ü" in text

    def test_a_pipe_is_refused_before_it_is_opened(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.png")
        with pytest.raises(InputError, match="a pipe or a device"):
            require_file(tmp_path / "pipe.png", "a picture")
        with pytest.raises(InputError, match="is a folder"):
            require_file(tmp_path, "a picture")
        require_file(tmp_path / "gone.png", "a picture")

    def test_not_a_number_is_not_written(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(tmp_path / "x.json", {"x": float("nan")})
        assert os.listdir(tmp_path) == []

    def test_the_suffix_is_kept_for_writers_that_look_at_it(self, tmp_path: Path) -> None:
        with replacing(tmp_path / "a.png") as temporary:
            assert temporary.suffix == ".png"
            temporary.write_bytes(b"1")
        assert (tmp_path / "a.png").read_bytes() == b"1"


class TestRequest:
    def test_it_survives_json(self) -> None:
        settings = parse_overrides(preset_settings("draft"), ["fit.iterations=7", "texture.normal_map=false"])
        asked = request(settings=settings, elevation_deg=12.5, seed=3)
        assert Request.from_json(json.loads(json.dumps(asked.to_json()))) == asked

    @pytest.mark.parametrize(
        ("changes", "why"),
        [
            ({"image": "x.png"}, "not both"),
            ({"views": None}, "nothing to start from"),
            ({"views": None, "prompt": "  "}, "nothing to start from"),
            ({"height_m": 0.0}, "height"),
            ({"height_m": float("nan")}, "height"),
            ({"seed": -1}, "seed"),
        ],
    )
    def test_contradictions_are_refused(self, changes: dict[str, Any], why: str) -> None:
        with pytest.raises(InputError, match=why):
            request(**changes)

    @pytest.mark.parametrize(
        "changes",
        [
            {"seed": 1.5}, {"seed": "1"}, {"seed": True}, {"seed": 1e999}, {"height_m": "1"}, {"elevation_deg": "nan"},
            {"elevation_deg": float("nan")}, {"recenter": 1}, {"prompt": ["a mug"]}, {"name": 5}, {"image": 5},
            {"preset": ["draft"]}, {"generator": {}},
        ],
    )  # fmt: skip
    def test_fields_of_other_types_are_refused(self, changes: dict[str, Any]) -> None:
        with pytest.raises(InputError):
            Request.from_partial({"prompt": "a mug", **changes})
        with pytest.raises(InputError):
            Request.from_json({**request().to_json(), **changes})

    def test_whole_floats_are_whole(self) -> None:
        assert Request.from_partial({"prompt": "a mug", "seed": 2.0}).seed == 2

    def test_files_are_looked_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.png")
        picture = tmp_path / "picture.blend"
        picture.write_bytes(b"")
        for changes, why in (
            ({"image": str(tmp_path / "gone.png")}, "does not exist"),
            ({"image": str(tmp_path)}, "is a folder"),
            ({"image": str(tmp_path / "pipe.png")}, "a pipe or a device"),
            ({"views": str(tmp_path / "pipe.png")}, "a pipe or a device"),
            ({"image": str(picture), "blend": str(picture)}, "what the job starts from"),
            ({"image": str(picture), "blend": str(tmp_path / "a.png")}, "does not end in .blend"),
            ({"image": "x" * 5000}, "does not exist"),
            ({"image": "a\0b"}, "does not exist"),
        ):
            with pytest.raises(InputError, match=why):
                Request.from_partial(changes)

    @pytest.mark.parametrize("data", [None, {}, {"format": 99}, {"format": 1}, {"format": 1, "name": "x"}])
    def test_damaged_requests_are_refused(self, data: Any) -> None:
        with pytest.raises(InputError):
            Request.from_json(data)

    @pytest.mark.parametrize(
        ("prompt", "source", "name"),
        [
            ("a red mug", None, "a red mug"),
            ("", "/a/b/kettle/", "kettle"),
            ("", "photo of it.png", "photo of it"),
            ("word " * 20, None, ("word " * 8).strip()),
            ("", None, "IM-3D object"),
            ("", "m_\udcfc.png", "m_\ufffd"),
        ],
    )
    def test_names(self, prompt: str, source: str | None, name: str) -> None:
        assert request(name=default_name(prompt, source)).name == name


class TestJob:
    def test_the_same_request_finds_the_same_job(self, tmp_path: Path) -> None:
        job = Job.create(tmp_path / "job", request())
        job.finish("load", "load", 0.5)
        again = Job.create(tmp_path / "job", request(blend="/other.blend"))
        assert again.state.finished == ["load"]
        assert again.request.blend == "/other.blend"

    def test_another_request_is_refused_and_loses_nothing(self, tmp_path: Path) -> None:
        Job.create(tmp_path / "job", request())
        before = (tmp_path / "job/request.json").read_bytes()
        with pytest.raises(InputError, match="already holds another job"):
            Job.create(tmp_path / "job", request(seed=1))
        assert (tmp_path / "job/request.json").read_bytes() == before

    def test_a_job_that_failed_before_its_first_step_gives_way(self, tmp_path: Path) -> None:
        job = Job.create(tmp_path / "job", request())
        job.state.status = "failed"
        job.save()
        corrected = Job.create(tmp_path / "job", request(seed=1))
        assert corrected.request.seed == Job.open(tmp_path / "job").request.seed == 1
        assert corrected.state.status == Job.open(tmp_path / "job").state.status == "queued"
        corrected.finish("load", "load", 0.5)
        corrected.state.status = "failed"
        corrected.save()
        with pytest.raises(InputError, match="already holds another job"):
            Job.create(tmp_path / "job", request(seed=2))

    def test_the_users_own_folder_is_no_job(self, tmp_path: Path) -> None:
        (tmp_path / "views").mkdir()
        (tmp_path / "views" / "view_000.png").write_bytes(b"mine")
        with pytest.raises(InputError, match=r"files that are not a job's: views\."):
            Job.create(tmp_path, request())
        assert sorted(p.name for p in tmp_path.rglob("*")) == ["view_000.png", "views"]

    def test_what_blender_brings_is_no_obstacle(self, tmp_path: Path) -> None:
        (tmp_path / "input").mkdir()
        for name in ("queued.json", "placement.json", ".DS_Store", "Thumbs.db"):
            (tmp_path / name).write_bytes(b"{}")
        assert Job.create(tmp_path, request()).state.status == "queued"

    def test_a_job_never_reads_its_picture_from_where_it_writes(self, tmp_path: Path) -> None:
        job = Job.create(tmp_path, request())
        job.end("failed")
        (tmp_path / "input.png").write_bytes(b"mine")
        with pytest.raises(InputError, match="lies in the folder of the job"):
            Job.create(tmp_path, request(views=None, image=str(tmp_path / "input.png")))
        inside = request(views=None, image=str(tmp_path / "input" / "image.png"))
        assert Job.create(tmp_path, inside).request == inside

    def test_only_our_own_work_is_cleared(self, tmp_path: Path) -> None:
        job = Job.create(tmp_path / "job", request())
        ours = ("surface.npz", "fit.pt", ".fit.77.part.pt", "refine_1/view_000.png", "refine_1/raised/orbit.json")
        others = ("notes.txt", "refine_2/notes.txt", "more/view_000.png")
        for name in (*ours, *others):
            (job.work / name).parent.mkdir(parents=True, exist_ok=True)
            (job.work / name).write_bytes(b"")
        job.clear_work()
        assert sorted(p.relative_to(job.work).as_posix() for p in job.work.rglob("*") if p.is_file()) == sorted(others)
        for name in others:
            (job.work / name).unlink()
        (job.work / "more").rmdir()
        job.clear_work()
        assert not job.work.exists()

    def test_a_process_that_waited_finds_the_job_finished(self, tmp_path: Path) -> None:
        stale = Job.create(tmp_path, request())
        finished = Job.open(tmp_path)
        finished.state.status = "done"
        finished.save()
        files = {"mesh": "mesh.glb", "splats": "splats.ply", "preview": "preview.png", "turntable": "turntable.webp"}
        write_json(tmp_path / "result.json", files)
        before = (tmp_path / "state.json").read_bytes()
        result = run_pipeline(stale, lambda _: None, Event(), device="cpu")
        assert result["mesh"] == str(tmp_path / "mesh.glb")
        assert (tmp_path / "state.json").read_bytes() == before

    def test_a_finished_job_is_not_called_failed_by_others(self, tmp_path: Path) -> None:
        job = Job.create(tmp_path, request())
        job.end("failed", {"code": "internal"})
        assert Job.open(tmp_path).state.status == "failed"
        assert job.end("done")
        assert not Job.open(tmp_path).end("failed", {"code": "internal"})
        assert Job.open(tmp_path).state.status == "done"

    def test_a_job_that_was_killed_before_its_first_state(self, tmp_path: Path) -> None:
        Job.create(tmp_path, request())
        (tmp_path / "state.json").unlink()
        assert Job.create(tmp_path, request()).state == State()

    def test_times_add_up_by_stage(self, tmp_path: Path) -> None:
        job = Job.create(tmp_path / "job", request())
        job.finish("fit to 500", "fit", 1.0)
        job.finish("fit to 1200", "fit", 2.0)
        state = Job.open(tmp_path / "job").state
        assert state.timings_s == {"fit": 3.0}
        assert state.finished == ["fit to 500", "fit to 1200"]

    @pytest.mark.parametrize("content", ["", "[]", "{", '{"status": "queued", "surprise": 1}'])
    def test_damaged_jobs_are_refused(self, tmp_path: Path, content: str) -> None:
        Job.create(tmp_path, request())
        write_bytes(tmp_path / "state.json", content.encode())
        with pytest.raises(InputError, match="cannot be read"):
            Job.open(tmp_path)

    def test_no_job(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="holds no job"):
            Job.open(tmp_path)

    def test_two_processes_never_share_a_job_and_death_frees_it(self, tmp_path: Path) -> None:
        job = Job.create(tmp_path, request())
        context = multiprocessing.get_context("spawn")
        ready = context.Event()
        holder = context.Process(target=_hold, args=(tmp_path, ready))
        holder.start()
        assert ready.wait(60)
        with pytest.raises(InputError, match="Another process"), job.locked():
            pass
        holder.kill()
        holder.join(60)
        with job.locked():
            pass


def _hold(folder: Path, ready: Any) -> None:
    with Job.open(folder).locked():
        ready.set()
        multiprocessing.Event().wait(60)


def test_stage_seeds_differ_by_step_and_repeat() -> None:
    seeds = [stage_seed(s, step) for s in (0, 1) for step in ("orbit", "fit", "refine 1")]
    assert len(set(seeds)) == 6
    assert seeds == [stage_seed(s, step) for s in (0, 1) for step in ("orbit", "fit", "refine 1")]
    assert all(0 <= s < 2**63 for s in seeds)


class TestSettings:
    def test_overrides(self) -> None:
        settings = parse_overrides(Settings(), ["fit.iterations=300", "fit.init=ball", "texture.normal_map=False"])
        assert settings.fit.iterations == 300
        assert settings.fit.init == "ball"
        assert settings.texture.normal_map is False

    @pytest.mark.parametrize(
        "text",
        [
            "fit.iterations",
            "fit.iterations=many",
            "fit.speed=1",
            "nothing.iterations=1",
            "fit.init=cube",
            "mesh.faces=1.5",
            "texture.normal_map=maybe",
            "fit.iterations=-5",
            "fit.iterations=",
            "fit.lpips=nan",
            "fit.lpips=1e999",
            "mesh.grid=-1",
            "texture.size=100000",
            "image.size=100",
            "refine.noise=1.5",
            "refine.noise=-0.1",
            "refine.steps=0",
            f"fit.points={'9' * 5000}",
        ],
    )
    def test_wrong_overrides_are_refused(self, text: str) -> None:
        with pytest.raises(InputError) as refused:
            parse_overrides(Settings(), [text])
        assert text.partition("=")[0] in str(refused.value)
        assert len(refused.value.message) < 80

    def test_the_range_is_said(self) -> None:
        with pytest.raises(InputError) as refused:
            changed(Settings(), "image.size", 100)
        assert str(refused.value) == "image.size cannot be 100. Use a whole number, 0, or 64 to 4096 in steps of 16."
        assert changed(Settings(), "image.size", 0).image.size == 0

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("fit.iterations", True),
            ("fit.iterations", [1]),
            ("fit.iterations", None),
            ("fit.lpips", {"a": 1}),
            ("fit.init", ["hull"]),
            ("texture.normal_map", 1),
            ("sv3d.finetuned", 5),
        ],
    )
    def test_values_of_other_types_are_refused(self, name: str, value: object) -> None:
        with pytest.raises(InputError, match=rf"{name} cannot be"):
            changed(Settings(), name, value)

    @pytest.mark.parametrize("data", [5, {"fit": 5}, {"fit": [1]}, {"fit": {"speed": 1}}, [["fit", 1]]])
    def test_settings_of_a_wrong_form_are_refused(self, data: Any) -> None:
        with pytest.raises(InputError):
            Request.from_partial({"prompt": "a mug", "settings": data})

    def test_presets_are_within_the_bounds(self) -> None:
        for preset in PRESETS:
            for given in (True, False):
                settings = preset_settings(preset, given)
                assert settings_from_json(settings.to_json()) == settings

    def test_whole_numbers_as_spreadsheets_write_them(self) -> None:
        assert changed(Settings(), "fit.iterations", "800.0").fit.iterations == 800
        assert changed(Settings(), "fit.iterations", 800.0).fit.iterations == 800

    @pytest.mark.parametrize(
        ("wrong", "hint"),
        [
            ("fit.iteration", "Did you mean fit.iterations?"),
            ("polish", "Did you mean texture.polish?"),
            ("mesh.size", "Did you mean fit.size or texture.size or image.size or sv3d.size?"),
            ("zebra", "Settings belong to one of: fit, mesh, texture, refine, image, sv3d, mini."),
        ],
    )
    def test_a_misspelt_setting_answers_with_the_nearest(self, wrong: str, hint: str) -> None:
        with pytest.raises(InputError, match=f"There is no setting {wrong}") as caught:
            changed(Settings(), wrong, 3)
        assert caught.value.hint == hint

    def test_old_names_are_accepted_with_a_note_that_reaches_the_job(self, tmp_path: Path) -> None:
        for old, new in RENAMED.items():
            value = "0.1" if old == "mesh.behind" else "7"
            section, _, name = new.partition(".")
            settings = parse_overrides(Settings(), [f"{old}={value}"])
            assert str(getattr(getattr(settings, section), name)) == value
        asked = Request.from_partial({"prompt": "a mug", "settings": {"refine": {"every": 300}, "fit": {"size": 64}}})
        assert asked.settings.refine.interval == 300
        note = "Settings were renamed: refine.every is refine.interval now."
        assert [w[: len(note)] for w in asked.warnings] == [note]
        # As the worker meets it, in a process of its own.
        Job.create(tmp_path / "job", asked)
        heard: list[str] = []
        Stages(Job.open(tmp_path / "job"), "cpu", None, heard.append)
        assert heard == list(asked.warnings)

    def test_the_job_of_an_earlier_version_goes_on_with_its_settings(self, tmp_path: Path) -> None:
        """Also one of the preset that has another meaning now."""
        data = request(preset="paper", settings=changed(preset_settings("high"), "fit.densify_every", 30)).to_json()
        data["settings"]["fit"]["refine_every"] = data["settings"]["fit"].pop("densify_every")
        (tmp_path / "request.json").write_text(json.dumps(data))
        job = Job.open(tmp_path)
        assert (job.request.settings.fit.densify_every, job.request.settings.fit.size) == (30, 256)
        assert job.request.settings.mesh.route == "fusion"
        heard: list[str] = []
        again = Stages(job, "cpu", None, heard.append)
        assert ["fit.refine_every is fit.densify_every now" in w for w in heard] == [True]
        again.job.save()
        Stages(Job.open(tmp_path), "cpu", None, heard.append)
        assert len(heard) == 2  # once for each process


class TestPaper:
    def test_the_preset_has_the_papers_numbers_for_every_source(self) -> None:
        """Appendix A.1 and sections 3.3 and 3.4."""
        assert preset_settings("paper", provided_views=True) == preset_settings("paper")
        settings = preset_settings("paper")
        fit, refine = settings.fit, settings.refine
        assert (fit.lpips, fit.ms_ssim, fit.mask, fit.rgb, fit.lpips_shrink) == (10, 0.2, 1, 0, 1)
        assert (fit.points, fit.init, fit.densify_every, fit.iterations) == (5000, "ball", 50, 1200)
        assert (fit.size, fit.ramp) == (0, 0)
        assert (refine.rounds, refine.interval, refine.steps, refine.raise_deg) == (2, 500, 10, 0)
        assert (settings.sv3d.views, settings.sv3d.size, settings.mini.views) == (16, 512, 16)
        assert settings.mesh.route == "density"

    def test_missing_networks_of_the_paper_are_said(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("IM3D_HOME", str(tmp_path / "home"))
        write_png(tmp_path / "a.png", np.full((16, 16, 4), 0.5, np.float32))
        for preset, expected in (("paper", ["VGG16", "IS-Net"]), ("high", [])):
            asked = request(views=None, image=str(tmp_path / "a.png"), preset=preset, generator="mini")
            heard: list[str] = []
            Stages(Job.create(tmp_path / preset, asked), "cpu", None, heard.append).load(silent)
            assert [name for name in ("VGG16", "IS-Net") if any(f"{name}, which" in w for w in heard)] == expected
            assert len(heard) == len(expected)

    def test_state_has_plain_values_only(self) -> None:
        json.dumps(dataclasses.asdict(State()), allow_nan=False)


def test_the_result_says_what_each_step_was_done_with(tmp_path: Path) -> None:
    """A job that was resumed elsewhere: not what the last machine would have used."""
    job = Job.create(tmp_path / "job", request())
    steps = {"fit to 40": "warp", "fit to 90": "cuda", "mesh": None}
    for step, rasterizer in steps.items():
        device = "card" if rasterizer else "cpu"
        runner = StepRunner(job, lambda _: None, Event(), JobProgress([], []))
        runner.machine = {"device": device, "torch": f"2 of {device}"}
        runner(step, lambda progress: None)
        for name in ("rasterizer", "perceptual") if rasterizer else ():
            job.state.notes.setdefault(name, []).append(f"{name} {rasterizer}")
    job.state.notes |= dict.fromkeys(
        ("generator", "network_calls", "elevation_method", "elevation_confidence", "direction", "direction_confidence",
         "orbit_from_glb", "mesh_stats", "unseen"), 0
    )  # fmt: skip
    job.save()
    write_views(job.folder / "views", orbit_views(32, count=4))
    Stages(Job.open(job.folder), "cpu", None, print).finish()
    result = json.loads((job.folder / "result.json").read_text())
    assert (result["device"], result["versions"]) == ("card and cpu", {"torch": "2 of card and 2 of cpu"})
    assert result["rasterizer"] == "rasterizer warp and rasterizer cuda"
    assert result["perceptual"] == "perceptual warp and perceptual cuda"
    assert result["ran_with"]["mesh"] == {"device": "cpu", "torch": "2 of cpu"}
