"""The Warp rasteriser, on Warp's own processor device: the kernels are those that run on a GPU."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import analytic
import numpy as np
import pytest
import torch
from splat_scenes import dense_render, project, random_gaussians
from torch import Tensor

if sys.platform == "darwin":
    pytest.importorskip("warp", reason="warp-lang is not installed on macOS, which has no CUDA")

from im3d.cli import doctor
from im3d.core.orbit import Cameras, Orbit
from im3d.errors import Im3dError, InputError
from im3d.settings import FitSettings
from im3d.splats.fit import SplatFit
from im3d.splats.gaussians import Gaussians
from im3d.splats.rasterizers import rasterize_gsplat, rasterize_warp
from im3d.splats.rasterizers.project import project_views
from im3d.splats.rasterizers.rasterize_numba import bin_tiles
from im3d.splats.render import Rasterizer, best_rasterizer, blending_weights, rasterizers, ready_rasterizer, render

FIELDS = ("means", "quats", "scales", "opacities", "colors")
# Scenes up to a coverage of 1, with image sides that tiles divide and do not divide.
SCENES = [(300, 70, 0.04), (2000, 64, 0.02), (40, 48, 0.3)]


def cameras(size: int, count: int = 1) -> Cameras:
    return Orbit.uniform(max(count, 2), 20.0, 40.0, 2.0).cameras(size)[list(range(count))]


def gradients(gaussians: Gaussians, rgb: Tensor, alpha: Tensor) -> list[Tensor]:
    """Of a loss that weights every pixel and channel differently."""
    generator = torch.Generator().manual_seed(5)
    loss = (rgb * torch.randn(rgb.shape, generator=generator)).sum()
    loss = loss + (alpha * torch.randn(alpha.shape, generator=generator)).sum()
    return list(torch.autograd.grad(loss, [getattr(gaussians, name) for name in FIELDS]))


def dense_views(gaussians: Gaussians, views: Cameras) -> tuple[Tensor, Tensor]:
    pictures = [dense_render(gaussians, views[index]) for index in range(len(views))]
    return torch.stack([rgb for rgb, _ in pictures]), torch.stack([alpha for _, alpha in pictures])


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.fixture
def no_early_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels are drawn to the last splat, as the dense reference draws them."""
    monkeypatch.setattr(rasterize_warp, "MIN_TRANSMITTANCE", 0.0)


@pytest.mark.usefixtures("no_early_end")
@pytest.mark.parametrize(("count", "size", "spread"), SCENES)
def test_images_and_gradients_equal_a_dense_reference(count: int, size: int, spread: float) -> None:
    gaussians, views = random_gaussians(count, spread, seed=count), cameras(size, 2)
    drawn = render(gaussians, views, "warp")
    rgb, alpha = dense_views(gaussians, views)
    assert float(alpha.detach().max()) > 0.99
    assert (drawn.rgb - rgb).abs().max() < 1e-6
    assert (drawn.alpha - alpha).abs().max() < 1e-6
    mine, reference = gradients(gaussians, drawn.rgb, drawn.alpha), gradients(gaussians, rgb, alpha)
    for name, a, b in zip(FIELDS, mine, reference, strict=True):
        assert relative(a, b) < 1e-5, name


@pytest.mark.usefixtures("no_early_end")
def test_opaque_splats_equal_a_dense_reference() -> None:
    """Their alpha is clamped, which stops the gradient of shape and opacity but not of colour."""
    gaussians, camera = random_gaussians(60, 0.05, seed=4), cameras(64)
    with torch.no_grad():
        gaussians.opacities[::2] = 0.9998
    drawn = render(gaussians, camera, "warp")
    rgb, alpha = dense_views(gaussians, camera)
    assert (drawn.rgb - rgb).abs().max() < 1e-6
    mine, reference = gradients(gaussians, drawn.rgb, drawn.alpha), gradients(gaussians, rgb, alpha)
    for name, a, b in zip(FIELDS, mine, reference, strict=True):
        # α/(1 − α), which reaches 1000, multiplies the rounding of what is left behind a splat.
        assert relative(a, b) < 3e-5, name


