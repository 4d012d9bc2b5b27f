"""IS-Net: the published names and shapes, the arithmetic, and its place in cutting the object out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tiny_models import record
from torch import Tensor

from im3d.core.images import FloatArray
from im3d.errors import ModelError
from im3d.models.catalog import find_model
from im3d.views import isnet
from im3d.views.isnet import IsNet, installed_isnet, load_isnet, segmented
from im3d.views.masks import isolate

# Stage: levels of its block, whether dilated, channels in, inside, out (Qin et al. 2022, figure 4; 2020, table 1).
STAGES = {
    "stage1": (7, False, 64, 32, 64),
    "stage2": (6, False, 64, 32, 128),
    "stage3": (5, False, 128, 64, 256),
    "stage4": (4, False, 256, 128, 512),
    "stage5": (4, True, 512, 256, 512),
    "stage6": (4, True, 512, 256, 512),
    "stage5d": (4, True, 1024, 256, 512),
    "stage4d": (4, False, 1024, 128, 256),
    "stage3d": (5, False, 512, 64, 128),
    "stage2d": (6, False, 256, 32, 64),
    "stage1d": (7, False, 128, 16, 64),
}
SIDES = (64, 64, 128, 256, 512, 512)


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Every key of isnet-general-use and its shape, written out from the description."""
    shapes: dict[str, tuple[int, ...]] = {"conv_in.weight": (64, 3, 3, 3), "conv_in.bias": (64,)}
    for stage, (levels, _, channels_in, inside, out) in STAGES.items():
        units = {"in": (channels_in, out), "1": (out, inside)}
        units |= {str(n): (inside, inside) for n in range(2, levels + 1)}
        units |= {f"{n}d": (2 * inside, inside) for n in range(2, levels)}
        units["1d"] = (2 * inside, out)
        for unit, (a, b) in units.items():
            name = f"{stage}.rebnconv{unit}"
            shapes |= {f"{name}.conv_s1.weight": (b, a, 3, 3), f"{name}.conv_s1.bias": (b,)}
            shapes |= {f"{name}.bn_s1.{p}": (b,) for p in ("weight", "bias", "running_mean", "running_var")}
            shapes[f"{name}.bn_s1.num_batches_tracked"] = ()
    for number, channels in enumerate(SIDES, start=1):
        shapes |= {f"side{number}.weight": (1, channels, 3, 3), f"side{number}.bias": (1,)}
    return shapes


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Random weights under the published names, of a size at which activations stay near 1."""
    generator = torch.Generator().manual_seed(0)
    result: dict[str, Tensor] = {}
    for key, shape in published_shapes().items():
        noise = torch.randn(shape, generator=generator)
        if not shape:
            result[key] = torch.tensor(7)
        elif len(shape) == 4:
            result[key] = noise * (2 / noise[0].numel()) ** 0.5
        else:
            result[key] = 0.1 * noise + (1.0 if key.endswith(("bn_s1.weight", "running_var")) else 0.0)
    return result


@pytest.fixture(scope="module")
def network(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> IsNet:
    path = tmp_path_factory.mktemp("isnet") / "isnet.safetensors"
    save_file(weights, path)
    return load_isnet(path)


def test_the_published_file_has_these_numbers() -> None:
    # isnet-general-use.pth has 176.6 MB: its tensors, and some 300 kB of names.
    assert sum(int(np.prod(s)) for s in published_shapes().values()) * 4 == pytest.approx(176.6e6, rel=0.003)


def test_every_parameter_is_its_source_and_none_is_left_over(network: IsNet, weights: dict[str, Tensor]) -> None:
    loaded = network.state_dict()
    assert loaded.keys() == weights.keys()
    for key, tensor in loaded.items():
        assert not tensor.is_meta
        torch.testing.assert_close(tensor, weights[key], rtol=0, atol=0)
    assert not network.training


def test_a_pickled_file_of_tensors_loads_too(weights: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "isnet-general-use.pth")
    loaded = load_isnet(tmp_path / "isnet-general-use.pth").state_dict()
    assert torch.equal(loaded["stage6.rebnconv4.conv_s1.weight"], weights["stage6.rebnconv4.conv_s1.weight"])


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code from a weights file ran",)


@pytest.mark.parametrize("kind", ["code", "cut", "noise", "missing", "extra", "shape"])
def test_other_files_are_refused(
    kind: str, weights: dict[str, Tensor], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = home / "models" / "isnet" / ("isnet.pth" if kind in ("code", "cut") else "isnet.safetensors")
    path.parent.mkdir(parents=True)
    if kind == "code":
        torch.save({"conv_in.weight": Evil()}, path)
    elif kind == "cut":
        torch.save(weights, path)
        path.write_bytes(path.read_bytes()[:-100].ljust(path.stat().st_size, b"\0"))
    elif kind == "noise":
        path.write_bytes(b"no weights at all")
    else:
        changed = dict(weights)
        if kind == "missing":
            del changed["stage3.rebnconv2.conv_s1.weight"]
        elif kind == "extra":
            changed["stage7.weight"] = torch.zeros(1)
        else:
            changed["side1.weight"] = torch.zeros(1, 32, 3, 3)
        save_file(changed, path)
    with pytest.raises(ModelError, match="is damaged") as caught:
        load_isnet(path)
    assert caught.value.remedy == "download isnet"
    assert "ran" not in capsys.readouterr().out


class Reference:
    """The network as the papers draw it, function by function, from the bare weights."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.w = weights

    def unit(self, name: str, x: Tensor, dilation: int = 1) -> Tensor:
        w = self.w
        x = F.conv2d(x, w[f"{name}.conv_s1.weight"], w[f"{name}.conv_s1.bias"], padding=dilation, dilation=dilation)
        mean, variance = w[f"{name}.bn_s1.running_mean"], w[f"{name}.bn_s1.running_var"]
        return F.relu(F.batch_norm(x, mean, variance, w[f"{name}.bn_s1.weight"], w[f"{name}.bn_s1.bias"]))

    def block(self, stage: str, x: Tensor) -> Tensor:
        levels, dilated = STAGES[stage][:2]
        name = f"{stage}.rebnconv"
        hin = self.unit(f"{name}in", x)
        if dilated:
            h1 = self.unit(f"{name}1", hin)
            h2 = self.unit(f"{name}2", h1, 2)
            h3 = self.unit(f"{name}3", h2, 4)
            h4 = self.unit(f"{name}4", h3, 8)
            d3 = self.unit(f"{name}3d", torch.cat([h4, h3], 1), 4)
            d2 = self.unit(f"{name}2d", torch.cat([d3, h2], 1), 2)
            return self.unit(f"{name}1d", torch.cat([d2, h1], 1)) + hin
        h = [self.unit(f"{name}1", hin)]
        for n in range(2, levels):
            h.append(self.unit(f"{name}{n}", self.pool(h[-1])))
        d = self.unit(f"{name}{levels}", h[-1], 2)
        for n in range(levels - 1, 0, -1):
            d = self.unit(f"{name}{n}d", torch.cat([self.like(d, h[n - 1]), h[n - 1]], 1))
        return d + hin

    def __call__(self, x: Tensor) -> Tensor:
        w = self.w
        h = [self.block("stage1", F.conv2d(x, w["conv_in.weight"], w["conv_in.bias"], stride=2, padding=1))]
        for n in range(2, 7):
            h.append(self.block(f"stage{n}", self.pool(h[-1])))
        d = h[5]
        for n in range(5, 0, -1):
            d = self.block(f"stage{n}d", torch.cat([self.like(d, h[n - 1]), h[n - 1]], 1))
        return torch.sigmoid(self.like(F.conv2d(d, w["side1.weight"], w["side1.bias"], padding=1), x))

    def pool(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2, 2, ceil_mode=True)

    def like(self, x: Tensor, other: Tensor) -> Tensor:
        return F.interpolate(x, size=other.shape[2:], mode="bilinear", align_corners=False)


