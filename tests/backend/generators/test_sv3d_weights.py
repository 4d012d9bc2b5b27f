"""The SV3D checkpoint: every key in its place, nothing missing, nothing left over."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors.torch import save_file
from sv3d_checkpoint import SMALL_P, SMALL_U, golden_keys, random_checkpoint, write_checkpoint
from torch import Tensor

from im3d.errors import ModelError
from im3d.generators.sv3d.network import SV3D_P, SV3D_U, Sv3dNetworks, empty_networks
from im3d.generators.sv3d.weights import (
    CLIP,
    DECODER,
    ENCODER,
    UNET,
    clip_parameters,
    load_networks,
    unet_name,
    vae_name,
)


@pytest.fixture(scope="module")
def source() -> dict[str, Tensor]:
    return random_checkpoint(SMALL_P)


@pytest.fixture(scope="module")
def path(source: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("sv3d") / "sv3d_p.safetensors", source)


@pytest.fixture(scope="module")
def networks(path: Path) -> Sv3dNetworks:
    return load_networks(path, SMALL_P, torch.float32, torch.float32)


class TestKeys:
    @pytest.mark.parametrize("config", [SV3D_U, SV3D_P])
    def test_the_unet_map_is_a_bijection_with_the_golden_list(self, config: object) -> None:
        golden = golden_keys()["sv3d_p"]
        assert len(golden) == 1428
        named = {unet_name(key.removeprefix(UNET)): tuple(shape) for key, shape in golden.items()}
        named["add_embedding.linear_1.weight"] = (1280, config.vector_channels)  # type: ignore[attr-defined]
        unet = empty_networks(config).unet  # type: ignore[arg-type]
        assert named == {name: tuple(p.shape) for name, p in unet.state_dict().items()}

    def test_the_vae_map_is_a_bijection_with_the_golden_list(self) -> None:
        golden = golden_keys()
        keys = [k.removeprefix(ENCODER) for k in golden["vae_encoder"]]
        keys += [k.removeprefix(DECODER) for k in golden["vae_decoder"]]
        named = {vae_name(key, levels=4) for key in keys} | {"quant_conv.weight", "quant_conv.bias"}
        assert named == set(empty_networks(SV3D_P).vae.state_dict())

    # One hand-checked pair for each rule of the layout.
    @pytest.mark.parametrize(
        ("key", "name"),
        [
            ("time_embed.2.bias", "time_embedding.linear_2.bias"),
            ("label_emb.0.0.weight", "add_embedding.linear_1.weight"),
            ("input_blocks.0.0.weight", "conv_in.weight"),
            ("input_blocks.3.0.op.weight", "down_blocks.0.downsamplers.0.conv.weight"),
            ("input_blocks.4.0.skip_connection.bias", "down_blocks.1.resnets.0.spatial_res_block.conv_shortcut.bias"),
            ("input_blocks.11.0.emb_layers.1.bias", "down_blocks.3.resnets.1.spatial_res_block.time_emb_proj.bias"),
            (
                "input_blocks.1.0.time_stack.in_layers.2.weight",
                "down_blocks.0.resnets.0.temporal_res_block.conv1.weight",
            ),
            ("input_blocks.2.0.time_mixer.mix_factor", "down_blocks.0.resnets.1.time_mixer.mix_factor"),
            ("input_blocks.5.1.time_pos_embed.2.bias", "down_blocks.1.attentions.1.time_pos_embed.linear_2.bias"),
            (
                "input_blocks.5.1.time_stack.0.ff_in.net.0.proj.weight",
                "down_blocks.1.attentions.1.temporal_transformer_blocks.0.ff_in.net.0.proj.weight",
            ),
            (
                "input_blocks.5.1.transformer_blocks.0.attn2.to_k.weight",
                "down_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k.weight",
            ),
            ("middle_block.1.proj_in.weight", "mid_block.attentions.0.proj_in.weight"),
            ("middle_block.2.out_layers.3.bias", "mid_block.resnets.1.spatial_res_block.conv2.bias"),
            ("output_blocks.2.1.conv.weight", "up_blocks.0.upsamplers.0.conv.weight"),
            ("output_blocks.8.2.conv.bias", "up_blocks.2.upsamplers.0.conv.bias"),
            ("output_blocks.10.1.norm.bias", "up_blocks.3.attentions.1.norm.bias"),
            ("out.2.weight", "conv_out.weight"),
        ],
    )
    def test_unet_names(self, key: str, name: str) -> None:
        assert unet_name(key) == name

    @pytest.mark.parametrize(
        "key",
        ["input_blocks.1.0.surprise.weight", "middle_block.3.norm.bias", "extra.weight", "input_blocks.x.0.op.bias"],
    )
    def test_keys_of_another_layout_are_refused(self, key: str) -> None:
        with pytest.raises(KeyError):
            unet_name(key)

    @pytest.mark.parametrize("key", ["encoder.down.0.attn.0.q.weight", "loss.logvar", "decoder.mid.block_3.norm1.bias"])
    def test_autoencoder_keys_of_another_layout_are_refused(self, key: str) -> None:
        with pytest.raises(KeyError):
            vae_name(key, levels=4)


class TestLoading:
    def test_every_parameter_equals_its_source_and_none_is_left(
        self, source: dict[str, Tensor], networks: Sv3dNetworks
    ) -> None:
        unet, vae = networks.unet.state_dict(), networks.vae.state_dict()
        clip = networks.image_encoder.state_dict()
        seen = {"unet": 0, "vae": 0, "clip": 0}
        for key, tensor in source.items():
            if key.startswith(UNET):
                torch.testing.assert_close(unet[unet_name(key.removeprefix(UNET))], tensor, rtol=0, atol=0)
                seen["unet"] += 1
            elif key.startswith(CLIP + "visual."):
                for name, part in clip_parameters(key.removeprefix(CLIP + "visual."), tensor):
                    torch.testing.assert_close(clip[name], part, rtol=0, atol=0)
                    seen["clip"] += 1
            elif key.startswith((DECODER, ENCODER + "encoder.", ENCODER + "quant_conv.")):
                loaded = vae[vae_name(key.removeprefix(ENCODER).removeprefix(DECODER), 4)]
                torch.testing.assert_close(loaded, tensor.reshape(loaded.shape), rtol=0, atol=0)
                seen["vae"] += 1
        assert seen == {"unet": len(unet), "vae": len(vae), "clip": len(clip)}
        for module in (networks.unet, networks.vae, networks.image_encoder):
            assert not module.training
            tensors = [*module.parameters(), *module.buffers()]
            assert all(t.device.type == "cpu" and not t.requires_grad for t in tensors)

    def test_the_types_are_as_asked(self, path: Path) -> None:
        networks = load_networks(path, SMALL_P, torch.float16, torch.float32)
        assert {p.dtype for p in networks.unet.parameters()} == {torch.float16}
        assert {p.dtype for p in networks.image_encoder.parameters()} == {torch.float16}
        assert {p.dtype for p in networks.vae.parameters()} == {torch.float32}

    def test_the_autoencoder_is_read_as_diffusers_reads_it(
        self, source: dict[str, Tensor], networks: Sv3dNetworks
    ) -> None:
        ldm = {k.removeprefix(DECODER): v for k, v in source.items() if k.startswith(DECODER)}
        ldm |= {
            k.removeprefix(ENCODER): v
            for k, v in source.items()
            if k.startswith((ENCODER + "encoder.", ENCODER + "quant_conv."))
        }
        reference = convert_ldm_vae_checkpoint(ldm, {"down_block_types": [0] * 4, "up_block_types": [0] * 4})
        ours = networks.vae.state_dict()
        assert set(reference) == set(ours)
        for name, tensor in reference.items():
            torch.testing.assert_close(ours[name], tensor.reshape(ours[name].shape), rtol=0, atol=0)

    def test_the_encoder_is_the_conditioners_and_the_decoder_the_first_stages(
        self, source: dict[str, Tensor], networks: Sv3dNetworks, tmp_path: Path
    ) -> None:
        changed = dict(source)
        changed[ENCODER + "encoder.conv_in.weight"] = -source[ENCODER + "encoder.conv_in.weight"]
        other = load_networks(
            write_checkpoint(tmp_path / "x.safetensors", changed), SMALL_P, torch.float32, torch.float32
        ).vae
        picture, latent = torch.rand(1, 3, 32, 32), torch.randn(1, 4, 4, 4)
        encoded = [vae.encode(picture).latent_dist.mode() for vae in (networks.vae, other)]
        decoded = [vae.decode(latent).sample for vae in (networks.vae, other)]
        assert not torch.allclose(*encoded)
        torch.testing.assert_close(*decoded, rtol=0, atol=0)

    def test_the_image_tower_computes_what_openclip_computes(
        self, source: dict[str, Tensor], networks: Sv3dNetworks
    ) -> None:
        visual = {k.removeprefix(CLIP + "visual."): v for k, v in source.items() if k.startswith(CLIP + "visual.")}
        pixels = torch.randn(2, 3, 56, 56)
        ours = networks.image_encoder(pixels).image_embeds
        torch.testing.assert_close(ours, openclip_forward(visual, pixels, heads=2), rtol=1e-4, atol=1e-5)

    def test_residual_norms_have_the_epsilon_of_the_training(self, networks: Sv3dNetworks) -> None:
        norms = {n: m.eps for n, m in networks.unet.named_modules() if isinstance(m, torch.nn.GroupNorm)}
        residual = {eps for name, eps in norms.items() if "_res_block." in name}
        attention = {eps for name, eps in norms.items() if name.endswith(".norm")}
        assert residual == {1e-5}
        assert attention == {1e-6}
        assert norms["conv_norm_out"] == 1e-5


class TestRefusals:
    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="does not exist"):
            load_networks(tmp_path / "none.safetensors", SMALL_P, torch.float32, torch.float32)

    def test_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "x.safetensors").write_bytes(b"PK\3\4 not safetensors")
        with pytest.raises(ModelError, match="does not hold the weights"):
            load_networks(tmp_path / "x.safetensors", SMALL_P, torch.float32, torch.float32)
        save_file({"model.diffusion_model.surprise.weight": torch.zeros(1)}, tmp_path / "y.safetensors")
        with pytest.raises(ModelError, match="surprise"):
            load_networks(tmp_path / "y.safetensors", SMALL_P, torch.float32, torch.float32)

    @pytest.mark.parametrize(
        "key", [UNET + "out.2.bias", DECODER + "decoder.norm_out.weight", CLIP + "visual.ln_pre.bias"]
    )
    def test_a_missing_parameter(self, source: dict[str, Tensor], tmp_path: Path, key: str) -> None:
        rest = {k: v for k, v in source.items() if k != key}
        with pytest.raises(ModelError, match="differs in 1 parameters"):
            load_networks(write_checkpoint(tmp_path / "x.safetensors", rest), SMALL_P, torch.float32, torch.float32)

    def test_the_other_variant(self, path: Path) -> None:
        with pytest.raises(ModelError, match=r"add_embedding\.linear_1\.weight"):
            load_networks(path, SMALL_U, torch.float32, torch.float32)

    def test_unknown_keys_are_told(
        self, source: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        more = {**source, "surplus.weight": torch.zeros(2)}
        load_networks(write_checkpoint(tmp_path / "x.safetensors", more), SMALL_P, torch.float32, torch.float32)
        assert "surplus.weight is not used" in caplog.text


def openclip_forward(visual: dict[str, Tensor], pixels: Tensor, heads: int) -> Tensor:
    """OpenCLIP's vision transformer, from the description of ViT (pre-norm, class token, projected at the end)."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], visual[f"{name}.weight"], visual[f"{name}.bias"])

    patch = visual["conv1.weight"].shape[-1]
    x = F.conv2d(pixels, visual["conv1.weight"], stride=patch).flatten(2).transpose(1, 2)
    x = torch.cat([visual["class_embedding"].expand(len(x), 1, -1), x], dim=1) + visual["positional_embedding"]
    x = norm(x, "ln_pre")
    layers = {int(k.split(".")[2]) for k in visual if k.startswith("transformer.resblocks.")}
    for layer in range(len(layers)):
        block = f"transformer.resblocks.{layer}"
        p = {k.removeprefix(f"{block}."): v for k, v in visual.items() if k.startswith(f"{block}.")}
        h = norm(x, f"{block}.ln_1").transpose(0, 1)
        h, _ = F.multi_head_attention_forward(
            h, h, h, h.shape[-1], heads, p["attn.in_proj_weight"], p["attn.in_proj_bias"], None, None, False, 0.0,
            p["attn.out_proj.weight"], p["attn.out_proj.bias"],
        )  # fmt: skip
        x = x + h.transpose(0, 1)
        h = F.gelu(F.linear(norm(x, f"{block}.ln_2"), p["mlp.c_fc.weight"], p["mlp.c_fc.bias"]))
        x = x + F.linear(h, p["mlp.c_proj.weight"], p["mlp.c_proj.bias"])
    return norm(x[:, 0], "ln_post") @ visual["proj"]
