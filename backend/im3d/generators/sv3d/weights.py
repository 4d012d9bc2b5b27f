"""Reading the published SV3D checkpoint into the modules of `sv3d_network`.

The file's layout is that of Stability's generative-models:

    model.diffusion_model.*                                      the U-Net
    conditioner.embedders.0.open_clip.model.visual.*             OpenCLIP's image tower
    conditioner.embedders.1.encoder.{encoder,quant_conv}.*       the autoencoder's encoder
    first_stage_model.decoder.*                                  its decoder
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from im3d.errors import ModelError
from im3d.generators.sv3d.network import Sv3dConfig, Sv3dNetworks, empty_networks
from im3d.models.catalog import unreadable

log = logging.getLogger(__name__)

UNET = "model.diffusion_model."
CLIP = "conditioner.embedders.0.open_clip.model."
ENCODER = "conditioner.embedders.1.encoder."
DECODER = "first_stage_model."
# Parts of the file that nothing here needs: OpenCLIP's text tower and the conditioner's copy of the decoder.
UNUSED = (
    CLIP + "token_embedding",
    CLIP + "positional_embedding",
    CLIP + "ln_final",
    CLIP + "text_projection",
    CLIP + "logit_scale",
    CLIP + "logit_bias",
    CLIP + "attn_mask",
    CLIP + "transformer.",
    ENCODER + "decoder.",
    ENCODER + "post_quant_conv.",
)

# A level of the U-Net has two layers going down, three going up.
_DOWN_LAYERS, _UP_LAYERS = 3, 3
_UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_CLIP_ENDS = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}
_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def unet_name(key: str) -> str:
    """The parameter of `OrbitUNet` that a key under `model.diffusion_model.` names.

    Raises:
        KeyError: The key is not of this layout.
    """
    stem, leaf = key.rsplit(".", 1)
    if stem in _UNET_ENDS:
        return f"{_UNET_ENDS[stem]}.{leaf}"
    if found := re.fullmatch(r"middle_block\.([012])\.(.+)", key):
        part, rest = int(found[1]), found[2]
        return "mid_block." + (_attention(0, rest) if part == 1 else _residual(part // 2, rest))
    found = re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d)\.(.+)", key)
    if not found:
        raise KeyError(key)
    side, index, part, rest = found[1], int(found[2]), int(found[3]), found[4]
    if side == "input":
        (level, layer), block = divmod(index - 1, _DOWN_LAYERS), "down_blocks"
        if rest.startswith("op."):
            return f"{block}.{level}.downsamplers.0.conv.{leaf}"
    else:
        (level, layer), block = divmod(index, _UP_LAYERS), "up_blocks"
        if rest.startswith("conv."):
            return f"{block}.{level}.upsamplers.0.conv.{leaf}"
    return f"{block}.{level}." + (_residual(layer, rest) if part == 0 else _attention(layer, rest))


def _residual(layer: int, rest: str) -> str:
    if rest == "time_mixer.mix_factor":
        return f"resnets.{layer}.{rest}"
    temporal = rest.startswith("time_stack.")
    stem, leaf = rest.removeprefix("time_stack.").rsplit(".", 1)
    return f"resnets.{layer}.{'temporal' if temporal else 'spatial'}_res_block.{_RESIDUAL[stem]}.{leaf}"


def _attention(layer: int, rest: str) -> str:
    rest = re.sub(r"^time_stack\.", "temporal_transformer_blocks.", rest)
    rest = re.sub(r"^time_pos_embed\.([02])\.", lambda m: f"time_pos_embed.linear_{int(m[1]) // 2 + 1}.", rest)
    return f"attentions.{layer}.{rest}"


def vae_name(key: str, levels: int) -> str:
    """The parameter of diffusers' `AutoencoderKL` that a key like `decoder.up.3.block.0.norm1.weight` names.

    Args:
        levels: Resolutions of the autoencoder; its decoder's are numbered the other way round in diffusers.

    Raises:
        KeyError: The key is not of this layout.
    """
    if re.fullmatch(r"quant_conv\.\w+|(en|de)coder\.conv_(in|out)\.\w+", key):
        return key
    side, _, rest = key.partition(".")
    if found := re.fullmatch(r"norm_out\.(\w+)", rest):
        return f"{side}.conv_norm_out.{found[1]}"
    if found := re.fullmatch(r"mid\.block_([12])\.(.+)", rest):
        return f"{side}.mid_block.resnets.{int(found[1]) - 1}.{_shortcut(found[2])}"
    if found := re.fullmatch(r"mid\.attn_1\.(\w+)\.(\w+)", rest):
        return f"{side}.mid_block.attentions.0.{_VAE_ATTENTION[found[1]]}.{found[2]}"
    found = re.fullmatch(r"(down|up)\.(\d+)\.(?:block\.(\d+)\.(.+)|(down|up)sample\.conv\.(\w+))", rest)
    if not found:
        raise KeyError(key)
    way = found[1]
    level = int(found[2]) if way == "down" else levels - 1 - int(found[2])
    if found[3] is not None:
        return f"{side}.{way}_blocks.{level}.resnets.{found[3]}.{_shortcut(found[4])}"
    return f"{side}.{way}_blocks.{level}.{way}samplers.0.conv.{found[6]}"


def _shortcut(rest: str) -> str:
    return re.sub(r"^nin_shortcut\.", "conv_shortcut.", rest)


def clip_parameters(key: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The parameters of transformers' CLIP image tower that one of OpenCLIP's (its key under `visual.`) holds.

    Raises:
        KeyError: The key is not of this layout.
    """
    if key == "proj":
        yield "visual_projection.weight", tensor.T
        return
    if key in _CLIP_ENDS:
        yield f"vision_model.{_CLIP_ENDS[key]}", tensor
        return
    found = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", key)
    if not found:
        raise KeyError(key)
    layer, rest = f"vision_model.encoder.layers.{found[1]}", found[2]
    if packed := re.fullmatch(r"attn\.in_proj_(weight|bias)", rest):
        for name, part in zip("qkv", tensor.chunk(3), strict=True):
            yield f"{layer}.self_attn.{name}_proj.{packed[1]}", part
        return
    stem, leaf = rest.rsplit(".", 1)
    yield f"{layer}.{_CLIP_LAYER[stem]}.{leaf}", tensor


