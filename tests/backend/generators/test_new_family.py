"""A family of generators that is made up here runs a whole job once it is in `FAMILIES`: nothing else names it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from analytic import orbit_views

from im3d.cli.main import main
from im3d.core.images import OrbitViews, over, write_png
from im3d.core.progress import Progress
from im3d.errors import ModelError
from im3d.generators import choose
from im3d.generators.base import Family, Generator, GeneratorInputs, Subject, ViewFacts

SMALL = ("fit.iterations=40", "fit.size=48", "fit.points=600", "fit.max_gaussians=800", "refine.interval=20",
         "refine.steps=2", "refine.raise_deg=10", "mesh.grid=48", "mesh.virtual_views=4", "mesh.faces=1000",
         "mesh.outline_rounds=0", "texture.size=64", "texture.normal_map=false", "texture.polish=0",
         "fit.lpips=0")  # fmt: skip


class PotGenerator:
    """Turns every subject into the same pot, seen from wherever it is asked for."""

    name = "pot"
    size = 64
    framing = 0.8
    input_frame = 0
    can_refine = True
    takes_elevation = True
    refine_noise = 0.5
    network_calls = 0

    def __init__(self) -> None:
        self.orbit = orbit_views(self.size, count=8).orbit
        self.elevations: list[float | None] = []

    def generate(self, subject: Subject | None, seed: int, progress: Progress) -> OrbitViews:
        assert subject is not None
        assert subject.rgba.shape == (self.size, self.size, 4)
        self.network_calls += 1
        return orbit_views(self.size, count=8)

    def refine(
        self, subject: Subject, renders: OrbitViews, noise: float, steps: int, seed: int, progress: Progress
    ) -> OrbitViews:
        assert noise == self.refine_noise
        self.network_calls += steps
        self.elevations.append(renders.orbit.elevation_deg)
        return orbit_views(self.size, count=8, elevation_deg=renders.orbit.elevation_deg)

    def facts(self) -> ViewFacts:
        return ViewFacts(elevation_source="prior", warnings=("Everything looks like a pot.",))

    def release(self) -> None:
        self.released = True


made: list[PotGenerator] = []


def build(name: str, inputs: GeneratorInputs) -> Generator:
    made.append(PotGenerator())
    return made[-1]


def weights(name: str) -> None:
    if name == "teapot":
        raise ModelError("The teapot is not installed.", "Wait for it.")


POTS = Family(("teapot", "pot"), build, weights, takes_elevation=("pot",))


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(choose, "FAMILIES", (POTS, *choose.FAMILIES))
    monkeypatch.setenv("IM3D_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", "/nonexistent")


@pytest.mark.usefixtures("added")
def test_it_is_offered_and_chosen() -> None:
    assert choose.generator_names()[:3] == ("auto", "teapot", "pot")
    choice = choose.choose_generator("auto", torch.device("cpu"))
    assert choice == choose.Choice("pot", "pot is the best that is installed and fits (teapot is not installed).")
    with pytest.raises(ModelError, match="teapot"):
        choose.choose_generator("teapot", torch.device("cpu"))
    reluctant = dataclasses.replace(POTS, obstacle=lambda name, device: "dislikes processors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose, "FAMILIES", (reluctant,))
        with pytest.raises(ModelError, match="pot dislikes processors"):
            choose.choose_generator("auto", torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.usefixtures("added")
def test_it_runs_a_whole_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_png(tmp_path / "pot.png", over(orbit_views(96, count=2).rgba[0]))
    (tmp_path / "home").mkdir()  # the times of the stages are learnt there
    changes = [part for value in SMALL for part in ("--set", value)]
    status = main(
        ["generate", "--image", str(tmp_path / "pot.png"), *changes, "--device", "cpu",
         "--blender", "/none", "--json", "--out", str(tmp_path / "job")]
    )  # fmt: skip
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert status == 0, result
    assert result["generator"] == "pot"
    (learnt,) = json.loads((tmp_path / "home" / "stage_times.json").read_text(encoding="utf-8"))
    assert learnt.startswith("cpu image pot ")
    assert learnt.endswith(" 1 rounds")
    assert (result["elevation_method"], result["elevation_confidence"]) == ("prior", 0.0)
    assert "Everything looks like a pot." in result["warnings"]
    assert result["network_calls"] == 1 + 2 + 2
    # One refinement round, on a raised orbit too.
    level = result["elevation_deg"]
    assert made[-1].elevations == [level + 10, level]
    assert made[-1].released
    assert result["mesh_stats"]["watertight"]