@pytest.mark.parametrize(("count", "size", "spread"), SCENES)
def test_ending_opaque_pixels_early_changes_no_more_than_what_still_passes_through(
    count: int, size: int, spread: float
) -> None:
    gaussians, camera = random_gaussians(count, spread, seed=count), cameras(size)
    drawn = render(gaussians, camera, "warp")
    rgb, alpha = dense_views(gaussians, camera)
    # What is left out is behind a transmittance below 1e-4; where more than that passes through, nothing is.
    clear = 1 - alpha > 1.1 * rasterize_warp.MIN_TRANSMITTANCE
    assert (drawn.rgb - rgb).abs().max() < 1.01 * rasterize_warp.MIN_TRANSMITTANCE
    assert (drawn.alpha - alpha).abs().max() < 1.01 * rasterize_warp.MIN_TRANSMITTANCE
    assert (drawn.rgb - rgb)[clear].abs().max() < 1e-6
    mine, reference = gradients(gaussians, drawn.rgb, drawn.alpha), gradients(gaussians, rgb, alpha)
    for name, a, b in zip(FIELDS, mine, reference, strict=True):
        assert relative(a, b) < 1e-3, name


@pytest.mark.parametrize(
    ("count", "size", "spread", "picture_bound", "gradient_bound"),
    # No pixel of the first scene gets so opaque that drawing ends early; of the second many do, and the CPU rasteriser
    # ends whole tiles, this one strips of pixels. Single splats may fall on the other side of the 1/255 cut-off, where
    # the CPU rasteriser's exponential is off by 2e-4.
    [(300, 70, 0.04, 2e-6, 1e-5), (3000, 128, 0.02, 1 / 255, 1e-3)],
)
def test_it_draws_what_the_cpu_rasteriser_draws(
    count: int, size: int, spread: float, picture_bound: float, gradient_bound: float
) -> None:
    gaussians, views = random_gaussians(count, spread, seed=count), cameras(size, 3)
    mine, other = render(gaussians, views, "warp"), render(gaussians, views, "cpu")
    assert (mine.rgb - other.rgb).abs().max() < picture_bound
    assert (mine.rgb - other.rgb).abs().mean() < 5e-6
    assert (mine.alpha - other.alpha).abs().max() < picture_bound
    pairs = zip(
        FIELDS, gradients(gaussians, mine.rgb, mine.alpha), gradients(gaussians, other.rgb, other.alpha), strict=True
    )
    for name, a, b in pairs:
        assert relative(a, b) < gradient_bound, name


def test_screen_gradients_and_visibility_equal_the_cpu_rasterisers() -> None:
    views = cameras(96, 3)
    shift = torch.tensor([0.8, 0.0, 0.0])  # some leave the pictures
    screen, visible = [], []
    names: tuple[Rasterizer, ...] = ("warp", "cpu")
    for name in names:
        scene = random_gaussians(500, 0.03, seed=1)
        scene = dataclasses.replace(scene, means=scene.means + shift)
        rendered = render(scene, views, name)
        rendered.rgb.square().sum().backward()
        screen.append(rendered.screen_gradients())
        visible.append(rendered.visible)
    assert screen[0].shape == visible[0].shape == (3, 500)
    assert 0.3 < visible[0].float().mean() < 0.9
    assert torch.equal(*visible)
    assert relative(*screen) < 1e-5


