"""Tiny random checkpoints of Stable Diffusion 1.x and 2.x, as a folder and as one original file.

The file is written by rules of its own, from diffusers' names to the original ones, so that they
check those of ``export.original_names``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from bench.checkpoints import BOS, EOS, write_json, write_model_index, write_tokenizer
from tests.export.checkpoints import DDIM, ONE_TEXT_ENCODER

WIDTH = 64
"""Of the text; one head."""

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE = [
    (r"mid_block\.resnets\.0\.", "mid.block_1."),
    (r"mid_block\.resnets\.1\.", "mid.block_2."),
    (r"mid_block\.attentions\.0\.", "mid.attn_1."),
    (r"attn_1\.group_norm\.", "attn_1.norm."),
    (r"attn_1\.to_([qkv])\.", r"attn_1.\1."),
    (r"attn_1\.to_out\.0\.", "attn_1.proj_out."),
    (r"conv_norm_out\.", "norm_out."),
    (r"conv_shortcut\.", "nin_shortcut."),
    (r"down_blocks\.(\d)\.resnets\.(\d)\.", r"down.\1.block.\2."),
    (r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample."),
    (r"up_blocks\.(\d)\.resnets\.(\d)\.", lambda m: f"up.{3 - int(m[1])}.block.{m[2]}."),
    (r"up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f"up.{3 - int(m[1])}.upsample."),
]
OPEN_CLIP = [
    (r"text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"text_model\.final_layer_norm\.", "ln_final."),
    (r"text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"layer_norm(\d)\.", r"ln_\1."),
    (r"mlp\.fc1\.", "mlp.c_fc."),
    (r"mlp\.fc2\.", "mlp.c_proj."),
    (r"self_attn\.", "attn."),
]


def make_folder(folder: Path, *, channels: int = 4, second: bool = False, seed: int = 0) -> Path:
    """Write a tiny checkpoint with what all of its family share."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    pad = "!" if second else EOS
    vocabulary = write_tokenizer(folder / "tokenizer", pad_token=pad)
    # Networks this small are no faster on many threads, and far slower on cores that are busy.
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        text = CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=WIDTH,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=1,
            hidden_act="gelu" if second else "quick_gelu",
            bos_token_id=vocabulary[BOS],
            eos_token_id=vocabulary[EOS],
        )
        CLIPTextModel(text).save_pretrained(folder / "text_encoder")
        UNet2DConditionModel(
            sample_size=64,
            in_channels=channels,
            block_out_channels=(32, 32, 64),
            layers_per_block=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=WIDTH,
            attention_head_dim=[1, 1, 1] if second else 8,
            use_linear_projection=second,
        ).save_pretrained(folder / "unet")
        AutoencoderKL(
            block_out_channels=(32, 32, 32, 64),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            scaling_factor=0.18215,
        ).save_pretrained(folder / "vae")
    write_json(folder / "scheduler" / "scheduler_config.json", DDIM)
    write_model_index(
        folder, scheduler="DDIMScheduler", vae="AutoencoderKL", pipeline=ONE_TEXT_ENCODER[channels]
    )
    return folder


def original_state(folder: Path) -> dict[str, Any]:
    """The weights of such a folder by their original names."""
    import torch
    from safetensors.torch import load_file

    unet = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    vae = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    text = load_file(folder / "text_encoder" / "model.safetensors")
    state = {f"model.diffusion_model.{unet_name(name)}": value for name, value in unet.items()}
    for name, value in vae.items():
        old = vae_name(name)
        square = "attn_1" in name or "mid_block.attentions" in name
        if square and value.ndim == 2:  # the original has convolutions here
            value = value[:, :, None, None]
        state[f"first_stage_model.{old}"] = value.contiguous()
    if any("proj_in" in name and value.ndim == 2 for name, value in unet.items()):
        state |= _open_clip(text)
    else:
        state |= {f"cond_stage_model.transformer.{name}": value for name, value in text.items()}
        ids = torch.arange(77)[None]
        state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = ids
    state["alphas_cumprod"] = torch.linspace(1, 0, 1000)
    state["model_ema.decay"] = torch.tensor(0.999)
    return state


def _open_clip(text: dict[str, Any]) -> dict[str, Any]:
    """OpenCLIP's names, its joint projections, and its last layer, which diffusers leaves out."""
    import torch

    state: dict[str, Any] = {}
    for name, value in text.items():
        joint = re.fullmatch(r"(.*self_attn\.)q_proj(\.weight|\.bias)", name)
        if joint:
            parts = [text[f"{joint[1]}{part}_proj{joint[2]}"] for part in "qkv"]
            stem = _renamed(joint[1], OPEN_CLIP)
            state[f"{stem}in_proj_{joint[2][1:]}"] = torch.cat(parts)
        elif not re.search(r"self_attn\.[kv]_proj", name):
            state[_renamed(name, OPEN_CLIP)] = value
    last = [name for name in state if name.startswith("transformer.resblocks.1.")]
    state |= {name.replace(".1.", ".2.", 1): state[name] + 1 for name in last}
    state |= {"logit_scale": torch.tensor(4.6), "text_projection": torch.eye(WIDTH)}
    return {f"cond_stage_model.model.{name}": value for name, value in state.items()}


def unet_name(name: str) -> str:
    """With two residual blocks a level, each level has three numbers."""
    stem, kind = name.rsplit(".", 1)
    if stem in ENDS:
        return f"{ENDS[stem]}.{kind}"
    if found := re.fullmatch(r"down_blocks\.(\d)\.downsamplers\.0\.conv", stem):
        return f"input_blocks.{3 * int(found[1]) + 3}.0.op.{kind}"
    if found := re.fullmatch(r"up_blocks\.(\d)\.upsamplers\.0\.conv", stem):
        block = 3 * int(found[1]) + 2
        # Behind the attention where there is one; the deepest level of these has none.
        return f"output_blocks.{block}.{1 if found[1] == '0' else 2}.conv.{kind}"
    found = re.fullmatch(r"(down|up|mid)_block(?:s\.(\d))?\.(resnets|attentions)\.(\d)\.(.+)", stem)
    assert found is not None, name
    way, level, sort, place, inner = found.groups()
    inner = RESNET[inner] if sort == "resnets" else inner
    if way == "mid":
        number = 1 if sort == "attentions" else 2 * int(place)
        return f"middle_block.{number}.{inner}.{kind}"
    number = 3 * int(level) + int(place) + (way == "down")
    block = "input_blocks" if way == "down" else "output_blocks"
    return f"{block}.{number}.{int(sort == 'attentions')}.{inner}.{kind}"


def vae_name(name: str) -> str:
    """With four levels."""
    return _renamed(name, VAE)


def _renamed(name: str, rules: list[Any]) -> str:
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name
