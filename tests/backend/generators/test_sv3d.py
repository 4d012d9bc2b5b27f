"""SV3D as a generator: cameras, conditioning, guidance, sampling, restart and memory, on small random weights."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler, UNetSpatioTemporalConditionModel
from diffusers.models.resnet import SpatioTemporalResBlock
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing
from sv3d_checkpoint import SIZE, SMALL_P, small, small_checkpoints, small_subject
from sv3d_oracle import Oracle
from torch import Tensor

from im3d.core.images import OrbitViews, over
from im3d.core.orbit import Orbit
from im3d.core.progress import silent
from im3d.errors import CancelledError, InputError, ModelError
from im3d.generators.base import Generator, Subject
from im3d.generators.sampling import dpm_solver_2m, karras_sigmas
from im3d.generators.sv3d.generator import (
    SIGMA_MAX,
    SIGMA_MIN,
    Conditioning,
    Sv3dGenerator,
    guidance_scales,
    in_model_order,
    in_orbit_order,
)
from im3d.generators.sv3d.network import (
    LATENT_SCALE,
    SV3D_P,
    SV3D_U,
    OrbitUNet,
    clip_pixels,
    conditioning_vectors,
    sinusoid,
)
from im3d.models.memory_modes import CPU_MODE, MODES


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return small_checkpoints(tmp_path_factory.mktemp("sv3d"))


@pytest.fixture
def subject() -> Subject:
    return small_subject()


class TestCameras:
    def test_the_orbit_starts_at_the_input_and_is_uniform(self) -> None:
        generator = Sv3dGenerator("sv3d_u", "cpu")
        assert len(generator.orbit) == 21
        assert generator.input_frame == 0
        np.testing.assert_allclose(generator.orbit.azimuths_deg, np.arange(21) * 360 / 21)
        assert (generator.orbit.fov_deg, generator.orbit.radius) == (33.8, 2.0)
        assert generator.orbit.elevation_deg is None
        assert generator.size == 576

    def test_the_model_sees_the_published_order(self) -> None:
        # linspace(0, 360, 22)[1:] % 360, the last being the input view
        published = np.linspace(0, 360, 22)[1:] % 360
        azimuths = np.array(Sv3dGenerator("sv3d_p", "cpu").orbit.azimuths_deg)
        np.testing.assert_allclose(in_model_order(azimuths), published, atol=1e-9)
        there_and_back = in_orbit_order(torch.from_numpy(in_model_order(azimuths)))
        np.testing.assert_array_equal(there_and_back.numpy(), azimuths)

    def test_an_elevation_is_needed_by_p_only(self) -> None:
        assert Sv3dGenerator("sv3d_p", "cpu").orbit.elevation_deg == 12
        assert Sv3dGenerator("sv3d_p", "cpu", elevation_deg=-5).orbit.elevation_deg == -5
        assert Sv3dGenerator("sv3d_u", "cpu", elevation_deg=7).orbit.elevation_deg == 7

    def test_the_networks_need_a_multiple_of_64(self) -> None:
        with pytest.raises(InputError, match="multiple of 64"):
            Sv3dGenerator("sv3d_u", "cpu", size=500)


class TestConditioning:
    def test_sinusoids_have_the_cosines_first(self) -> None:
        value = torch.tensor([0.7])
        frequencies = torch.exp(-math.log(10000) * torch.arange(4) / 4)
        expected = torch.cat([torch.cos(0.7 * frequencies), torch.sin(0.7 * frequencies)])
        torch.testing.assert_close(sinusoid(value, 8)[0], expected)

    def test_vectors_are_noise_polar_azimuth(self) -> None:
        azimuths = [*np.arange(1, 21) * 360 / 21, 0.0]
        vectors = conditioning_vectors(SV3D_P, azimuths, elevation_deg=10)
        assert vectors.shape == (21, 1280)
        # The first frequency of each sinusoid is 1: its cosine is the first entry, its sine the one after half.
        torch.testing.assert_close(vectors[:, 0], torch.full((21,), math.cos(1e-5)))
        torch.testing.assert_close(vectors[:, 256], torch.full((21,), math.cos(math.radians(80))))
        torch.testing.assert_close(vectors[:, 256 + 256], torch.full((21,), math.sin(math.radians(80))))
        radians = np.radians(azimuths)
        np.testing.assert_allclose(vectors[:, 768], np.cos(radians), atol=1e-6)
        np.testing.assert_allclose(vectors[:, 768 + 256], np.sin(radians), atol=1e-6)

    def test_u_is_told_the_noise_only(self) -> None:
        vectors = conditioning_vectors(SV3D_U, [10.0, 20.0, 0.0], None)
        torch.testing.assert_close(vectors, sinusoid(torch.full((3,), 1e-5), 256))

    def test_p_without_elevation_is_a_mistake(self) -> None:
        with pytest.raises(ValueError, match="needs an elevation"):
            conditioning_vectors(SV3D_P, [0.0, 180.0], None)

    @pytest.mark.parametrize("size", [576, 512, 300])
    def test_the_image_tower_sees_the_reference_reduction(self, size: int) -> None:
        picture = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
        reference = (_resize_with_antialiasing(2 * picture - 1, (224, 224)) + 1) / 2
        mean, std = (
            torch.tensor([0.48145466, 0.4578275, 0.40821073]),
            torch.tensor([0.26862954, 0.26130258, 0.27577711]),
        )
        reference = (reference - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        torch.testing.assert_close(clip_pixels(picture, 224), reference, rtol=1e-4, atol=1e-4)

    def test_the_latent_is_not_scaled_and_the_input_comes_last(
        self, checkpoints: dict[str, Path], subject: Subject
    ) -> None:
        generator = small(checkpoints)
        picture = over(subject.rgba)
        conditioning = generator.condition(picture, generator.orbit)
        encoded = generator.encode(picture[None])
        torch.testing.assert_close(conditioning.latent * LATENT_SCALE, encoded)
        assert conditioning.context.shape == (1, 1, SMALL_P.context)
        expected = conditioning_vectors(SMALL_P, [*generator.orbit.azimuths_deg[1:], 0.0], 10.0)
        torch.testing.assert_close(conditioning.vectors, expected)


class TestNetwork:
    def test_with_equal_vectors_it_is_diffusers_own(self) -> None:
        torch.manual_seed(0)
        ours = OrbitUNet(SMALL_P).eval()
        stock = UNetSpatioTemporalConditionModel(
            block_out_channels=SMALL_P.channels,
            num_attention_heads=SMALL_P.heads,
            cross_attention_dim=SMALL_P.context,
            projection_class_embeddings_input_dim=1280,
        ).eval()
        stock.load_state_dict(ours.state_dict())
        for module in stock.modules():
            if isinstance(module, SpatioTemporalResBlock):
                for part in (module.spatial_res_block, module.temporal_res_block):
                    part.norm1.eps = part.norm2.eps = 1e-5
        B, K = 2, 5
        sample, context = torch.randn(B, K, 8, 8, 8), torch.randn(B, 1, SMALL_P.context)
        ids = torch.rand(B, 5)
        vector = sinusoid(ids.flatten(), 256).view(B, 1, 1280).expand(-1, K, -1)
        level = torch.tensor(0.3)
        with torch.inference_mode():
            expected = stock(sample, level, context, ids).sample
            torch.testing.assert_close(ours(sample, level, context, vector), expected, rtol=1e-4, atol=1e-5)
            other = vector.clone()
            other[:, 2] += 1
            assert not torch.allclose(ours(sample, level, context, other)[:, 2], expected[:, 2], atol=1e-3)


class Recorder(torch.nn.Module):
    """A U-Net that answers with known numbers and keeps what it was given."""

    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, ...]] = []

    def forward(self, sample: Tensor, level: Tensor, context: Tensor, vector: Tensor) -> Tensor:
        self.calls.append((sample, level, context, vector))
        # The conditional half answers 2, the unconditional one 1.
        return 1 + (context.abs().sum((1, 2)) > 0).float().view(-1, 1, 1, 1, 1).expand_as(sample[:, :, :4])


class TestDenoiser:
    def test_the_triangle(self) -> None:
        scales = guidance_scales(21, 2.5)
        assert scales[0] == scales[20] == 1
        assert scales[10] == scales.max() == 2.5
        torch.testing.assert_close(scales[:3], torch.tensor([1.0, 1.15, 1.3]))
        torch.testing.assert_close(scales, scales.flip(0))
        assert len(guidance_scales(16, 2.5)) == 16

    @pytest.mark.parametrize("mode", [MODES[0], MODES[-1]])
    def test_guidance_and_preconditioning(self, checkpoints: dict[str, Path], mode: object) -> None:
        generator = small(checkpoints, views=5)
        networks = generator._loaded()
        networks.unet = Recorder()
        generator._mode = mode  # type: ignore[assignment]
        latent, context = torch.randn(1, 4, 8, 8), torch.ones(1, 1, 32)
        denoise = generator.denoiser(Conditioning(context, latent, torch.rand(5, 1280)))
        x, sigma = torch.randn(5, 4, 8, 8), torch.tensor(3.0)
        result = denoise(x, sigma)
        # v = 1 + s·(2 − 1); D = x/(σ² + 1) − σ/√(σ² + 1)·v
        v = 1 + guidance_scales(5, 2.5).view(5, 1, 1, 1)
        torch.testing.assert_close(result, x / 10 - 3 / math.sqrt(10) * v.expand_as(x))
        assert generator.network_calls == 2

        calls = networks.unet.calls
        sample, contexts = torch.cat([c[0] for c in calls]), torch.cat([c[2] for c in calls])
        assert len(calls) == (1 if mode is MODES[0] else 2)
        torch.testing.assert_close(sample[:, :, :4], (x / math.sqrt(10)).expand(2, -1, -1, -1, -1))
        torch.testing.assert_close(sample[0, :, 4:], latent.expand(5, -1, -1, -1))
        assert not sample[1, :, 4:].any()
        torch.testing.assert_close(contexts[0], context[0])
        assert not contexts[1].any()
        assert all(float(c[1]) == pytest.approx(math.log(3) / 4) for c in calls)
        assert all(torch.equal(c[3][0], calls[0][3][0]) for c in calls)

    def test_sampling_is_that_of_diffusers_scheduler(self, checkpoints: dict[str, Path], subject: Subject) -> None:
        generator = small(checkpoints, views=4)
        conditioning = generator.condition(over(subject.rgba), generator.orbit)
        denoise = generator.denoiser(conditioning)
        scheduler = EDMDPMSolverMultistepScheduler(
            sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX, sigma_data=1.0, prediction_type="v_prediction"
        )
        scheduler.set_timesteps(8)
        x = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1)) * scheduler.init_noise_sigma
        with torch.inference_mode():
            ours = dpm_solver_2m(denoise, x, karras_sigmas(8, SIGMA_MIN, SIGMA_MAX))
            y = x
            for t in scheduler.timesteps:
                sigma = torch.exp(4 * t)
                # v from D: (x/(σ² + 1) − D)·√(σ² + 1)/σ
                v = (y / (sigma**2 + 1) - denoise(y, sigma)) * (sigma**2 + 1).sqrt() / sigma
                scheduler.scale_model_input(y, t)
                y = scheduler.step(v, t, y).prev_sample
        torch.testing.assert_close(ours, y, rtol=1e-3, atol=1e-3 * float(ours.abs().max()))


def true_views(K: int, elevation: float = 10.0) -> OrbitViews:
    """Blocky pictures, all different, each an object in the middle of a white picture."""
    rng = np.random.default_rng(0)
    rgba = np.zeros((K, SIZE, SIZE, 4), np.float32)
    blocks = rng.uniform(0, 0.8, (K, 4, 4, 3)).astype(np.float32)
    rgba[:, 16:48, 16:48, :3] = blocks.repeat(8, 1).repeat(8, 2)
    rgba[:, 16:48, 16:48, 3] = 1
    return OrbitViews(rgba, Orbit.uniform(K, elevation))


class TestLoop:
    @pytest.mark.parametrize("K", [16, 21])
    def test_an_oracle_returns_the_true_views_in_the_orbits_order(self, K: int) -> None:
        truth = true_views(K)
        generator = Oracle(truth)
        views = generator.generate(Subject(truth.rgba[0]), seed=0, progress=silent)
        np.testing.assert_allclose(over(views.rgba), over(truth.rgba), atol=2e-3)
        np.testing.assert_allclose(views.rgba[..., 3], truth.rgba[..., 3], atol=0.02)
        assert views.orbit == generator.orbit == truth.orbit
        assert generator.network_calls == 4
        np.testing.assert_array_equal(generator.asked[0], over(truth.rgba[0]))

    @pytest.mark.parametrize("noise", [0.2, 0.375, 1.0])
    def test_an_oracle_repairs_renders_from_any_noise(self, noise: float) -> None:
        truth = true_views(16)
        generator = Oracle(truth)
        blurred = np.clip(truth.rgba + 0.1 * np.random.default_rng(1).normal(size=truth.rgba.shape), 0, 1)
        renders = OrbitViews(blurred.astype(np.float32), truth.orbit)
        views = generator.refine(Subject(truth.rgba[0]), renders, noise, 6, seed=3, progress=silent)
        np.testing.assert_allclose(over(views.rgba), over(truth.rgba), atol=2e-3)
        assert generator.network_calls == 6

    def test_a_restart_begins_at_the_noised_renders_in_the_models_order(self) -> None:
        truth, other = true_views(16), true_views(16, elevation=30.0)
        generator = Oracle(truth)
        seen: list[tuple[Tensor, float]] = []
        denoiser = generator.denoiser

        def watched(conditioning: Conditioning):  # type: ignore[no-untyped-def]
            denoise = denoiser(conditioning)

            def noting(x: Tensor, sigma: Tensor) -> Tensor:
                seen.append((x, float(sigma)))
                return denoise(x, sigma)

            return noting

        generator.denoiser = watched  # type: ignore[method-assign]
        noise = Sv3dGenerator.refine_noise
        renders = OrbitViews(other.rgba[::-1].copy(), truth.orbit)
        generator.refine(Subject(truth.rgba[0]), renders, noise, 10, seed=3, progress=silent)
        assert len(seen) == 10
        x, sigma = seen[0]
        assert sigma == pytest.approx(3.87, abs=0.05)
        # z0 + σ·ε: not scaled by √(σ² + 1), the renders on white, the input view last.
        epsilon = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
        z0 = generator.encode(np.roll(over(renders.rgba), -1, axis=0))
        torch.testing.assert_close(x, z0 + sigma * epsilon, rtol=1e-4, atol=1e-4)

    def test_a_restart_with_no_noise_to_speak_of_keeps_the_renders(self, checkpoints: dict[str, Path]) -> None:
        # With σ → 0 EDM's denoiser is the identity, whatever the network says: c_skip → 1, c_out → 0.
        truth = true_views(4)
        generator = Oracle(truth)
        generator.denoiser = small(checkpoints, views=4).denoiser  # type: ignore[method-assign]
        real = small(checkpoints, views=4)
        conditioning = real.condition(over(truth.rgba[0]), real.orbit)
        generator.condition = lambda picture, orbit: conditioning  # type: ignore[method-assign]
        views = generator.refine(Subject(truth.rgba[0]), truth, noise=1e-6, steps=3, seed=0, progress=silent)
        np.testing.assert_allclose(over(views.rgba), over(truth.rgba), atol=0.02)

    def test_p_refines_an_orbit_at_another_elevation(self) -> None:
        truth = true_views(16, elevation=30.0)
        generator = Oracle(truth)
        generator.orbit = Orbit.uniform(16, 10.0)
        subject = Subject(np.zeros((SIZE, SIZE, 4), np.float32))
        views = generator.refine(subject, truth, 0.4, 2, seed=0, progress=silent)
        assert views.orbit.elevation_deg == generator.asked[1].elevation_deg == 30
        # There the input view is not one of the orbit's: nothing is replaced by it.
        np.testing.assert_allclose(over(views.rgba), over(truth.rgba), atol=2e-3)

    @pytest.mark.parametrize(("name", "replaced"), [("sv3d_u", True), ("sv3d_p", False)])
    def test_the_input_view_stays_where_the_elevation_was_only_found_out(self, name: str, replaced: bool) -> None:
        # `sv3d_u` draws at the input's elevation, whatever that turns out to be.
        truth = true_views(4, elevation=25.0)
        generator = Oracle(truth)
        generator.name, generator.orbit = name, Orbit.uniform(4)
        subject = Subject(np.full((SIZE, SIZE, 4), 0.25, np.float32))
        views = generator.refine(subject, truth, 0.4, 2, seed=0, progress=silent)
        assert np.array_equal(views.rgba[0], subject.rgba) == replaced

    def test_other_azimuths_are_a_mistake(self) -> None:
        generator = Oracle(true_views(16))
        with pytest.raises(ValueError, match="azimuths"):
            generator.refine(Subject(true_views(2).rgba[0]), true_views(8), 0.4, 2, 0, silent)


class TestSmallWeights:
    @pytest.mark.parametrize(("name", "K"), [("sv3d_u", 21), ("sv3d_p", 16)])
    def test_from_a_picture_to_views_and_back_through_a_restart(
        self, checkpoints: dict[str, Path], subject: Subject, name: str, K: int
    ) -> None:
        generator: Generator = small(checkpoints, name, views=K)
        steps: list[tuple[int, int]] = []
        views = generator.generate(subject, 5, lambda step, of, _=None: steps.append((step, of)))
        assert views.rgba.shape == (K, SIZE, SIZE, 4)
        assert np.isfinite(views.rgba).all()
        assert len({view.tobytes() for view in views.rgba}) == K
        np.testing.assert_array_equal(views.rgba[0], subject.rgba)
        assert steps == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
        again = small(checkpoints, name, views=K).generate(subject, 5, silent)
        np.testing.assert_array_equal(views.rgba, again.rgba)
        other = generator.generate(subject, 6, silent)
        assert not np.array_equal(views.rgba, other.rgba)
        refined = generator.refine(subject, views, 0.375, 2, 7, silent)
        assert refined.rgba.shape == views.rgba.shape
        assert generator.network_calls == 2 * (3 + 3 + 2)

    def test_every_memory_mode_draws_the_same(self, checkpoints: dict[str, Path], subject: Subject) -> None:
        drawn = []
        for mode in (*MODES, CPU_MODE):
            generator = small(checkpoints, views=6)
            generator._mode = mode
            drawn.append(generator.generate(subject, 0, silent).rgba)
        for views in drawn[1:]:
            np.testing.assert_allclose(views, drawn[0], atol=2e-3)

    def test_a_larger_picture_is_reduced(self, checkpoints: dict[str, Path], subject: Subject) -> None:
        large = Subject(subject.rgba.repeat(4, 0).repeat(4, 1))
        views = small(checkpoints, views=4).generate(large, 0, silent)
        assert views.size == SIZE

    def test_it_stops_where_progress_raises(self, checkpoints: dict[str, Path], subject: Subject) -> None:
        def stop(step: int, steps: int, preview: object = None) -> None:
            if step == 2:
                raise CancelledError("Stopped.")

        generator = small(checkpoints)
        with pytest.raises(CancelledError):
            generator.generate(subject, 0, stop)
        assert generator.network_calls == 2 * 2

    def test_views_without_an_object_are_explained(self, checkpoints: dict[str, Path], subject: Subject) -> None:
        with pytest.raises(InputError, match=r"sv3d_p drew no object before a plain background \(View 0"):
            small(checkpoints, segment=None).generate(subject, 0, silent)

    def test_missing_weights_are_named_with_their_size(
        self, subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("IM3D_HOME", str(tmp_path))
        with pytest.raises(ModelError, match=r"SV3D is not installed.*9\.4 GB"):
            Sv3dGenerator("sv3d_u", "cpu").generate(subject, 0, silent)

    def test_release_forgets_the_networks(self, checkpoints: dict[str, Path], subject: Subject) -> None:
        generator = small(checkpoints, views=4)
        before = generator.generate(subject, 0, silent)
        generator.release()
        assert generator._networks is None
        np.testing.assert_array_equal(generator.generate(subject, 0, silent).rgba, before.rgba)


def test_one_thread_at_a_time_asks_the_segmentation_network() -> None:
    inside, most = [0], [0]

    def segment(rgb: np.ndarray) -> np.ndarray:
        assert torch.is_inference_mode_enabled()
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.01)  # gives another thread time to come in; nothing passes because of it
        inside[0] -= 1
        y, x = np.mgrid[: len(rgb), : len(rgb)] / len(rgb) - 0.5
        return (x**2 + y**2 < 0.1).astype(np.float32)

    generator = Sv3dGenerator("sv3d_u", "cpu", views=6, size=64, segment=segment)
    noisy = np.random.default_rng(0).random((6, 64, 64, 3)).astype(np.float32)
    cut = generator.cut_outs(noisy, Orbit.uniform(6))
    assert cut.shape == (6, 64, 64, 4)
    assert most[0] == 1
    y, x = np.mgrid[:64, :64] / 64 - 0.5
    assert ((cut[..., 3] > 0.5) == (x**2 + y**2 < 0.1)).all()
    with pytest.raises(InputError, match="View 2"):
        Sv3dGenerator("sv3d_u", "cpu", views=4, size=64).cut_outs(_discs_but(2), Orbit.uniform(4))


def _discs_but(missing: int) -> np.ndarray:
    """Four white views of 64² with a grey disc, but for one and all after it."""
    y, x = np.mgrid[:64, :64] / 64 - 0.5
    disc = np.where(x**2 + y**2 < 0.1, 0.4, 1.0).astype(np.float32)[..., None].repeat(3, axis=-1)
    return np.stack([disc if k < missing else np.ones_like(disc) for k in range(4)])
