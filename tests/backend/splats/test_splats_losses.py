"""The image losses against the packages they must equal, and where they must differ."""

from __future__ import annotations

from pathlib import Path

import lpips
import pytest
import pytorch_msssim
import skimage.data
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from im3d.errors import ModelError
from im3d.models import efficientnet
from im3d.models.catalog import find_model
from im3d.splats.losses import image_losses as losses, perceptual
from im3d.splats.losses.image_losses import ms_ssim, ssim_target


def pictures(size: int, count: int = 2) -> tuple[Tensor, Tensor]:
    """Natural pictures and disturbed copies of them, (B, 3, S, S)."""
    generator = torch.Generator().manual_seed(size)
    whole = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1)[None].float() / 255
    clean = torch.cat([F.interpolate(whole[..., 60 * i :, 40 * i :], (size, size), mode="area") for i in range(count)])
    return clean, (clean.roll(1, 3) + 0.1 * torch.randn(clean.shape, generator=generator)).clamp(0, 1)


def value_and_gradient(value: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return value.detach(), torch.autograd.grad(value, x)[0]


# ---------------------------------------------------------------- MS-SSIM


@pytest.mark.parametrize("size", [161, 176, 205])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 2e-5)])
def test_ms_ssim_equals_pytorch_msssim(size: int, dtype: torch.dtype, tolerance: float) -> None:
    """float32 runs the numba kernels, float64 the torch formula; the package's window is float32 in both."""
    y, x = (t.to(dtype) for t in pictures(size))
    x.requires_grad_()
    mine, my_gradient = value_and_gradient(ms_ssim(x, ssim_target(y)), x)
    theirs, their_gradient = value_and_gradient(pytorch_msssim.ms_ssim(x, y, data_range=1.0), x)
    assert abs(float(mine - theirs)) < 1e-5
    assert (my_gradient - their_gradient).norm() / their_gradient.norm() < tolerance


def test_ms_ssim_of_chosen_rows_uses_their_targets() -> None:
    y, x = pictures(64, 3)
    whole = ssim_target(y)
    rows = torch.tensor([2, 0])
    expected = (ms_ssim(x[2:], ssim_target(y[2:])) + ms_ssim(x[:1], ssim_target(y[:1]))) / 2
    torch.testing.assert_close(ms_ssim(x[rows], whole[rows]), expected)


def test_an_inverted_picture_still_has_a_gradient() -> None:
    """pytorch-msssim clamps the negative contrast term: value and gradient are zero, and a fit would be stuck."""
    y, _ = pictures(176, 1)
    x = (1 - y).requires_grad_()
    assert float(torch.autograd.grad(pytorch_msssim.ms_ssim(x, y, data_range=1.0), x)[0].abs().max()) == 0
    target = ssim_target(y)
    value, gradient = value_and_gradient(ms_ssim(x, target), x)
    assert 0 < float(value) < 0.05
    improved = ms_ssim((x + 0.05 * gradient / gradient.abs().max()).detach(), target)
    assert improved > value


@pytest.mark.parametrize(
    ("size", "scales"), [(11, 1), (20, 1), (21, 2), (64, 3), (128, 4), (160, 4), (161, 5), (512, 5)]
)
def test_small_pictures_use_the_scales_that_fit(size: int, scales: int) -> None:
    assert losses.scales_for(size) == scales


def test_small_pictures_can_be_compared() -> None:
    y, x = pictures(48, 1)
    target = ssim_target(y)
    assert float(ms_ssim(y, target)) == pytest.approx(1.0, abs=1e-5)
    assert 0.1 < float(ms_ssim(x, target)) < 0.95


# ---------------------------------------------------------------- LPIPS


def random_vgg16() -> dict[str, Tensor]:
    """VGG16's convolutions with random weights that keep activations alive, by torchvision's names."""
    generator = torch.Generator().manual_seed(0)
    state, index, channels = {}, 0, 3
    for block in perceptual.VGG16_LAYERS:
        for width in block:
            shape = (width, channels, 3, 3)
            state[f"features.{index}.weight"] = torch.randn(shape, generator=generator) * (2 / (9 * channels)) ** 0.5
            state[f"features.{index}.bias"] = 0.1 * torch.randn(width, generator=generator)
            index, channels = index + 2, width
        index += 1
    return state


