"""A small checkpoint with random numbers in the exact layout of the published SV3D files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from im3d.core.images import FloatArray
from im3d.generators.base import Subject
from im3d.generators.sv3d.generator import Sv3dGenerator
from im3d.generators.sv3d.network import Sv3dConfig, empty_networks
from im3d.generators.sv3d.weights import CLIP, DECODER, ENCODER, UNET, unet_name, vae_name

GOLDEN = Path(__file__).parents[1] / "data" / "sv3d_golden_keys.json.gz"
SMALL = {
    "channels": (32, 64, 96, 96),
    "heads": (1, 2, 3, 3),
    "context": 32,
    "vae_channels": (32, 64, 96, 96),
    "clip_width": 32,
    "clip_mlp": 64,
    "clip_layers": 2,
    "clip_heads": 2,
    "clip_size": 56,
}
SMALL_U = Sv3dConfig(vector_channels=256, **SMALL)  # type: ignore[arg-type]
SMALL_P = Sv3dConfig(vector_channels=1280, **SMALL)  # type: ignore[arg-type]


# Side of the views that the small networks draw.
SIZE = 64


def small_checkpoints(folder: Path) -> dict[str, Path]:
    """A checkpoint of each model, by its name."""
    configs = {"sv3d_u": SMALL_U, "sv3d_p": SMALL_P}
    return {n: write_checkpoint(folder / f"{n}.safetensors", random_checkpoint(c)) for n, c in configs.items()}


def small(checkpoints: dict[str, Path], name: str = "sv3d_p", **options: object) -> Sv3dGenerator:
    """A generator on small random weights; whatever it draws counts as an object in the middle."""

    def middle(rgb: FloatArray) -> FloatArray:
        alpha = np.zeros(rgb.shape[:2], np.float32)
        alpha[16:48, 16:48] = 1
        return alpha

    config = SMALL_P if name == "sv3d_p" else SMALL_U
    defaults = {"views": 16, "size": SIZE, "steps": 3, "segment": middle, "elevation_deg": 10.0}
    return Sv3dGenerator(
        name,  # type: ignore[arg-type]
        "cpu",
        checkpoint=checkpoints[name],
        config=config,
        **{**defaults, **options},  # type: ignore[arg-type]
    )


def small_subject() -> Subject:
    """An orange box in the middle of a transparent picture."""
    rgba = np.zeros((SIZE, SIZE, 4), np.float32)
    rgba[12:52, 20:44] = (0.8, 0.3, 0.1, 1)
    return Subject(rgba)


def golden_keys() -> dict[str, dict[str, list[int]]]:
    """The true keys and shapes: of `sv3d_p`'s U-Net, and of the autoencoder's halves."""
    with gzip.open(GOLDEN, "rt") as file:
        return json.load(file)


def random_checkpoint(config: Sv3dConfig, seed: int = 0) -> dict[str, Tensor]:
    """Tensors by their published keys, with the shapes of `config`, and the parts of the file that are not used."""
    networks = empty_networks(config)
    golden = golden_keys()
    unet, vae = networks.unet.state_dict(), networks.vae.state_dict()
    shapes = {key: list(unet[unet_name(key.removeprefix(UNET))].shape) for key in golden["sv3d_p"]}
    vae_keys = [*golden["vae_encoder"], *golden["vae_decoder"]]
    vae_keys += [f"{ENCODER}quant_conv.weight", f"{ENCODER}quant_conv.bias"]
    for key in vae_keys:
        name = vae_name(key.removeprefix(ENCODER).removeprefix(DECODER), len(config.vae_channels))
        shape = list(vae[name].shape)
        # The attention of the published autoencoder is made of 1×1 convolutions.
        shapes[key] = [*shape, 1, 1] if "attn_1" in key and len(shape) == 2 else shape
    shapes |= clip_shapes(config)
    shapes |= {
        f"{CLIP}token_embedding.weight": [10, 8],
        f"{CLIP}positional_embedding": [7, 8],
        f"{CLIP}ln_final.weight": [8],
        f"{CLIP}text_projection": [8, 8],
        f"{CLIP}logit_scale": [],
        f"{ENCODER}decoder.conv_in.weight": [8, 4, 3, 3],
        f"{ENCODER}post_quant_conv.weight": [4, 4, 1, 1],
    }
    generator = torch.Generator().manual_seed(seed)
    return {key: _random(key, shape, generator) for key, shape in shapes.items()}


def clip_shapes(config: Sv3dConfig) -> dict[str, list[int]]:
    """OpenCLIP's keys of a vision transformer, written out."""
    W, M = config.clip_width, config.clip_mlp
    tokens = (config.clip_size // config.clip_patch) ** 2 + 1
    shapes = {
        "class_embedding": [W],
        "positional_embedding": [tokens, W],
        "proj": [W, config.context],
        "conv1.weight": [W, 3, config.clip_patch, config.clip_patch],
        **{f"{norm}.{leaf}": [W] for norm in ("ln_pre", "ln_post") for leaf in ("weight", "bias")},
    }
    for layer in range(config.clip_layers):
        block = {
            "ln_1.weight": [W],
            "ln_1.bias": [W],
            "attn.in_proj_weight": [3 * W, W],
            "attn.in_proj_bias": [3 * W],
            "attn.out_proj.weight": [W, W],
            "attn.out_proj.bias": [W],
            "ln_2.weight": [W],
            "ln_2.bias": [W],
            "mlp.c_fc.weight": [M, W],
            "mlp.c_fc.bias": [M],
            "mlp.c_proj.weight": [W, M],
            "mlp.c_proj.bias": [W],
        }
        shapes |= {f"transformer.resblocks.{layer}.{key}": shape for key, shape in block.items()}
    return {f"{CLIP}visual.{key}": shape for key, shape in shapes.items()}


def write_checkpoint(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return path


def _random(key: str, shape: list[int], generator: torch.Generator) -> Tensor:
    """Noise of a size at which activations stay near 1; norms scale by about 1."""
    noise = torch.randn(shape, generator=generator)
    if len(shape) < 2:
        return 0.1 * noise + (1.0 if key.endswith("weight") else 0.0)
    return noise / max(1, noise[0].numel()) ** 0.5
