"""Tiny random diffusers checkpoints, the same for the same arguments.

    make_checkpoint(folder, unet_channels=4, vae="tiny", scheduler={...}, seed=3)

The weights are random but scaled so that latents, moments, pictures and predictions are of order
one, and a prediction depends visibly on the prompt and on the timestep; a test says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.checkpoints import (
    BOS,
    EOS,
    write_json,
    write_model_index,
    write_safety_checker,
    write_tokenizer,
)

DDIM: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}
EULER: dict[str, Any] = {
    **{key: DDIM[key] for key in ("beta_start", "beta_end", "beta_schedule", "clip_sample")},
    "_class_name": "EulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}
"""As SDXL's checkpoints have it."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """What the checkpoints of a family have in common; the figures are tiny ones."""

    scheduler: dict[str, Any]
    pipelines: dict[int, str]
    text: dict[str, Any] = field(default_factory=dict)
    text_2: dict[str, Any] | None = None
    unet: dict[str, Any] = field(default_factory=dict)
    vae: dict[str, Any] = field(default_factory=lambda: {"scaling_factor": 0.5})


WIDTH, WIDTH_2, POOLED = 48, 32, 24
ONE_TEXT_ENCODER = {9: "StableDiffusionInpaintPipeline", 4: "StableDiffusionPipeline"}
LINEAR = {"attention_head_dim": (4, 8), "use_linear_projection": True}
FAMILIES = {
    "sd1": Family(scheduler=DDIM, pipelines=ONE_TEXT_ENCODER),
    "sd2": Family(
        scheduler=DDIM | {"prediction_type": "v_prediction"},
        pipelines=ONE_TEXT_ENCODER,
        text={"hidden_act": "gelu", "hidden_size": 1024, "intermediate_size": 64},
        unet={"cross_attention_dim": 1024, "upcast_attention": True, **LINEAR},
    ),
    "sdxl": Family(
        scheduler=EULER,
        pipelines={9: "StableDiffusionXLInpaintPipeline", 4: "StableDiffusionXLPipeline"},
        # Nothing normalises what the UNet reads: it grows with the factor and the layers.
        text={"hidden_act": "quick_gelu", "num_hidden_layers": 3, "initializer_factor": 1.5},
        text_2={
            "eos_token_id": 2,  # which stands for the token of the highest number
            "hidden_act": "gelu",
            "initializer_factor": 1.5,
            "hidden_size": WIDTH_2,
            "num_hidden_layers": 3,
            "projection_dim": POOLED,
        },
        unet={
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "cross_attention_dim": WIDTH + WIDTH_2,
            "projection_class_embeddings_input_dim": POOLED + 6 * 8,
            "transformer_layers_per_block": (1, 2),
            **LINEAR,
        },
        vae={"scaling_factor": 0.13025, "force_upcast": True},
    ),
}


def make_checkpoint(
    folder: Path,
    *,
    family: str = "sd1",
    unet_channels: int = 9,
    vae: str = "kl",
    scheduler: dict[str, Any] | None = None,
    seed: int = 0,
    max_length: int = 77,
    pooled_text: bool = False,
    half: bool = False,
    pad_token: str = EOS,
    safety_checker: bool = False,
) -> Path:
    """Write a tiny checkpoint (about 3 MB) and return its folder.

    Args:
        folder: Where it goes; made where it is missing.
        family: ``"sd1"``, ``"sd2"`` (v-prediction, 40 MB) or ``"sdxl"``.
        unet_channels: 9 for an inpainting checkpoint, 4 for a plain one.
        vae: ``"kl"`` for AutoencoderKL, ``"tiny"`` for AutoencoderTiny.
        scheduler: ``scheduler_config.json`` with its ``_class_name``; the family's where None.
        seed: Of the weights.
        max_length: Text positions.
        pooled_text: Add the pooled text to the time embedding (``addition_embed_type="text"``).
        half: Store fp16 weights.
        pad_token: What the tokenizer pads with.
        safety_checker: Write a safety checker for pictures of 32 pixels too.
    """
    import torch
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    kind = FAMILIES[family]
    scheduler = kind.scheduler if scheduler is None else scheduler
    dtype = torch.float16 if half else torch.float32
    vocabulary = write_tokenizer(folder / "tokenizer", max_length=max_length, pad_token=pad_token)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        text = _text_encoder(vocabulary, max_length, kind.text)
        text.to(dtype).save_pretrained(folder / "text_encoder")
        network = _autoencoder_kl(kind.vae) if vae == "kl" else _autoencoder_tiny()
        network.to(dtype).save_pretrained(folder / "vae")
        unet = kind.unet | ({"addition_embed_type": "text"} if pooled_text else {})
        _unet(unet_channels, unet).to(dtype).save_pretrained(folder / "unet")
        if kind.text_2 is not None:
            write_tokenizer(folder / "tokenizer_2", max_length=max_length, pad_token="!")
            text = _text_encoder(vocabulary, max_length, kind.text_2)
            text.to(dtype).save_pretrained(folder / "text_encoder_2")
        if safety_checker:
            small = {"hidden_size": 32, "intermediate_size": 64, "patch_size": 8}
            few = {"num_hidden_layers": 2, "num_attention_heads": 4}
            write_safety_checker(folder, half=half, side=32, projection=24, **small, **few)
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    write_model_index(
        folder,
        scheduler=scheduler["_class_name"],
        vae=type(network).__name__,
        pipeline=kind.pipelines[unet_channels],
        safety_checker=safety_checker,
        second_text_encoder=kind.text_2 is not None,
    )
    return folder


