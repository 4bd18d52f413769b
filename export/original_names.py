"""The names of weights in the original (CompVis and Stability) layout, and diffusers' for them.

The original numbers the blocks of a UNet through (``input_blocks.4.1``), diffusers by level and
place (``down_blocks.1.attentions.0``). The rules are those of diffusers'
``loaders/single_file_utils.py``; a name that no rule knows gives None, so that nothing is dropped
unseen.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

_RESNET: Final = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_UNET_BLOCK: Final = r"(input|output)_blocks\.(\d+)\.([012])\.(.+)|middle_block\.([012])\.(.+)"
_DIFFUSERS_BLOCK: Final = (
    r"(down|mid|up)_block(?:s\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)"
)
_UNET_ENDS: Final = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_VAE_ATTENTION: Final = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}
_VAE_ENDS: Final = {
    "conv_in": "conv_in",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}
_OPEN_CLIP: Final = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_OPEN_CLIP_ENDS: Final = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
IN_PROJECTION: Final = re.compile(r"(.*\.self_attn)\.in_proj_(weight|bias)")
"""OpenCLIP keeps queries, keys and values in one matrix, one above the other."""


def unet_name(name: str, *, layers: int) -> str | None:
    """diffusers' name of a UNet's weight.

    Args:
        name: Its name after ``model.diffusion_model.``.
        layers: Residual blocks of a level on the way down; on the way up there is one more.
    """
    stem, _, kind = name.rpartition(".")
    if stem in _UNET_ENDS:
        return f"{_UNET_ENDS[stem]}.{kind}"
    found = re.fullmatch(_UNET_BLOCK, stem)
    if found is None:
        return None
    way, number, part, inner, middle, middle_inner = found.groups()
    if way is None:
        where = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}[middle]
        return _in_block(f"mid_block.{where}", middle_inner, kind)
    level, place = divmod(int(number) - (way == "input"), layers + 1)
    block = f"{'down' if way == 'input' else 'up'}_blocks.{level}"
    if inner == "op" and way == "input" and part == "0":
        return f"{block}.downsamplers.0.conv.{kind}"
    if inner == "conv" and way == "output" and part != "0":
        return f"{block}.upsamplers.0.conv.{kind}"
    if part == "2":
        return None
    return _in_block(f"{block}.{('resnets', 'attentions')[int(part)]}.{place}", inner, kind)


def _in_block(place: str, inner: str, kind: str) -> str | None:
    """A residual block's layers have other names, a transformer's the same."""
    if ".attentions." not in place:
        return f"{place}.{_RESNET[inner]}.{kind}" if inner in _RESNET else None
    known = inner in ("norm", "proj_in", "proj_out") or inner.startswith("transformer_blocks.")
    return f"{place}.{inner}.{kind}" if known else None


def original_layers(layers: Collection[str]) -> dict[str, str]:
    """diffusers' layers of a UNet by their original names, as ``unet_name`` has them.

    Args:
        layers: The layers, weights' names without ``.weight``.
    """
    blocks = {layer.split(".")[3] for layer in layers if layer.startswith("down_blocks.0.resnets.")}
    ends = {new: old for old, new in _UNET_ENDS.items()}
    ends |= {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
    resnet = {new: old for old, new in _RESNET.items()}
    found = {}
    for layer in layers:
        if layer in ends:
            found[ends[layer]] = layer
        elif known := re.fullmatch(_DIFFUSERS_BLOCK, layer):
            way, level, kind, place, inner = known.groups()
            inner = resnet.get(inner, inner) if kind == "resnets" else inner
            first = int(level or 0) * (len(blocks) + 1)
            if way == "mid":
                start = f"middle_block.{1 if kind == 'attentions' else 2 * int(place)}"
            elif kind == "downsamplers":
                start, inner = f"input_blocks.{first + len(blocks) + 1}.0", "op"
            elif kind == "upsamplers":
                crossed = any(name.startswith(f"up_blocks.{level}.attentions.") for name in layers)
                start = f"output_blocks.{first + len(blocks)}.{2 if crossed else 1}"
            else:
                block = "input_blocks" if way == "down" else "output_blocks"
                number = first + int(place) + (way == "down")
                start = f"{block}.{number}.{int(kind == 'attentions')}"
            found[f"{start}.{inner}"] = layer
    return found


def vae_name(name: str, *, levels: int) -> str | None:
    """diffusers' name of an autoencoder's weight.

    Args:
        name: Its name after ``first_stage_model.``.
        levels: Levels of the encoder; the decoder's are counted from the other end.
    """
    stem, _, kind = name.rpartition(".")
    if stem in ("quant_conv", "post_quant_conv"):
        return name
    half, _, inner = stem.partition(".")
    if half not in ("encoder", "decoder"):
        return None
    if inner in _VAE_ENDS:
        return f"{half}.{_VAE_ENDS[inner]}.{kind}"
    if inner.startswith("mid.attn_1.") and (layer := inner[11:]) in _VAE_ATTENTION:
        return f"{half}.mid_block.attentions.0.{_VAE_ATTENTION[layer]}.{kind}"
    if found := re.fullmatch(r"mid\.block_([12])\.(.+)", inner):
        return f"{half}.mid_block.resnets.{int(found[1]) - 1}.{_vae_layer(found[2])}.{kind}"
    side = {"encoder": "down", "decoder": "up"}[half]
    found = re.fullmatch(rf"{side}\.(\d+)\.(?:block\.(\d+)\.(.+)|{side}sample\.conv)", inner)
    if found is None:
        return None
    level = int(found[1]) if half == "encoder" else levels - 1 - int(found[1])
    if found[2] is None:
        return f"{half}.{side}_blocks.{level}.{side}samplers.0.conv.{kind}"
    return f"{half}.{side}_blocks.{level}.resnets.{found[2]}.{_vae_layer(found[3])}.{kind}"


def _vae_layer(name: str) -> str:
    return "conv_shortcut" if name == "nin_shortcut" else name


def clip_name(name: str) -> str | None:
    """diffusers' name of a weight of CLIP's text tower, after ``cond_stage_model.transformer.``."""
    if name.startswith(("text_model.", "embeddings.", "encoder.", "final_layer_norm.")):
        return name if name.startswith("text_model.") else f"text_model.{name}"
    return None


def open_clip_name(name: str) -> str | None:
    """diffusers' name of a weight of OpenCLIP's text tower, after ``cond_stage_model.model.``.

    The joint projections of attention come out as ``IN_PROJECTION``.
    """
    if name in _OPEN_CLIP_ENDS:
        return _OPEN_CLIP_ENDS[name]
    found = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", name)
    if found is None:
        return None
    layer, inner = f"text_model.encoder.layers.{found[1]}", found[2]
    if inner in ("attn.in_proj_weight", "attn.in_proj_bias"):
        return f"{layer}.self_{inner}"
    stem, _, kind = inner.rpartition(".")
    return f"{layer}.{_OPEN_CLIP[stem]}.{kind}" if stem in _OPEN_CLIP else None