def test_all_cameras_are_projected_as_each_one_is() -> None:
    gaussians, orbit = random_gaussians(200, 0.1, seed=3), cameras(64, 3)
    viewmats = orbit.viewmats.copy()
    viewmats[1, :3, 3] += (0.1, -0.2, 0.5)  # cameras of one orbit have one distance
    views = Cameras(viewmats, orbit.focal, orbit.size)
    together = project_views(gaussians, views)
    for index in range(3):
        alone = project(gaussians, views, index)
        for name in ("means2d", "conics", "depths", "extents", "visible"):
            torch.testing.assert_close(getattr(together, name)[index], getattr(alone, name), rtol=1e-5, atol=1e-5)


def test_tiles_hold_the_splats_of_the_cpu_rasterisers_tiles_in_the_same_order() -> None:
    """Splats at one depth too: they keep their order."""
    gaussians, views, size = random_gaussians(500, 0.05, seed=2).detach(), cameras(72, 2), 72
    projected = project_views(gaussians, views)
    projected = dataclasses.replace(projected, depths=(projected.depths * 20).round() / 20)
    slots = rasterize_warp.sort_into_tiles(projected, size)
    assert slots.per_side == 5
    assert len(slots.offsets) == 2 * 25 + 1
    for camera in range(2):
        one = dataclasses.replace(
            projected, **{k: getattr(projected, k)[camera] for k in ("means2d", "depths", "extents", "visible")}
        )
        tiles = bin_tiles(one, size)
        offsets = slots.offsets[25 * camera : 25 * camera + 26].numpy()
        np.testing.assert_array_equal(offsets - offsets[0], tiles.offsets)
        np.testing.assert_array_equal(slots.splats[offsets[0] : offsets[-1]].numpy() - 500 * camera, tiles.splats)


def test_nothing_to_draw_is_an_empty_picture_with_zero_gradients() -> None:
    camera = cameras(40, 2)
    towards = torch.from_numpy(camera.centres[0])
    nowhere = random_gaussians(50, 0.02, seed=6)
    behind = dataclasses.replace(nowhere, means=nowhere.means + 3 * towards)
    none = random_gaussians(50, 0.02, seed=6)[slice(0, 0)]
    for scene in (behind, none):
        drawn = render(scene, camera[0], "warp")
        assert not drawn.visible.any()
        assert not drawn.rgb.any()
        assert not drawn.alpha.any()
        (drawn.rgb.sum() + drawn.alpha.sum()).backward()  # must not fail either
        assert drawn.screen_gradients().shape == (1, len(scene))
    assert nowhere.colors.grad is not None
    assert not nowhere.colors.grad.any()
    assert nowhere.means.grad is not None
    assert not nowhere.means.grad.any()


def test_blending_weights_are_those_of_the_cpu_rasteriser() -> None:
    gaussians, views = random_gaussians(200, 0.05, seed=7).detach(), cameras(64, 2)
    mine, other = (blending_weights(gaussians, views, name) for name in ("warp", "cpu"))
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-3)


def test_inputs_need_not_be_contiguous() -> None:
    gaussians, camera = random_gaussians(100, 0.05, seed=8).detach(), cameras(48)
    turned = Gaussians(*(t.T.contiguous().T if t.ndim == 2 else t for t in vars(gaussians).values()))
    assert torch.equal(render(gaussians, camera, "warp").rgb, render(turned, camera, "warp").rgb)


@pytest.mark.slow
def test_a_fit_reaches_what_the_cpu_rasteriser_reaches() -> None:
    views = analytic.orbit_views(48)
    settings = FitSettings(iterations=150, size=48, points=800, max_gaussians=2000, rgb=2.0, lpips=0.0)
    unseen, truth = analytic.novel_views(48, ((11.25, 15.0), (100.0, 25.0), (190.0, 30.0)))
    target = torch.from_numpy(truth[..., :3] * truth[..., 3:] + 1 - truth[..., 3:])
    psnr = {}
    names: tuple[Rasterizer, ...] = ("warp", "cpu")
    for name in names:
        fit = SplatFit(views, settings, 3, torch.device("cpu"), name, None)
        fit.run(150)
        picture = render(fit.finished(), unseen, name).over(1.0)
        psnr[name] = float(-10 * torch.log10((picture - target).square().mean(dim=(1, 2, 3))).mean())
    assert psnr["cpu"] > 22
    assert abs(psnr["warp"] - psnr["cpu"]) < 0.3


