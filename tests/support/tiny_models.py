"""Models of random numbers, small enough for a second on one core, in the layout of the published ones; and a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from tokenizers import pre_tokenizers
from torch import Tensor

from im3d.generators.mini.model import VolumeDenoiser
from im3d.models.catalog import InstalledFile, find_model, record_installation, sha256_of
from im3d.settings import ImageSettings

CHAT = "{% for message in messages %}<|im_start|>{{ message['content'] }}{% endfor %}"


def record(name: str) -> Path:
    """Makes whatever lies in a model's folder count as installed."""
    model = find_model(name)
    paths = [p for p in model.folder.rglob("*") if p.is_file()]
    files = [
        InstalledFile(p.relative_to(model.folder).as_posix(), p.stat().st_size, sha256_of(p), "nothing") for p in paths
    ]
    record_installation(model, "", "test", files)
    return model.folder


def tiny_sdxl(folder: Path) -> None:
    """Stable Diffusion XL with its two text encoders."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=64,
        sample_size=8,
    )
    text = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = transformers.CLIPTextConfig(
        **text, vocab_size=1000, projection_dim=32, bos_token_id=0, eos_token_id=2, pad_token_id=1
    )
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=transformers.CLIPTextModel(config),
        text_encoder_2=transformers.CLIPTextModelWithProjection(config),
        tokenizer=_clip_tokenizer(),
        tokenizer_2=_clip_tokenizer(),
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        ),
    )
    pipeline.save_pretrained(folder, variant="fp16")


def tiny_flux2(folder: Path) -> None:
    """FLUX.2 klein. Its text encoder has 27 layers at least: the prompt's embedding is taken after 9, 18 and 27."""
    torch.manual_seed(0)
    pipeline = diffusers.Flux2KleinPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=diffusers.AutoencoderKLFlux2(
            block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=64
        ),
        text_encoder=_qwen(layers=28, width=8),
        tokenizer=_qwen_tokenizer(),
        transformer=diffusers.Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=24,
            timestep_guidance_channels=32,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ),
        is_distilled=True,
    )
    pipeline.save_pretrained(folder)


def tiny_z_image(folder: Path) -> None:
    """Z-Image-Turbo."""
    torch.manual_seed(0)
    pipeline = diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(latents=16),
        text_encoder=_qwen(layers=3, width=16),
        tokenizer=_qwen_tokenizer(),
        transformer=diffusers.ZImageTransformer2DModel(
            dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16, axes_dims=[4, 6, 6]
        ),
    )
    pipeline.save_pretrained(folder)


TINY_MINI: dict[str, Any] = {
    "sample_size": 32,
    "depths": 8,
    "samples": 12,
    "widths": (8, 16, 16, 32),
    "widths_up": (16, 16, 8),
    "layers": 1,
    "dropout": 0.0,
    "decoder_widths": (8, 16, 16),
    "embedding": 32,
}


def tiny_mini(seed: int = 0) -> VolumeDenoiser:
    """mini at a fraction of its size; its zero-initialised layers are random too, so that every path shows."""
    torch.manual_seed(seed)
    model = VolumeDenoiser(**TINY_MINI)
    for p in model.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.05)
    return model.eval()


def copying(self: VolumeDenoiser, x: Tensor, sigma: Tensor, condition: Tensor, *others: Any) -> Tensor:
    """Stands for mini's `forward`: every view is the input view, whatever the noise."""
    return condition[:, None].expand_as(x).clone()


def pretend_free(monkeypatch: pytest.MonkeyPatch, gigabytes: float) -> None:
    """A GPU with so much free memory."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(gigabytes * 2**30), 24 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)


def _vae(latents: int = 4) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=latents,
        norm_num_groups=4,
        sample_size=64,
        shift_factor=0.1,
    )


def _clip_tokenizer() -> Any:
    """A vocabulary of single letters."""
    letters = [chr(c) for c in range(33, 127)]
    words = [*(x for x in letters if x != "!"), *(f"{x}</w>" for x in letters)]
    vocabulary = ["<|startoftext|>", "!", "<|endoftext|>", *words]
    tokens = {token: index for index, token in enumerate(vocabulary)}
    return transformers.CLIPTokenizer(vocab=tokens, merges=[], model_max_length=77)


def _qwen(layers: int, width: int) -> Any:
    return transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            vocab_size=300,
            hidden_size=width,
            intermediate_size=16,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
        )
    )


def _qwen_tokenizer() -> Any:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = {token: index for index, token in enumerate([*letters, "<|im_start|>", "<|endoftext|>"])}
    tokenizer = transformers.Qwen2TokenizerFast(vocab=tokens, merges=[], pad_token="<|endoftext|>")
    tokenizer.chat_template = CHAT
    return tokenizer


SMALL = ImageSettings(size=64, steps=2)
MAKERS: dict[str, Callable[[Path], None]] = {
    "flux2_klein": tiny_flux2,
    "z_image_turbo": tiny_z_image,
    "sdxl": tiny_sdxl,
}