def _text_encoder(vocabulary: dict[str, int], max_length: int, entries: dict[str, Any]) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    usual = {
        "vocab_size": len(vocabulary),
        "hidden_size": WIDTH,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": max_length,
        "bos_token_id": vocabulary[BOS],
        "eos_token_id": vocabulary[EOS],
        "pad_token_id": vocabulary[EOS],
        # Ten times the usual one: two layers of the usual size hardly tell two prompts apart.
        "initializer_factor": 10.0,
    }
    kind = CLIPTextModelWithProjection if "projection_dim" in entries else CLIPTextModel
    return kind(CLIPTextConfig(**usual | entries)).eval()


def _unet(channels: int, entries: dict[str, Any]) -> Any:
    import torch
    from diffusers import UNet2DConditionModel

    usual: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": channels,
        "out_channels": 4,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
        "addition_embed_type_num_heads": 4,
    }
    unet = UNet2DConditionModel(**usual | entries).eval()
    for name, parameter in unet.named_parameters():
        if "attn2.to_out" in name or "time_emb_proj.weight" in name:
            parameter *= 4
    width = unet.config.cross_attention_dim
    sample, text = torch.randn(2, channels, 16, 16), torch.randn(2, 12, width)
    sizes = torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]] * 2)
    added = {"text_embeds": torch.randn(2, POOLED), "time_ids": sizes}
    inputs = sample, torch.tensor([20.0, 700.0]), text
    _calibrate(unet.conv_out, lambda: unet(*inputs, added_cond_kwargs=added).sample, spread=1.0)
    return unet


def _autoencoder_kl(entries: dict[str, Any]) -> Any:
    import torch
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        **entries,
    ).eval()
    spread = 1 / vae.config.scaling_factor
    image = torch.rand(2, 3, 64, 64) * 2 - 1
    _calibrate(vae.quant_conv, lambda: vae.encode(image).latent_dist.parameters, spread=spread)
    vae.quant_conv.weight[4:] *= 0.2
    vae.quant_conv.bias[4:] = -2.0
    latents = torch.randn(2, 4, 8, 8) * spread
    _calibrate(vae.decoder.conv_out, lambda: vae.decode(latents).sample, spread=0.4)
    return vae


def _autoencoder_tiny() -> Any:
    import torch
    from diffusers import AutoencoderTiny

    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
        latent_channels=4,
        scaling_factor=0.9,
    ).eval()
    image, latents = torch.rand(2, 3, 64, 64) * 2 - 1, torch.randn(2, 4, 8, 8)
    _calibrate(vae.encoder.layers[-1], lambda: vae.encode(image).latents, spread=1.0)
    # The decoder gives 2 x - 1 of its last layer x.
    _calibrate(vae.decoder.layers[-1], lambda: (vae.decode(latents).sample + 1) / 2, spread=0.2)
    vae.decoder.layers[-1].bias += 0.5
    return vae


def _calibrate(layer: Any, output: Callable[[], Any], *, spread: float) -> None:
    """Give the layer's outputs (B, C, h, w) the mean 0 and the standard deviation ``spread``."""
    found = output()
    layer.weight *= spread / (found - found.mean((0, 2, 3), keepdim=True)).std()
    layer.bias.zero_()
    layer.bias -= output().mean((0, 2, 3))