def load_networks(
    path: Path, config: Sv3dConfig, dtype: torch.dtype, vae_dtype: torch.dtype, finetuned: Path | None = None
) -> Sv3dNetworks:
    """The networks of a checkpoint, on the CPU and in evaluation mode.

    Args:
        path: `sv3d_u.safetensors` or `sv3d_p.safetensors`.
        config: Which of them, and its sizes.
        dtype: Of the U-Net and the image tower.
        vae_dtype: Of the autoencoder.
        finetuned: Parameters of the U-Net under their published keys that take the place of the checkpoint's, as
            `im3d train finetune` writes them.

    Raises:
        ModelError: The file is not readable, or not such a checkpoint.
    """
    unet: dict[str, Tensor] = {}
    vae: dict[str, Tensor] = {}
    clip: dict[str, Tensor] = {}
    levels = len(config.vae_channels)
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                if key.startswith(UNUSED):
                    continue
                if key.startswith(UNET):
                    unet[unet_name(key.removeprefix(UNET))] = file.get_tensor(key).to(dtype)
                elif key.startswith(CLIP + "visual."):
                    parts = clip_parameters(key.removeprefix(CLIP + "visual."), file.get_tensor(key))
                    clip.update((name, part.to(dtype).contiguous()) for name, part in parts)
                elif key.startswith((ENCODER, DECODER)):
                    name = vae_name(key.removeprefix(ENCODER).removeprefix(DECODER), levels)
                    vae[name] = file.get_tensor(key).to(vae_dtype)
                else:
                    log.warning("%s: %s is not used", path.name, key)
    except FileNotFoundError as error:
        raise unreadable(path, "it does not exist") from error
    except (OSError, SafetensorError, KeyError) as error:
        raise unreadable(path, error) from error
    if finetuned is not None:
        unet |= _finetuned(finetuned, dtype)
    networks = empty_networks(config)
    _fill(networks.unet, unet, path)
    _fill(networks.vae, vae, path)
    _fill(networks.image_encoder, clip, path)
    return networks


def _finetuned(path: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
            return {unet_name(key.removeprefix(UNET)): file.get_tensor(key).to(dtype) for key in keys}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ModelError(
            f"{path} holds no fine-tuned weights of SV3D ({error}).", "Name a file that fine-tuning wrote."
        ) from error


def _fill(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Puts `tensors` in the place of all parameters: none missing, none left over, every shape equal."""
    wanted = module.state_dict()
    for name, parameter in wanted.items():
        # The checkpoint's 1×1 convolutions of the autoencoder's attention are linear layers in diffusers.
        if name in tensors and tensors[name].ndim == 4 and parameter.ndim == 2:
            tensors[name] = tensors[name].flatten(1)
    wrong = sorted(wanted.keys() ^ tensors.keys())
    wrong += [name for name in wanted.keys() & tensors.keys() if wanted[name].shape != tensors[name].shape]
    if wrong:
        raise unreadable(path, f"{type(module).__name__} differs in {len(wrong)} parameters, first {wrong[0]}")
    module.load_state_dict(tensors, assign=True)
    module.requires_grad_(False)