@pytest.mark.parametrize("arch", [52, 75, 86, 120])
def test_the_kernels_compile_for_gpus_without_one(arch: int, tmp_path: Path) -> None:
    """From GTX 900 to RTX 50, by the compiler in Warp's own package."""
    import warp as wp

    kernels = rasterize_warp.load_kernels(torch.device("cpu"))
    wp.compile_aot_module(kernels, arch=arch, module_dir=tmp_path, use_ptx=True)
    (ptx,) = tmp_path.glob("*.ptx")
    assert f".target sm_{arch}" in (text := ptx.read_text(encoding="utf-8", errors="replace"))
    assert all(f".entry {name}_" in text for name in ("count_tiles", "write_keys", "draw", "draw_gradient"))


def test_kernels_that_do_not_compile_are_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    import warp as wp

    def fail(*_: object, **__: object) -> None:
        raise Exception("CUDA kernel build failed with error code 1")

    monkeypatch.setattr(wp, "load_module", fail)
    with pytest.raises(Im3dError, match="error code 1") as caught:
        rasterize_warp.load_kernels.__wrapped__(torch.device("cpu"))
    assert "device cpu" in caught.value.hint


def test_without_a_cuda_compiler_warp_renders(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = {"gsplat": "gsplat is not compiled, and there is no nvcc.", "warp": ""}
    monkeypatch.setattr(rasterize_gsplat, "unavailable_reason", lambda: reasons["gsplat"])
    monkeypatch.setattr(rasterize_warp, "unavailable_reason", lambda device_type: reasons["warp"])
    device = torch.device("cuda")
    assert best_rasterizer(device) == "warp"
    reasons["gsplat"] = ""
    assert best_rasterizer(device) == "cuda"
    reasons.update(gsplat="No nvcc.", warp="No driver.")
    with pytest.raises(InputError, match=r"No nvcc\. No driver\.") as caught:
        best_rasterizer(device)
    assert "device cpu" in caught.value.hint
    # The check after an installation asks doctor, which must answer on such a machine too.
    assert "No nvcc. No driver." in doctor._rasterizer(cuda=True)


def test_where_gsplat_does_not_compile_warp_renders(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reasons = {"warp": ""}

    def fail() -> None:
        raise Im3dError("gsplat's CUDA kernels could not be compiled: nvcc is too old", "Use the device cpu.")

    monkeypatch.setattr(rasterize_gsplat, "unavailable_reason", lambda: "")
    monkeypatch.setattr(rasterize_gsplat, "load_kernels", fail)
    monkeypatch.setattr(rasterize_warp, "unavailable_reason", lambda device_type: reasons["warp"])
    assert ready_rasterizer(torch.device("cuda")) == "warp"
    assert caplog.messages[-1].endswith("nvcc is too old. Warp renders the splats instead.")
    reasons["warp"] = "No driver."
    with pytest.raises(Im3dError, match="nvcc is too old"):
        ready_rasterizer(torch.device("cuda"))
    monkeypatch.setattr(rasterize_gsplat, "load_kernels", lambda: None)
    assert ready_rasterizer(torch.device("cuda")) == "cuda"
    assert ready_rasterizer(torch.device("cpu")) == "cpu"


def test_why_it_cannot_run_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rasterizers()["warp"] == ""
    reason = rasterize_warp.unavailable_reason.__wrapped__
    assert "mps" in reason("mps")
    if not torch.cuda.is_available():
        assert "CUDA device" in reason("cuda")
    monkeypatch.setattr(rasterize_warp.importlib.util, "find_spec", lambda name: None)
    assert reason("cpu") == "The package warp-lang is not installed."
