"""The evaluation's machinery: the renderer's colours and cameras, agreement of halves, CLIP, rows that survive."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from im3d.core.images import OrbitViews
from im3d.core.orbit import GLTF_FROM_WORLD, Orbit
from im3d.errors import InputError
from im3d.settings import FitSettings
from im3d.splats.gaussians import Gaussians
from im3d.splats.losses.perceptual import load_perceptual
from im3d_lab.evaluate import run as evaluation
from im3d_lab.evaluate.ablation import Variant
from im3d_lab.evaluate.clip import Clip, clip_similarity, load_clip
from im3d_lab.evaluate.consistency import FIT, cameras_between, compare_halves, with_losses_of
from im3d_lab.evaluate.cycles import RenderJob, load_surface, load_views, render_views
from im3d_lab.evaluate.objects import EvaluationObject, Truth
from im3d_lab.evaluate.reporting.report import write_report
from im3d_lab.evaluate.reporting.tables import HEADLINE, summaries
from im3d_lab.evaluate.run import Instruments, Plan, evaluate_object, source_arguments
from im3d_lab.packs import Part, Prop


def quad_prop(texture: bytes | None = None, alpha: bool = False) -> Prop:
    """A square facing the front (+Z in glTF's axes): the world's y = 0 plane from −½ to ½."""
    vertices = np.array([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]], np.float32)
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    part = Part(vertices, faces, uv, (51 / 255, 128 / 255, 230 / 255), texture, alpha, 1.0)
    return Prop("quad", "quad", "", "CC0-1.0", "quad", "test", (part,))


def webp(pixels: np.ndarray, path: Path) -> bytes:
    Image.fromarray(pixels).save(path, lossless=True, exact=True)
    return path.read_bytes()


@pytest.mark.blender
def test_colours_cameras_and_alpha_come_back_exactly(tmp_path: Path) -> None:
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:32] = [200, 30, 60, 255]  # the upper half: uv has its origin at the bottom left
    pixels[32:] = [10, 90, 250, 0]
    cameras = Orbit.uniform(4, 0.0, radius=2.0).cameras(64)[[0, 1]]
    plain, cut = quad_prop(), quad_prop(webp(pixels, tmp_path / "t.webp"), alpha=True)
    folders = render_views([RenderJob(plain, cameras), RenderJob(cut, cameras)], cache=tmp_path / "cache")
    front, edge_on = load_views(folders[0])

    np.testing.assert_allclose(front[24:40, 24:40] * 255, np.tile([51, 128, 230, 255], (16, 16, 1)), atol=1)
    # The silhouette is where the camera says: area and edges.
    corners = cameras.project(np.array([[-0.5, 0, -0.5], [0.5, 0, 0.5]]))[0]
    side = corners[1, 0] - corners[0, 0]
    assert front[..., 3].sum() == pytest.approx(side**2, rel=0.01)
    columns = np.flatnonzero(front[32, :, 3] > 0.5)
    assert (columns[0], columns[-1]) == (round(corners[0, 0]), round(corners[1, 0]) - 1)
    assert edge_on[..., 3].max() < 0.3

    tested = load_views(folders[1])[0]
    np.testing.assert_allclose(tested[20:28, 28:36] * 255, np.tile([200, 30, 60, 255], (8, 8, 1)), atol=1)
    assert tested[36:, :, 3].max() == 0
    vertices, faces = load_surface(folders[0])
    assert (vertices.min(), vertices.max(), len(faces)) == (-0.5, 0.5, 2)

    before = (folders[0] / "view_000.png").stat().st_mtime_ns
    assert render_views([RenderJob(plain, cameras)], cache=tmp_path / "cache") == folders[:1]
    assert (folders[0] / "view_000.png").stat().st_mtime_ns == before


@pytest.mark.blender
def test_a_glb_is_placed_by_its_matrix(tmp_path: Path) -> None:
    """A box exported in metres, base at the origin, comes back to the world by orbit_from_glb."""
    import trimesh

    from im3d.core.orbit import orbit_from_glb

    box = trimesh.creation.box(extents=(0.4, 1.0, 0.6))  # world axes, centred
    base = np.array([0.0, 0.0, -0.3])
    metres = trimesh.Trimesh((box.vertices - base) * 3.0 @ GLTF_FROM_WORLD.T, box.faces, process=False)
    metres.export(tmp_path / "box.glb")
    cameras = Orbit.uniform(2, 0.0).cameras(16)[0]
    (folder,) = render_views(
        [RenderJob(tmp_path / "box.glb", cameras, orbit_from_glb(3.0, base))], cache=tmp_path / "cache"
    )
    vertices, _ = load_surface(folder)
    np.testing.assert_allclose(vertices.min(axis=0), [-0.2, -0.5, -0.3], atol=1e-5)
    np.testing.assert_allclose(vertices.max(axis=0), [0.2, 0.5, 0.3], atol=1e-5)


def splats(seed: int, count: int = 60) -> Gaussians:
    g = torch.Generator().manual_seed(seed)
    return Gaussians(
        means=torch.rand(count, 3, generator=g) * 0.6 - 0.3,
        quats=torch.randn(count, 4, generator=g),
        scales=torch.full((count, 3), 0.05),
        opacities=torch.full((count,), 0.9),
        colors=torch.rand(count, 3, generator=g),
    )


def test_the_yardstick_takes_only_the_losses_of_another_fit() -> None:
    other = FitSettings(iterations=9, size=64, lpips=7.0, ms_ssim=0.5, mask=0.0, rgb=3.0)
    fit = with_losses_of(other)
    assert (fit.lpips, fit.ms_ssim, fit.mask, fit.rgb) == (7.0, 0.5, 0.0, 3.0)
    assert dataclasses.replace(fit, lpips=FIT.lpips, ms_ssim=FIT.ms_ssim, mask=FIT.mask, rgb=FIT.rgb) == FIT


def test_identical_halves_agree_perfectly() -> None:
    cameras = cameras_between(Orbit.uniform(8, 10.0), 64)
    perceptual = load_perceptual(torch.device("cpu"))
    same = compare_halves(splats(0), splats(0), cameras, perceptual)
    assert same["lpips"] == pytest.approx(0, abs=1e-6)
    assert same["ssim"] == pytest.approx(1, abs=1e-6)
    assert same["psnr"] == 100.0
    other = compare_halves(splats(0), splats(1), cameras, perceptual)
    assert other["lpips"] > 0.01
    assert other["psnr"] < 30


def test_cameras_between_neighbours() -> None:
    orbit = Orbit.uniform(8, 10.0)
    centres = cameras_between(orbit, 64).centres
    azimuths = np.degrees(np.arctan2(centres[:, 0], -centres[:, 1])) % 360
    np.testing.assert_allclose(azimuths, [22.5, 112.5, 202.5, 292.5], atol=1e-3)


def tiny_clip(folder: Path) -> Clip:
    """A CLIP of two small layers with random weights, saved and loaded as a real one would be."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    torch.manual_seed(0)
    layer = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vocabulary = {c + end: i for i, (c, end) in enumerate((c, e) for c in "abcdefghi" for e in ("", "</w>"))}
    for token in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[token] = len(vocabulary)
    ends = {"bos_token_id": vocabulary["<|startoftext|>"], "eos_token_id": vocabulary["<|endoftext|>"]}
    text = {**layer, **ends, "vocab_size": len(vocabulary), "max_position_embeddings": 16}
    vision = {**layer, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    folder.joinpath("vocab.json").write_text(json.dumps(vocabulary))
    folder.joinpath("merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)
    size = {"height": 32, "width": 32}
    CLIPProcessor(CLIPImageProcessor(size=size, crop_size=size), tokenizer).save_pretrained(folder)
    clip = load_clip(folder)
    assert isinstance(clip, Clip), clip
    return clip


def test_clip_similarity_by_the_model_itself(tmp_path: Path) -> None:
    """Cosines from the full model's forward pass must be ours; an image against itself gives 100."""
    clip = tiny_clip(tmp_path / "clip")
    rgba = np.random.default_rng(0).random((3, 32, 32, 4), dtype=np.float32)
    rgba[..., 3] = 1
    found = clip_similarity(clip, rgba, rgba[0], "a big cab")
    pictures = [(p * 255).round().astype(np.uint8) for p in rgba[..., :3]]
    inputs = clip.processor(text=["a big cab"], images=pictures, return_tensors="pt")
    with torch.no_grad():
        out = clip.model(**inputs)
    assert found["clip_text"] == pytest.approx(100 * float((out.image_embeds @ out.text_embeds.T).mean()), abs=1e-3)
    assert clip_similarity(clip, rgba[:1], rgba[0], "")["clip_image"] == pytest.approx(100, abs=1e-3)


def test_clip_without_weights_gives_a_reason(tmp_path: Path) -> None:
    assert load_clip(tmp_path) == f"no CLIP weights in {tmp_path}"


PLAN = Plan("oracle", 16, 64, 0, "draft")
ITEM = EvaluationObject("pack/chair", "chair", "CC0-1.0", Path("chair.glb"))


def test_failures_are_rows_and_finished_rows_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    instruments = Instruments(load_perceptual(torch.device("cpu")), "no weights")
    outcomes: list[Any] = [InputError("No mask.", "Bring one."), ZeroDivisionError("x"), {"mesh": {"psnr": 30.0}}]

    def measured(*_: object) -> dict[str, Any]:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(evaluation, "_measured", measured)
    first, second, third, fourth = (evaluate_object(ITEM, PLAN, tmp_path / "o", instruments) for _ in range(4))
    assert (first["status"], first["error"]) == ("failed", "No mask. Bring one.")
    assert second["error"] == "ZeroDivisionError: x"
    assert (third["status"], fourth) == ("done", third)
    # Another plan asks anew, and the old job does not stand in its way.
    (tmp_path / "o" / "job").mkdir()
    outcomes.append({"mesh": {"psnr": 31.0}})
    again = evaluate_object(ITEM, Plan("warped", 16, 64, 0, "draft"), tmp_path / "o", instruments)
    assert again["mesh"]["psnr"] == 31.0
    assert not (tmp_path / "o" / "job").exists()


@pytest.mark.parametrize("withheld", [False, True])
def test_the_elevation_is_withheld_on_demand(tmp_path: Path, withheld: bool) -> None:
    views = OrbitViews(np.ones((4, 16, 16, 4), np.float32), Orbit.uniform(4, 17.0))
    cameras = views.orbit.cameras(16)
    truth = Truth(views, views.rgba, cameras, np.zeros((3, 3), np.float32), np.array([[0, 1, 2]], np.int32))
    plan = dataclasses.replace(PLAN, withhold_elevation=withheld)
    assert source_arguments(plan, truth, tmp_path) == ["--views", str(tmp_path / "views")]
    orbit = Orbit.from_json(json.loads((tmp_path / "views" / "orbit.json").read_text()))
    assert orbit.elevation_deg == (None if withheld else 17.0)
    assert (orbit.azimuths_deg, orbit.radius) == (views.orbit.azimuths_deg, views.orbit.radius)


def test_report_shows_numbers_worst_case_and_failures(tmp_path: Path) -> None:
    def row(name: str, decibels: float) -> dict[str, Any]:
        numbers = {"mesh": {"psnr": decibels}, "surface": {"chamfer": 0.01}, "timings_s": {"fit": 3, "total": 4}}
        return {"id": name, "name": name, "licence": "", "folder": name, "elevation_deg": 5.0, **numbers}

    rows = [{**row("bench & chair", 30.0), "status": "done"}, {**row("lamp", 20.0), "status": "done"}]
    rows.append({**row("tree", 0.0), "status": "failed", "error": "No <mask>."})
    write_report(tmp_path, {"machine": "test"}, [(Variant("run", "oracle", PLAN), rows)])
    (summary,) = summaries(rows[:2], HEADLINE[:1])
    assert (summary.mean, summary.spread, summary.worst, summary.worst_object) == (25.0, 5.0, 20.0, "lamp")
    text, page = (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()
    assert "| PSNR (dB) | 25.0 | 5.0 | 20.0 | lamp |" in text
    assert "| oracle | 2/3 | 25.0 |" in text
    assert "bench &amp; chair" in page
    assert "No &lt;mask&gt;." in page
    for name in ("objects.png", "times-run.png"):
        assert Image.open(tmp_path / name).width > 400
