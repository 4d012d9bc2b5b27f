"""Which generator a job gets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import pretend_free, record

from im3d.errors import InputError, ModelError
from im3d.generators.base import GeneratorInputs
from im3d.generators.choose import build_generator, choose_generator
from im3d.generators.mini import generator as mini
from im3d.models.catalog import find_model
from im3d.settings import Settings, Sv3dSettings
from im3d.shared.paths import models_folder

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is installed, and the GPU has 24 GB."""
    monkeypatch.setenv("IM3D_HOME", str(tmp_path))
    monkeypatch.setattr(mini, "SHIPPED_WEIGHTS", tmp_path / "none")
    pretend_free(monkeypatch, 24.0)


def install(*names: str) -> None:
    for name in names:
        folder = models_folder() / name
        folder.mkdir(parents=True)
        if name == "mini":
            (folder / "config.json").write_text('{"sample_size": 128, "views": 16}')
        else:
            (folder / find_model(name).files[0]).write_bytes(b"x")
            record(name)


@pytest.mark.parametrize(
    ("there", "elevation_known", "chosen"),
    [
        (("sv3d_u", "sv3d_p", "mini"), False, "sv3d_u"),
        (("sv3d_u", "sv3d_p", "mini"), True, "sv3d_p"),
        (("sv3d_u", "mini"), True, "sv3d_u"),
        (("sv3d_p", "mini"), False, "sv3d_p"),
        (("mini",), False, "mini"),
    ],
)
def test_auto_takes_the_best_that_is_installed(there: tuple[str, ...], elevation_known: bool, chosen: str) -> None:
    install(*there)
    choice = choose_generator("auto", GPU, elevation_known)
    assert choice.name == chosen
    assert choice.reason.startswith(f"{chosen} is the best that is installed and fits")


def test_auto_says_what_it_passed_by_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    install("sv3d_u", "mini")
    assert "sv3d_u needs a GPU; sv3d_p is not installed" in choose_generator("auto", CPU).reason
    pretend_free(monkeypatch, 3.25)
    choice = choose_generator("auto", GPU)
    assert choice.name == "mini"
    assert "sv3d_u needs 6.5 GB of free GPU memory and 3.2 GB are free" in choice.reason


@pytest.mark.parametrize("name", ["sv3d_u", "sv3d_p", "mini"])
def test_a_name_is_taken_at_its_word(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        choose_generator(name, CPU)
    assert caught.value.exit_status == 3
    if name != "mini":
        assert "9.4 GB" in caught.value.hint
        assert caught.value.remedy == f"download {name}"
    install(name)
    assert choose_generator(name, CPU) == choose_generator(name, GPU)
    assert choose_generator(name, CPU).reason == ""


def test_nothing_installed_names_a_command() -> None:
    with pytest.raises(ModelError, match="is installed") as caught:
        choose_generator("auto", GPU)
    assert "SV3D (9.4 GB" in caught.value.hint
    assert caught.value.remedy == "download sv3d_u"
    # Nobody should fetch nine gigabytes to learn that his machine cannot use them.
    with pytest.raises(ModelError) as caught:
        choose_generator("auto", CPU)
    assert "Download SV3D (9.4 GB; it needs an NVIDIA GPU of 8 GB, which is missing here)" in caught.value.hint


def test_installed_but_too_large_is_said_as_such() -> None:
    install("sv3d_u")
    with pytest.raises(ModelError, match="sv3d_u needs a GPU") as caught:
        choose_generator("auto", CPU)
    assert caught.value.remedy == ""


def test_an_unknown_name() -> None:
    with pytest.raises(InputError, match="no generator zero123"):
        choose_generator("zero123", CPU)


def test_jobs_with_provided_views_do_not_wait_for_diffusers() -> None:
    code = "import sys, im3d.jobs.stages; print([m for m in ('diffusers', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_settings_reach_sv3d() -> None:
    settings = Settings(sv3d=Sv3dSettings(views=16, size=512, steps=7))
    generator = build_generator("sv3d_p", GeneratorInputs(CPU, settings, elevation_deg=30.0))
    assert (generator.name, generator.size, len(generator.orbit)) == ("sv3d_p", 512, 16)
    assert generator.orbit.elevation_deg == 30
    assert generator.can_refine
    with pytest.raises(InputError, match="0 steps"):
        build_generator("sv3d_u", GeneratorInputs(CPU, Settings(sv3d=Sv3dSettings(steps=0))))
    install("mini")
    assert build_generator("mini", GeneratorInputs(CPU, settings)).size == 256
