"""The configurations that diffusers has for a checkpoint in the original layout, from its shapes.

What shapes do not tell is what all models of the family share: eight heads of attention in the UNet
of Stable Diffusion 1.x and heads of 64 in that of 2.x, text heads of 64, groups of 32 in every
norm, the noise schedule, and the scale of the latents.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from export.errors import ExportError
from export.weight_file import Tensor

LAYERS: Final = "text_model.encoder.layers."

_SCALING_FACTOR: Final = 0.18215
_TEXT_HEAD: Final = 64
_HEADS_OF_FIRST: Final = 8
_HEAD_OF_SECOND: Final = 64

Tensors = Mapping[str, Tensor]


def index(pipeline: str) -> dict[str, Any]:
    """``model_index.json``; there is no safety checker."""
    return {
        "_class_name": pipeline,
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
    }


def scheduler(prediction_type: str) -> dict[str, Any]:
    """The schedule that Stable Diffusion was trained with, in steps of DDIM."""
    return {
        "_class_name": "DDIMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": prediction_type,
    }


def text_encoder(where: str, tensors: Tensors, *, second: bool) -> dict[str, Any]:
    """``text_encoder/config.json``; OpenCLIP's activation is the exact one, CLIP's the quick."""
    rows, width = _shape(where, tensors, "text_model.embeddings.token_embedding.weight", 2)
    positions, _ = _shape(where, tensors, "text_model.embeddings.position_embedding.weight", 2)
    inner, _ = _shape(where, tensors, f"{LAYERS}0.mlp.fc1.weight", 2)
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": rows,
        "hidden_size": width,
        "projection_dim": width,
        "intermediate_size": inner,
        "num_hidden_layers": _count(tensors, rf"{re.escape(LAYERS)}(\d+)\."),
        "num_attention_heads": max(width // _TEXT_HEAD, 1),
        "max_position_embeddings": positions,
        "hidden_act": "gelu" if second else "quick_gelu",
        "layer_norm_eps": 1e-5,
        "bos_token_id": rows - 2,
        "eos_token_id": rows - 1,
        "pad_token_id": 1,
    }


def unet(where: str, tensors: Tensors, *, second: bool, size: int) -> dict[str, Any]:
    """``unet/config.json`` of a UNet trained on pictures of ``size`` pixels."""
    levels = _count(tensors, r"down_blocks\.(\d+)\.")
    widths = [
        _shape(where, tensors, f"down_blocks.{level}.resnets.0.conv1.weight", 4)[0]
        for level in range(levels)
    ]
    crossed = [
        f"down_blocks.{level}.attentions.0.proj_in.weight" in tensors for level in range(levels)
    ]
    first = crossed.index(True) if True in crossed else levels
    context = [key for key in tensors if key.endswith(".attn2.to_k.weight")]
    if first == levels or not context:
        raise ExportError(f"{where}: the UNet does not look at the text; no attention was found")
    projection = tensors[f"down_blocks.{first}.attentions.0.proj_in.weight"]
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": size // 8,
        "in_channels": _shape(where, tensors, "conv_in.weight", 4)[1],
        "out_channels": _shape(where, tensors, "conv_out.weight", 4)[0],
        "block_out_channels": widths,
        "layers_per_block": _count(tensors, r"down_blocks\.0\.resnets\.(\d+)\."),
        "down_block_types": ["CrossAttnDownBlock2D" if c else "DownBlock2D" for c in crossed],
        "up_block_types": ["CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(crossed)],
        "cross_attention_dim": _shape(where, tensors, context[0], 2)[1],
        "attention_head_dim": (
            [max(width // _HEAD_OF_SECOND, 1) for width in widths] if second else _HEADS_OF_FIRST
        ),
        "use_linear_projection": len(projection.shape) == 2,
        "norm_num_groups": 32,
    }


def vae(where: str, tensors: Tensors) -> dict[str, Any]:
    """``vae/config.json``."""
    levels = _count(tensors, r"encoder\.down_blocks\.(\d+)\.")
    widths = [
        _shape(where, tensors, f"encoder.down_blocks.{level}.resnets.0.conv1.weight", 4)[0]
        for level in range(levels)
    ]
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": _count(tensors, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "latent_channels": _shape(where, tensors, "decoder.conv_in.weight", 4)[1],
        "norm_num_groups": 32,
        "sample_size": 512,
        "scaling_factor": _SCALING_FACTOR,
    }


def _shape(where: str, tensors: Tensors, name: str, sides: int) -> tuple[int, ...]:
    """The shape of a tensor that every checkpoint has."""
    tensor = tensors.get(name)
    if tensor is None or len(tensor.shape) != sides:
        found = "is missing" if tensor is None else f"has the shape {list(tensor.shape)}"
        raise ExportError(
            f"{where}: the weight that diffusers calls {name} {found}; expected {sides} sides"
        )
    return tensor.shape


def _count(tensors: Tensors, pattern: str) -> int:
    """How many different numbers stand at the group of a pattern that begins names."""
    return len({found[1] for name in tensors if (found := re.match(pattern, name))})
