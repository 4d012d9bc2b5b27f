"""A picture from a sentence, by small random pipelines in the layout of the published ones."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_models import MAKERS, SMALL, pretend_free, record

from im3d.core.progress import silent
from im3d.errors import CancelledError, InputError, ModelError, OutOfMemoryError
from im3d.models.cache import MODELS
from im3d.models.catalog import find_model, models
from im3d.settings import ImageSettings
from im3d.views import text_to_image
from im3d.views.text_to_image import (
    ORBIT_WORDS,
    RECIPES,
    choose_image_model,
    choose_memory,
    generate_picture,
    load_pipeline,
    memory_needs,
    motion_warning,
    orbit_prompt,
    parameter_count,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three models, installed."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IM3D_HOME", str(folder))
        for name, make in MAKERS.items():
            make(find_model(name).folder)
            record(name)
    return folder


@pytest.fixture
def installed_models(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IM3D_HOME", str(home))


def test_every_image_model_has_a_recipe_in_the_same_order() -> None:
    assert [m.name for m in models().values() if m.purpose == "image"] == list(RECIPES)
    for recipe in RECIPES.values():
        assert hasattr(diffusers, recipe.pipeline)


@pytest.mark.usefixtures("installed_models")
@pytest.mark.parametrize("name", list(MAKERS))
class TestModels:
    def test_draws_what_the_seed_and_the_prompt_say(self, name: str) -> None:
        steps: list[tuple[int, int]] = []
        picture = generate_picture("a red mug", name, SMALL, 1, CPU, lambda step, of, _=None: steps.append((step, of)))
        assert picture.shape == (64, 64, 4)
        assert picture.dtype == np.float32
        assert np.isfinite(picture).all()
        assert (picture[..., 3] == 1).all()
        assert picture[..., :3].std() > 0.01
        assert steps == [(0, 2), (1, 2), (2, 2)]
        np.testing.assert_array_equal(picture, generate_picture("a red mug", name, SMALL, 1, CPU, silent))
        assert not np.array_equal(picture, generate_picture("a red mug", name, SMALL, 2, CPU, silent))

    def test_is_called_as_its_makers_advise(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: dict[str, object] = {}
        kind = getattr(diffusers, RECIPES[name].pipeline)

        class CalledError(Exception):
            pass

        def remember(self: object, **options: object) -> None:
            asked.update(options)
            raise CalledError

        monkeypatch.setattr(kind, "__call__", remember)
        with pytest.raises(CalledError):
            generate_picture("a red mug.", name, ImageSettings(), 1, CPU, silent)
        steps, guidance = {"flux2_klein": (4, 1.0), "z_image_turbo": (9, 0.0), "sdxl": (30, 6.0)}[name]
        assert (asked["num_inference_steps"], asked["guidance_scale"]) == (steps, guidance)
        assert (asked["height"], asked["width"]) == (1024, 1024)
        assert asked["prompt"] == f"a red mug, {ORBIT_WORDS}"

    def test_leaves_memory_when_it_is_done(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        networks: list[weakref.ref[torch.nn.Module]] = []

        def watched(*args: object) -> object:
            pipeline = load_pipeline(*args)  # type: ignore[arg-type]
            networks.extend(weakref.ref(p) for p in pipeline.components.values() if isinstance(p, torch.nn.Module))
            return pipeline

        monkeypatch.setattr(text_to_image, "load_pipeline", watched)
        generate_picture("a red mug", name, SMALL, 1, CPU, silent)
        assert len(networks) >= 3
        assert [n() for n in networks] == [None] * len(networks)

    @pytest.mark.parametrize("memory", ["whole", "offload", "compressed"])
    def test_a_pipeline_that_is_kept_draws_the_same(
        self, memory: str, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(text_to_image, "choose_memory", lambda *_: memory)  # on a CPU it would be "whole"
        read = text_to_image._read_pipeline
        reads: list[str] = []
        monkeypatch.setattr(text_to_image, "_read_pipeline", lambda *args: reads.append(args[0]) or read(*args))

        def stop(step: int, steps: int, preview: object = None) -> None:
            if step == 1:
                raise CancelledError("Stopped.")

        alone = generate_picture("a red mug", name, SMALL, 1, CPU, silent)
        with MODELS.keeping():
            with pytest.raises(CancelledError):
                generate_picture("a blue mug", name, SMALL, 2, CPU, stop)
            for _ in range(2):
                np.testing.assert_array_equal(generate_picture("a red mug", name, SMALL, 1, CPU, silent), alone)
        assert reads == [name, name]

    def test_compressed_weights_take_half_and_draw_nearly_the_same(self, name: str) -> None:
        folder = find_model(name).folder
        whole = load_pipeline(name, folder, CPU, "whole")
        compressed = load_pipeline(name, folder, CPU, "whole")
        for network in text_to_image._large_networks(compressed):
            text_to_image._compress(network, next(network.parameters()).dtype)
        part = "unet" if name == "sdxl" else "transformer"
        weights = list(getattr(compressed, part).parameters())
        assert sum(w.dtype == torch.float8_e4m3fn for w in weights) > 0.3 * len(weights)
        pictures = [
            np.asarray(
                p(
                    prompt="a red mug",
                    height=64,
                    width=64,
                    num_inference_steps=2,
                    guidance_scale=RECIPES[name].guidance,
                    generator=torch.Generator().manual_seed(0),
                ).images[0],
                np.float32,
            )
            / 255
            for p in (whole, compressed)
        ]
        difference = np.abs(pictures[0] - pictures[1]).mean()
        assert 0 < difference < 0.1


@pytest.mark.usefixtures("installed_models")
class TestFailures:
    def test_cancelling_stops_at_the_step(self) -> None:
        def stop(step: int, steps: int, preview: object = None) -> None:
            if step == 1:
                raise CancelledError("Stopped.")

        with pytest.raises(CancelledError):
            generate_picture("a mug", "flux2_klein", SMALL, 0, CPU, stop)

    def test_a_folder_of_another_model_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("IM3D_HOME", str(tmp_path))
        folder = tmp_path / "models" / "flux2_klein"
        folder.mkdir(parents=True)
        (folder / "model_index.json").write_text(json.dumps({"_class_name": "EvilPipeline"}))
        with pytest.raises(ModelError, match="it is a EvilPipeline, not a Flux2KleinPipeline") as caught:
            load_pipeline("flux2_klein", folder, CPU, "whole")
        assert caught.value.remedy == "download flux2_klein"

    def test_an_exhausted_gpu_names_the_next_smaller_mode(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def exhausted(*_: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(text_to_image, "load_pipeline", exhausted)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        for mode, advice in (("whole", "offload"), ("offload", "compressed"), ("compressed", "a smaller one")):
            settings = ImageSettings(memory=mode)  # type: ignore[arg-type]
            with pytest.raises(OutOfMemoryError, match=f"the GPU in the mode {mode}") as caught:
                generate_picture("a mug", "sdxl", settings, 0, torch.device("cuda"), silent)
            assert advice in caught.value.hint
            assert caught.value.exit_status == 4

    def test_other_failures_stay_what_they_are(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: object) -> None:
            raise RuntimeError("shapes do not match")

        monkeypatch.setattr(text_to_image, "load_pipeline", broken)
        with pytest.raises(RuntimeError, match="shapes"):
            generate_picture("a mug", "sdxl", SMALL, 0, CPU, silent)


class TestMemory:
    """A model of three networks: 4, 3 and 0.1 thousand million parameters, by the headers of their files alone."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for part, billions in (("transformer", 4.0), ("text_encoder", 3.0), ("vae", 0.1)):
            (tmp_path / part).mkdir()
            header = {"w": {"dtype": "BF16", "shape": [int(billions * 1000), 1_000_000], "data_offsets": [0, 0]}}
            text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
            (tmp_path / part / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
        return tmp_path

    def test_parameters_are_counted_from_the_headers(self, tmp_path: Path) -> None:
        save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5), "c": torch.tensor(1.0)}, tmp_path / "1.safetensors")
        save_file({"d": torch.zeros(2, 2)}, tmp_path / "2.safetensors")
        assert parameter_count(tmp_path) == 3 * 4 + 5 + 1 + 4

    def test_needs_fall_from_mode_to_mode(self, folder: Path) -> None:
        needs = memory_needs(folder)
        assert list(needs) == ["whole", "offload", "compressed"]
        gigabytes = 2e9 / 2**30
        assert needs["whole"] == pytest.approx(7.1 * gigabytes + 3)
        assert needs["offload"] == pytest.approx(4 * gigabytes + 3)
        assert needs["compressed"] == pytest.approx(2 * gigabytes + 3)

    @pytest.mark.parametrize(
        ("free", "mode"), [(23.0, "whole"), (16.3, "whole"), (11.0, "offload"), (7.2, "compressed")]
    )
    def test_the_free_memory_chooses(
        self, free: float, mode: str, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pretend_free(monkeypatch, free)
        assert choose_memory("auto", folder, torch.device("cuda")) == mode
        assert choose_memory("compressed", folder, torch.device("cuda")) == "compressed"
        assert choose_memory("compressed", folder, CPU) == "whole"

    def test_too_little_is_explained(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pretend_free(monkeypatch, 4.0)
        with pytest.raises(OutOfMemoryError, match=r"needs 6\.7 GB .* 4\.0 GB are free"):
            choose_memory("auto", folder, torch.device("cuda"))

    @pytest.mark.parametrize("mode", ["whole", "offload", "compressed"])
    def test_each_mode_is_arranged(self, mode: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("IM3D_HOME", str(home))
        done: list[str] = []
        kind = diffusers.Flux2KleinPipeline
        monkeypatch.setattr(kind, "to", lambda self, device: done.append("on the GPU") or self)
        monkeypatch.setattr(kind, "enable_model_cpu_offload", lambda self, device: done.append("offloaded"))
        monkeypatch.setattr(diffusers.AutoencoderKLFlux2, "enable_tiling", lambda self: done.append("tiled"))
        monkeypatch.setattr(text_to_image, "_compress", lambda network, dtype: done.append(type(network).__name__))
        load_pipeline("flux2_klein", find_model("flux2_klein").folder, torch.device("cuda"), mode)
        compressed = ["Flux2Transformer2DModel", "Qwen3ForCausalLM"]
        expected = {
            "whole": ["on the GPU"],
            "offload": ["offloaded", "tiled"],
            "compressed": [*compressed, "offloaded", "tiled"],
        }
        assert sorted(done) == sorted(expected[mode])


class TestChoice:
    def test_auto_is_the_first_that_is_installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("IM3D_HOME", str(tmp_path))
        with pytest.raises(ModelError, match="No text-to-image model") as caught:
            choose_image_model(ImageSettings())
        assert caught.value.remedy == "download flux2_klein"
        for name in ("sdxl", "flux2_klein"):
            find_model(name).folder.mkdir(parents=True)
            (find_model(name).folder / "model_index.json").write_text("{}")
            record(name)
            assert choose_image_model(ImageSettings()) == name
        assert choose_image_model(ImageSettings(model="sdxl")) == "sdxl"
        with pytest.raises(ModelError) as caught:
            choose_image_model(ImageSettings(model="z_image_turbo"))
        assert caught.value.remedy == "download z_image_turbo"

    @pytest.mark.parametrize("settings", [ImageSettings(size=500), ImageSettings(size=-16), ImageSettings(steps=-1)])
    def test_a_picture_that_cannot_be_drawn(self, settings: ImageSettings) -> None:
        with pytest.raises(InputError, match="cannot be made"):
            choose_image_model(settings)


class TestPrompt:
    def test_words_for_orbits_are_added_once_and_tidily(self) -> None:
        assert orbit_prompt(" a brass lamp. ") == f"a brass lamp, {ORBIT_WORDS}"

    @pytest.mark.parametrize(
        ("prompt", "verb"),
        [
            ("two horses galloping on a beach", "galloping"),
            ("a Dancing robot", "Dancing"),
            ("a cat, caught in full motion", "in full motion"),
            ("a dragon flying", "flying"),
            ("a horse that gallops", "gallops"),
            ("a skater in mid-air", "mid-air"),
            ("an eagle in flight", "in flight"),
        ],
    )
    def test_motion_is_noticed(self, prompt: str, verb: str) -> None:
        warning = motion_warning(prompt)
        assert warning is not None
        assert f'"{verb}"' in warning

    @pytest.mark.parametrize(
        "prompt",
        [
            "a gold ring",
            "a building",
            "a wooden spring",
            "a rolling pin",
            "earrings",
            "an action figure",
            "a flight of stairs",
            "a jar of hops",
            "swings",
        ],
    )
    def test_things_that_only_sound_like_it_are_not(self, prompt: str) -> None:
        assert motion_warning(prompt) is None
