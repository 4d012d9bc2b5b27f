"""SV3D's memory modes: which is chosen, that each does what it says, and what is said when the memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sv3d_checkpoint import small, small_checkpoints, small_subject
from tiny_models import pretend_free
from torch import Tensor

from im3d.core.progress import silent
from im3d.errors import OutOfMemoryError
from im3d.generators.base import Subject
from im3d.models.memory_modes import CPU_MODE, MODES, MemoryMode, choose_mode, fitting_mode


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return small_checkpoints(tmp_path_factory.mktemp("sv3d"))


@pytest.fixture
def subject() -> Subject:
    return small_subject()


def spy(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, note: Callable[[Tensor], None]) -> None:
    """Notes the first argument of each call of a method."""
    method = getattr(owner, name)

    def noted(first: Tensor, *others: object) -> object:
        note(first)
        return method(first, *others)

    monkeypatch.setattr(owner, name, noted)


class TestMemory:
    @pytest.mark.parametrize(("free", "name"), [(80, "24"), (22, "24"), (18, "12"), (11, "12"), (7.5, "8")])
    def test_the_largest_mode_that_fits_is_chosen(self, free: float, name: str) -> None:
        assert fitting_mode(free).name == name

    def test_too_little_is_explained(self) -> None:
        with pytest.raises(OutOfMemoryError, match=r"4\.0 GB are free") as caught:
            fitting_mode(4.0)
        assert caught.value.exit_status == 4

    def test_modes_shrink(self) -> None:
        needs = [mode.needs_gb for mode in MODES]
        assert needs == sorted(needs, reverse=True)
        assert all(mode.needs_gb < float(mode.name) for mode in MODES)

    @pytest.mark.parametrize(("free", "name"), [(23.0, "24"), (11.0, "12"), (7.0, "8")])
    def test_auto_goes_by_the_free_memory_of_the_device(
        self, free: float, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pretend_free(monkeypatch, free)
        assert choose_mode("auto", torch.device("cuda")).name == name
        assert choose_mode("12", torch.device("cuda")).name == "12"

    def test_memory_that_torch_holds_and_does_not_use_is_free(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pretend_free(monkeypatch, 5.0)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 4 * 2**30)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2**30)
        assert choose_mode("auto", torch.device("cuda")).name == "8"

    @pytest.mark.parametrize("mode", MODES)
    def test_a_mode_does_what_it_says(
        self, mode: MemoryMode, checkpoints: dict[str, Path], subject: Subject, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        generator = small(checkpoints, views=6, steps=1)
        generator._mode = mode
        networks = generator._loaded()
        chunked = {m._chunk_size for m in networks.unet.modules() if hasattr(m, "_chunk_size")}
        assert chunked == ({1} if mode.chunked_feed_forward else {None})

        sizes: dict[str, set[int]] = {"batch": set(), "decode": set(), "encode": set()}
        spy(monkeypatch, networks.unet, "forward", lambda x: sizes["batch"].add(len(x)))
        spy(monkeypatch, networks.vae, "decode", lambda x: sizes["decode"].add(len(x)))
        spy(monkeypatch, networks.vae, "encode", lambda x: sizes["encode"].add(len(x)))
        moves: list[tuple[str, str]] = []
        for name, network in vars(networks).items():
            monkeypatch.setattr(network, "to", lambda where, name=name: moves.append((name, str(where))))
        generator._device = torch.device("cpu:0")  # so that going there and back can be told apart
        generator.refine(subject, generator.generate(subject, 0, silent), 0.4, 1, 0, silent)

        assert sizes["batch"] == ({2} if mode.batched_guidance else {1})
        assert max(sizes["decode"]) == max(sizes["encode"]) == mode.chunk
        assert {name for name, _ in moves} == {"unet", "vae", "image_encoder"}
        on_device: set[str] = set()
        most = 0
        for name, where in moves:
            on_device = on_device | {name} if where == "cpu:0" else on_device - {name}
            most = max(most, len(on_device))
        assert most == (1 if mode.offload else 3)
        assert on_device == (set() if mode.offload else {"unet", "vae", "image_encoder"})

    def test_a_cpu_has_its_own(self) -> None:
        assert choose_mode("24", torch.device("cpu")) is CPU_MODE

    @pytest.mark.parametrize(
        ("mode", "advice"),
        [(MODES[0], "sv3d.memory to 12"), (MODES[1], "sv3d.memory to 8"), (MODES[2], "generator mini")],
    )
    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory"),
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        ],
    )
    def test_an_exhausted_device_names_the_next_smaller_mode(
        self, checkpoints: dict[str, Path], subject: Subject, mode: object, advice: str, error: RuntimeError
    ) -> None:
        generator = small(checkpoints)
        generator._mode = mode  # type: ignore[assignment]

        def exhausted(*_: object) -> None:
            raise error

        generator.encode = generator.decode = exhausted  # type: ignore[method-assign, assignment]
        with pytest.raises(OutOfMemoryError, match=f"in the {mode.name} GB mode") as caught:  # type: ignore[attr-defined]
            generator.generate(subject, 0, silent)
        assert advice in caught.value.hint

    def test_other_failures_stay_what_they_are(self, checkpoints: dict[str, Path], subject: Subject) -> None:
        generator = small(checkpoints)

        def broken(*_: object) -> None:
            raise RuntimeError("shapes do not match")

        generator.decode = broken  # type: ignore[method-assign, assignment]
        with pytest.raises(RuntimeError, match="shapes") as caught:
            generator.generate(subject, 0, silent)
        assert not isinstance(caught.value, OutOfMemoryError)
