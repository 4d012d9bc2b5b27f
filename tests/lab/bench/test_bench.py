"""`im3d bench`: the measurements' arithmetic, the peer that it compares with, and its report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import analytic
import numpy as np
import pytest
import torch
from tiny_models import tiny_mini

from im3d.cli.main import main
from im3d.core.images import write_views
from im3d.generators.mini import generator as mini
from im3d.jobs import preview
from im3d.settings import FitSettings, preset_settings
from im3d.splats.fit import SplatFit
from im3d.splats.losses import view_losses
from im3d_lab.bench.command import jobs_table
from im3d_lab.bench.fit import StockFit, bench_fit, random_vgg16
from im3d_lab.bench.jobs import bench_jobs
from im3d_lab.bench.measure import Bench
from im3d_lab.bench.mesh import bench_mesh

CPU = torch.device("cpu")
SMALL = FitSettings(iterations=12, size=192, points=300, max_gaussians=400, densify_every=4)


def test_a_row_tells_cold_from_warm_and_counts_the_floor() -> None:
    bench = Bench(CPU, repeats=3)
    calls: list[int] = []
    row = bench.measure("part", lambda: calls.append(1), operations=bench.rate)
    assert len(calls) == 4
    assert row.low_s <= row.median_s <= row.high_s
    # As many operations as the machine does in a second.
    assert row.floor_s == pytest.approx(1.0)
    assert row.ratio == pytest.approx(row.median_s)
    assert bench.report()["rows"][0]["part"] == "part"


def test_the_rate_is_what_a_product_takes() -> None:
    rate = Bench(CPU, repeats=1).rate
    a = torch.ones(1536, 1536)
    # Far slower or faster would be another quantity; a factor of ten leaves room for a busy machine.
    row = Bench(CPU, repeats=5).measure("product", lambda: a @ a, operations=2 * 1536**3)
    assert 0.1 < row.ratio * rate / (row.operations / row.floor_s) < 10


@pytest.fixture
def whole_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses look at whole pictures, as on a GPU."""
    monkeypatch.setattr(view_losses, "object_boxes", lambda alpha: None)


@pytest.mark.usefixtures("whole_pictures")
def test_the_peers_loss_is_the_products_loss() -> None:
    views = analytic.orbit_views(192, count=8)
    network = random_vgg16(CPU)
    ours, stock = (kind(views, replace(SMALL, ramp=0.0), 0, CPU, "cpu", network) for kind in (SplatFit, StockFit))
    gradients, values = [], []
    for fit in (ours, stock):
        image = torch.rand(1, 3, 192, 192, generator=torch.Generator().manual_seed(1)).requires_grad_()
        alpha = torch.full((1, 192, 192), 0.4)
        loss, _ = fit.losses(image, alpha, [2], 1)
        loss.backward()
        values.append(loss.item())
        gradients.append(image.grad)
    assert values[0] == pytest.approx(values[1], rel=2e-3)  # packed features; MS-SSIM below its knee
    cosine = torch.nn.functional.cosine_similarity(gradients[0].flatten(), gradients[1].flatten(), dim=0)
    assert cosine > 0.995


@pytest.mark.slow
@pytest.mark.usefixtures("whole_pictures")
def test_a_fit_beside_its_peer(tmp_path: Path) -> None:
    bench = Bench(CPU, repeats=1)
    facts = bench_fit(bench, analytic.orbit_views(192, count=8), SMALL, peer=True)
    parts = [row.part for row in bench.rows]
    assert parts[0] == "whole fit"
    assert {"draw", "MS-SSIM, with gradient", "perceptual, with gradient", "iteration"} < set(parts)
    perceptual = next(row for row in bench.rows if row.part.startswith("perceptual"))
    # VGG16's convolutions at 192², forwards and, to the picture, backwards.
    assert perceptual.operations == pytest.approx(2 * 2 * 11.3e9, rel=0.15)
    assert facts["peer"]["splats"] > 0
    assert np.isfinite([facts["whole"]["held_out_psnr"], facts["peer"]["held_out_psnr"], facts["times_faster"]]).all()


@pytest.mark.slow
def test_every_step_to_a_file_is_measured() -> None:
    bench = Bench(CPU, repeats=1)
    settings = preset_settings("draft", provided_views=True)
    small = replace(settings, texture=replace(settings.texture, size=256), mesh=replace(settings.mesh, faces=2000))
    facts = bench_mesh(bench, analytic.orbit_views(96, count=8), small)
    assert [row.part for row in bench.rows][::8] == ["depth fusion", "GLB"]
    assert facts["splats"] > 100
    assert 1000 < facts["faces"] <= 2000


def test_the_command_reports_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_mini().save_pretrained(tmp_path / "models" / "mini")
    monkeypatch.setenv("IM3D_HOME", str(tmp_path))
    monkeypatch.setattr(mini, "SHIPPED_WEIGHTS", tmp_path / "none")
    assert main(["bench", "sample", "--repeats", "1", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["sample"]["weights"] == str(tmp_path / "models" / "mini")
    assert answer["sample"]["rows"][0]["operations"] > 1e6


@pytest.mark.slow
def test_jobs_are_repeated_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        preview, "render_preview", lambda *args: None
    )  # Blender's time and memory are not the process's
    write_views(tmp_path / "orbit", analytic.orbit_views(96, count=8))
    report = bench_jobs(tmp_path / "orbit", 3, CPU, iterations=40)
    assert {"load", "orbit", "fit", "mesh", "texture", "export", "total"} <= set(report["stages"])
    for stage in ("fit", "mesh", "texture"):
        row = report["stages"][stage]
        assert 0 < row["median_s"] < report["stages"]["total"]["median_s"]
        assert 100 < row["peak_mb"] <= report["stages"]["total"]["peak_mb"]
    assert len(report["memory_mb"]) == 3
    assert report["growth_mb"] == pytest.approx(report["memory_mb"][2] - report["memory_mb"][1], abs=1e-6)
    table = jobs_table(report)
    assert "| fit |" in table
    assert "GPU" not in table
    row = {"cold_s": 2.0, "median_s": 1.0, "peak_mb": 100.0, "gpu_peak_mb": 70.0}
    gpu = {"stages": {"fit": row, "export": {**row, "gpu_peak_mb": None}}, "gpu_mb": [30.0, 31.0], "gpu_growth_mb": 1.0}
    table = jobs_table({**report, **gpu})
    assert "| fit | 2.00 | 1.00 | 100 | 70 |" in table
    assert "| export | 2.00 | 1.00 | 100 |  |" in table
    assert "GPU memory held: 30 MB after the first job, 31 MB after the last; +1.0 MB" in table


def test_bad_requests_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "fit", "--repeats", "-1"]) == 2
    assert main(["bench", "jobs", "--repeats", "2"]) == 2
    views = analytic.orbit_views(64, count=4)
    write_views(tmp_path / "four", views)
    assert main(["bench", "fit", "--views", str(tmp_path / "four")]) == 2
    assert "eight views" in capsys.readouterr().err
