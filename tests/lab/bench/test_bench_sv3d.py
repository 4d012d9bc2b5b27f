"""The GPU benchmark of SV3D, tried out on small networks on the CPU; times themselves are not tested."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from im3d.errors import OutOfMemoryError
from im3d.generators.sv3d.network import SV3D_P, empty_networks

TOOL = Path(__file__).parents[3] / "tools" / "gpu" / "bench_sv3d.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_sv3d", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def answer(tool: ModuleType) -> dict[str, Any]:
    result: dict[str, Any] = tool.bench("8", views=4, size=64, steps=3, restart=2, device="cpu", tiny=True)
    return result


def test_every_part_is_measured(answer: dict[str, Any]) -> None:
    parts = answer["parts"]
    first, refine = ("condition", "denoise", "decode", "whole"), ("encode", "denoise", "decode", "whole")
    assert {f"first {p}" for p in first} | {f"refine {p}" for p in refine} <= parts.keys()
    assert parts["first denoise"]["calls"] == 3
    assert parts["refine denoise"]["calls"] == 2
    assert answer["network_calls"] == 2 * (3 + 2)
    for kind, names in (("first", first), ("refine", refine)):
        inside = sum(parts[f"{kind} {p}"]["seconds"] for p in names if p != "whole")
        assert 0 < inside <= parts[f"{kind} whole"]["seconds"]
    assert answer["error"] is None
    json.dumps(answer)


def test_the_table_has_a_row_for_each_part(tool: ModuleType, answer: dict[str, Any]) -> None:
    lines = tool.table([answer, {**answer, "parts": {}, "error": "too small"}]).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 2 + len(answer["parts"]) + 1
    assert "| 8 GB | 4 of 64² | first denoise | 3 |" in tool.table([answer])


def test_a_card_that_is_too_small_is_an_answer(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OutOfMemoryError("It does not fit.")

    monkeypatch.setattr(tool.Measured, "decode", full)
    answer = tool.bench("24", views=4, size=64, steps=1, restart=1, device="cpu", tiny=True)
    assert answer["error"] == "It does not fit."
    assert answer["parts"]["first denoise"]["calls"] == 1


def test_without_tiny_it_is_the_published_size() -> None:
    networks = empty_networks(SV3D_P)
    parts = (networks.unet, networks.image_encoder, networks.vae)
    # Together with a second copy of the decoder and OpenCLIP's text tables, the 9.37 GB of sv3d_p.safetensors.
    assert [sum(p.numel() for p in part.parameters()) for part in parts] == [1_525_278_442, 632_076_800, 83_653_843]


@pytest.mark.slow
def test_the_command_line_caps_nothing_on_a_cpu(tool: ModuleType, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "rows.jsonl"
    arguments = ["--device", "cpu", "--tiny", "--modes", "8", "--sizes", "3x64", "--steps", "1", "--restart-steps", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(TOOL), *arguments, "--out", str(out)])
        assert tool.main() == 0
    assert "| 8 GB | 3 of 64² | refine whole |" in capsys.readouterr().out
    assert json.loads(out.read_text())["cap_gb"] is None


def test_a_part_knows_the_peaks_of_the_parts_within_it(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    gauge = [0]

    def use(gigabytes: int) -> None:
        gauge[0] = max(gauge[0], gigabytes * tool.GIGABYTE)

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: gauge.__setitem__(0, 0))
    for name in ("max_memory_allocated", "max_memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, lambda: gauge[0])
    outer, inner = (tool.Stopwatch(torch.device("cuda")) for _ in range(2))
    with outer.part("orbit"):
        use(3)
        for gigabytes in (9, 2):
            with inner.part("decode"):
                use(gigabytes)
        use(1)
    with outer.part("fit"):
        use(4)
    with pytest.raises(OutOfMemoryError), outer.part("mesh"):
        raise OutOfMemoryError("It does not fit.")
    assert {k: row["allocated_gb"] for k, row in outer.rows.items()} == {"orbit": 9, "fit": 4}
    assert inner.rows["decode"]["allocated_gb"] == 9
    assert inner.rows["decode"]["calls"] == 2
    assert not tool.Stopwatch._open