@pytest.fixture
def vgg16_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    monkeypatch.setenv("IM3D_HOME", str(tmp_path))
    state = random_vgg16()
    perceptual.vgg16_path().parent.mkdir(parents=True)
    # The published file holds the classifier too.
    save_file({**state, "pre_logits.fc1.weight": torch.zeros(4, 4)}, perceptual.vgg16_path())
    return state


def test_lpips_equals_the_package(vgg16_installed: dict[str, Tensor]) -> None:
    y, x = pictures(64)
    x.requires_grad_()
    package = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    convolutions = [layer for layer in package.net.modules() if isinstance(layer, nn.Conv2d)]
    names = [name.removesuffix(".weight") for name in vgg16_installed if name.endswith("weight")]
    for layer, name in zip(convolutions, names, strict=True):
        layer.load_state_dict({p: vgg16_installed[f"{name}.{p}"] for p in ("weight", "bias")})
    mine = perceptual.load_perceptual(torch.device("cpu"))
    assert mine.name == perceptual.perceptual_name() == "lpips-vgg16"

    value, gradient = value_and_gradient(mine(x, mine.features(y)), x)
    expected, expected_gradient = value_and_gradient(package(x, y, normalize=True).mean(), x)
    assert abs(float(value - expected)) < 1e-5 * max(1.0, float(expected))
    assert float(expected) > 1e-3
    assert (gradient - expected_gradient).norm() / expected_gradient.norm() < 1e-4


def test_vgg16_is_found_where_the_command_puts_it(vgg16_installed: dict[str, Tensor]) -> None:
    (name,) = find_model("vgg16").files
    assert perceptual.vgg16_path() == find_model("vgg16").folder / name


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x08" + bytes(7) + b"{}      "])
def test_damaged_weights_of_vgg16_are_fetched_again(content: bytes, vgg16_installed: dict[str, Tensor]) -> None:
    perceptual.vgg16_path().write_bytes(content)
    with pytest.raises(ModelError) as caught:
        perceptual.load_perceptual(torch.device("cpu"))
    assert caught.value.remedy == "download vgg16"


def test_flat_pictures_give_finite_gradients(vgg16_installed: dict[str, Tensor]) -> None:
    """Where every feature of a pixel is zero its length has no derivative."""
    state = {k: (v if k.endswith("weight") else v - 1e3) for k, v in vgg16_installed.items()}
    dead = perceptual.Perceptual(
        "dead", perceptual.Vgg16(state), perceptual.lpips_weights(), perceptual.LPIPS_MEAN, perceptual.LPIPS_STD
    )
    x = torch.zeros(1, 3, 32, 32, requires_grad=True)
    value, gradient = value_and_gradient(dead(x, dead.features(torch.ones(1, 3, 32, 32))), x)
    assert float(value) == 0
    assert torch.isfinite(gradient).all()


def test_without_vgg16_the_features_are_efficientnets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IM3D_HOME", str(tmp_path))
    features = perceptual.load_perceptual(torch.device("cpu"))
    assert features.name == perceptual.perceptual_name() == "efficientnet-lite0"
    y, x = pictures(64)
    target = features.features(y)
    assert float(features(y, target)) == pytest.approx(0, abs=1e-5)
    direct = sum(
        (a - b).square().sum(dim=1).mean() / len(target.layers)
        for a, b in zip(features.features(x).layers, target.layers, strict=True)
    )
    torch.testing.assert_close(features(x, target), direct, rtol=1e-4, atol=1e-6)


def test_efficientnet_recognises_pictures() -> None:
    """Our stem and stages, completed by the published head, classify photographs as ImageNet does."""
    state = efficientnet.lite0_weights()
    x = efficientnet.EfficientNetLite0(state)(_imagenet_input(skimage.data.chelsea()))[-1]
    x = F.relu6(efficientnet._folded(state, "_conv_head", "_bn1")(x)).mean(dim=(2, 3))
    probabilities = (x @ state["_fc.weight"].T + state["_fc.bias"]).softmax(dim=1)[0]
    cats = probabilities.detach()[281:286].sum()  # tabby, tiger cat, Persian, Siamese, Egyptian
    assert float(cats) > 0.5
    assert int(probabilities.argmax()) in range(281, 286)


def _imagenet_input(picture: object) -> Tensor:
    x = torch.as_tensor(picture).permute(2, 0, 1)[None].float() / 255
    side = min(x.shape[2:])
    top, left = (x.shape[2] - side) // 2, (x.shape[3] - side) // 2
    x = x[..., top : top + side, left : left + side]
    return (F.interpolate(x, (224, 224), mode="bicubic", antialias=True) - 0.498) / 0.502