@pytest.mark.parametrize("shape", [(96, 96), (72, 104)])
def test_it_computes_what_the_papers_draw(network: IsNet, weights: dict[str, Tensor], shape: tuple[int, int]) -> None:
    x = torch.rand(1, 3, *shape, generator=torch.Generator().manual_seed(1)) - 0.5
    with torch.inference_mode():
        ours, theirs = network(x), Reference(weights)(x)
    assert ours.shape == (1, 1, *shape)
    assert theirs.std() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_mask_has_the_pictures_size_and_the_whole_range(network: IsNet) -> None:
    rgb = np.random.default_rng(0).random((50, 70, 3)).astype(np.float32)
    mask = segmented(network, rgb, size=64)
    assert mask.shape == (50, 70)
    assert mask.dtype == np.float32
    assert (mask.min(), mask.max()) == (0.0, pytest.approx(1.0, abs=1e-5))


class Redness(torch.nn.Module):
    """Stands for the trained network: what is red is the object."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = torch.nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape == (1, 3, 1024, 1024)
        assert x.min() >= -0.5
        return torch.sigmoid(20 * (x[:, :1] - x[:, 1:2]) - 10)


def scene() -> FloatArray:
    """A red square before a chequered wall, (64, 64, 4), opaque."""
    y, x = np.mgrid[:64, :64] // 4
    grey = 0.2 + 0.6 * ((x + y) % 2)
    rgba = np.dstack([grey, grey, grey, np.ones_like(grey)]).astype(np.float32)
    rgba[20:44, 24:40, :3] = (1.0, 0.0, 0.0)
    return rgba


def test_it_is_used_where_it_is_installed_and_nothing_plainer_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IM3D_HOME", str(tmp_path))
    cpu = torch.device("cpu")
    assert installed_isnet(cpu) is None
    model = find_model("isnet")
    model.folder.mkdir(parents=True)
    (model.folder / model.files[0]).write_bytes(b"weights")
    record("isnet")
    loads: list[Path] = []
    monkeypatch.setattr(isnet, "load_isnet", lambda path: loads.append(path) or Redness())
    segment = installed_isnet(cpu)
    assert segment is not None
    cut = isolate(scene(), segment=segment)
    assert cut.method == "segmentation"
    assert ((cut.rgba[..., 3] > 0.5) == (scene()[..., 0] == 1)).mean() > 0.99
    isolate(scene(), segment=segment)
    assert loads == [model.folder / "isnet-general-use.pth"]
    transparent = scene()
    transparent[..., 3] = transparent[..., 0] == 1
    assert isolate(transparent, segment=segment).method == "alpha"
