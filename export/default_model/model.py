"""The networks of the default model and how they are stored.

For: a Stable-Diffusion-inpainting-shaped model small enough for a CPU, in a folder that diffusers'
own pipeline opens. Imports torch, diffusers and transformers; knows nothing of training data.
"""

from __future__ import annotations

import copy
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    StableDiffusionInpaintPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

LATENT_CHANNELS = 4
LATENT_FACTOR = 8
"""Pixels per latent cell, each way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """Sizes of the networks.

    Attributes:
        size: Native width and height, pixels.
        channels: Channels of the UNet per level; the first level has no attention.
        layers: Residual blocks per level of the UNet.
        heads: Attention heads, UNet and text encoder.
        text_width: Width of the text encoder and of the UNet's cross attention.
        text_layers: Layers of the text encoder.
        tokens: Text positions, start and end marks included.
    """

    size: int = 128
    channels: tuple[int, ...] = (32, 64, 128, 192)
    layers: int = 1
    heads: int = 4
    text_width: int = 192
    text_layers: int = 3
    tokens: int = 24

    def __post_init__(self) -> None:
        factor = LATENT_FACTOR * 2 ** (len(self.channels) - 1)
        if len(self.channels) < 2 or any(c % 16 for c in self.channels):
            raise ValueError(f"channels: {self.channels}; two or more multiples of 16 are needed")
        if self.size % factor:
            raise ValueError(f"size: {self.size}; a multiple of {factor} is needed")
        if self.text_width % self.heads:
            raise ValueError(f"text_width: {self.text_width}; a multiple of {self.heads} is needed")


def build_unet(settings: ModelSettings) -> UNet2DConditionModel:
    """Builds the 9-channel UNet with random weights.

    Besides cross attention, a pooled text embedding is added to the time embedding, so that every
    residual block sees the prompt: a small net learns to obey much sooner with it.
    """
    deeper = len(settings.channels) - 1
    return UNet2DConditionModel(
        sample_size=settings.size // LATENT_FACTOR,
        in_channels=2 * LATENT_CHANNELS + 1,
        out_channels=LATENT_CHANNELS,
        block_out_channels=settings.channels,
        layers_per_block=settings.layers,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * deeper,
        up_block_types=("CrossAttnUpBlock2D",) * deeper + ("UpBlock2D",),
        cross_attention_dim=settings.text_width,
        attention_head_dim=settings.heads,
        norm_num_groups=16,
        use_linear_projection=True,
        addition_embed_type="text",
        addition_embed_type_num_heads=settings.heads,
    )


def build_text_encoder(settings: ModelSettings, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Builds the text encoder with random weights."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.text_width,
            intermediate_size=3 * settings.text_width,
            num_hidden_layers=settings.text_layers,
            num_attention_heads=settings.heads,
            max_position_embeddings=settings.tokens,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            projection_dim=settings.text_width,
        )
    )


def build_vae(width: int = 32) -> AutoencoderTiny:
    """Builds the autoencoder (f = 8, 4 latent channels) with random weights."""
    return AutoencoderTiny(
        encoder_block_out_channels=(width,) * 4,
        decoder_block_out_channels=(width,) * 4,
        num_encoder_blocks=(0, 1, 2, 3),
        num_decoder_blocks=(3, 3, 1, 0),
        latent_channels=LATENT_CHANNELS,
        act_fn="relu",
        scaling_factor=1.0,
        force_upcast=False,
    )


def build_scheduler() -> DDIMScheduler:
    """The noise schedule: zero terminal SNR, trailing spacing, clean-sample prediction.

    Few-step samplers then start from pure noise, exactly as in training (Lin et al., "Common
    Diffusion Noise Schedules and Sample Steps are Flawed", 2023).
    """
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        prediction_type="sample",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def load_vae(folder: Path) -> AutoencoderTiny:
    """Loads the autoencoder of a diffusers folder as float32, frozen."""
    vae = AutoencoderTiny.from_pretrained(_part(folder, "vae"), torch_dtype=torch.float32)
    return vae.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """Loads the tokenizer of a diffusers folder."""
    return CLIPTokenizer.from_pretrained(_part(folder, "tokenizer"))


def load_weights(folder: Path, unet: UNet2DConditionModel, text: CLIPTextModel) -> None:
    """Copies the UNet and text encoder of a diffusers folder into networks of the same shape.

    Raises:
        ValueError: If the shapes differ.
    """
    for name, target in (("unet", unet), ("text_encoder", text)):
        part = _part(folder, name)
        (path,) = part.glob("*.safetensors")
        source = {_known_as(key): value.float() for key, value in load_file(path).items()}
        theirs = {k: tuple(v.shape) for k, v in source.items()}
        ours = {k: tuple(v.shape) for k, v in target.state_dict().items()}
        if theirs != ours:
            different = sorted(k for k in theirs | ours if theirs.get(k) != ours.get(k))
            raise ValueError(
                f"{part}: {len(different)} tensors differ from the model's, first {different[0]!r};"
                " start from a folder of the same sizes, or without weights"
            )
        target.load_state_dict(source)


def _known_as(key: str) -> str:
    """The name that transformers 4 gives to a tensor: version 5 leaves out one level."""
    known = key.startswith(("embeddings.", "encoder.", "final_layer_norm."))
    return f"text_model.{key}" if known else key


def save_pipeline(
    folder: Path,
    *,
    vae: AutoencoderTiny,
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    half: bool = True,
) -> None:
    """Writes a diffusers folder, replacing an older one only when the new one is complete.

    Args:
        folder: Where the folder is to lie.
        vae: Autoencoder.
        unet: UNet; not changed.
        text: Text encoder; not changed.
        tokenizer: Tokenizer.
        half: Whether weights are stored as float16.
    """
    dtype = torch.float16 if half else torch.float32
    pipeline = StableDiffusionInpaintPipeline(
        vae=copy.deepcopy(vae).to("cpu", dtype),
        text_encoder=copy.deepcopy(text).to("cpu", dtype),
        tokenizer=tokenizer,
        unet=copy.deepcopy(unet).to("cpu", dtype),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    fresh = folder.with_name(folder.name + ".new")
    stale = folder.with_name(folder.name + ".old")
    for leftover in (fresh, stale):
        shutil.rmtree(leftover, ignore_errors=True)
    pipeline.save_pretrained(fresh)
    if folder.exists():
        os.replace(folder, stale)
    os.replace(fresh, folder)
    shutil.rmtree(stale, ignore_errors=True)


def _part(folder: Path, name: str) -> Path:
    part = folder / name
    if not part.is_dir():
        raise FileNotFoundError(f"diffusers folder without {name!r}: {folder}")
    return part
