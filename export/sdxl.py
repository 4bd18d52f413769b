"""What an SDXL checkpoint must be, beside what every checkpoint must."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from engine.bundle import SIZE_IDS, TEXT_ENCODER_2
from export.entries import class_of, require_whole
from export.errors import ExportError

XL_PIPELINES: Final = (
    "StableDiffusionXLInpaintPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
)
"""Those with two text encoders."""


def refuse_refiner(folder: Path, index: Mapping[str, Any]) -> None:
    """An SDXL refiner has the second text encoder alone, and is told of aesthetic scores.

    Raises:
        ExportError: Where the ``model_index.json`` is that of one.
    """
    scored = index.get("requires_aesthetics_score", False)
    if scored or class_of(index, "text_encoder") is None:
        raise ExportError(
            f"{folder / 'model_index.json'}: requires_aesthetics_score is {scored!r} and "
            f"text_encoder is {class_of(index, 'text_encoder')!r}: an SDXL refiner; supported: "
            f"SDXL base and inpainting checkpoints, with false, text_encoder and {TEXT_ENCODER_2}"
        )


def check_added_embeddings(where: Path, unet: Mapping[str, Any], text: Mapping[str, Any]) -> None:
    """SDXL's UNet adds the pooled text and six sizes to the time embedding.

    Args:
        where: Its ``config.json``.
        unet: What that holds.
        text: Configuration of the second text encoder, which gives the pooled text.

    Raises:
        ExportError: Where it adds something else.
    """
    kind = unet.get("addition_embed_type")
    if kind != "text_time":
        raise ExportError(
            f"{where}: addition_embed_type is {kind!r}; supported with two text encoders: "
            "'text_time'"
        )
    for key in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
        require_whole(where, {key: unet.get(key)}, key)
    pooled, each = text.get("projection_dim", 512), unet["addition_time_embed_dim"]
    found = unet["projection_class_embeddings_input_dim"]
    if found != pooled + SIZE_IDS * each:
        raise ExportError(
            f"{where}: projection_class_embeddings_input_dim is {found}; supported: {pooled} of "
            f"the pooled text and {SIZE_IDS} times addition_time_embed_dim, {each}"
        )


def refuse_latent_statistics(where: Path, vae: Mapping[str, Any]) -> None:
    """diffusers' pipeline for inpainting reads them where it decodes and not where it encodes.

    Raises:
        ExportError: Where the autoencoder's ``config.json`` has a mean or a deviation of latents.
    """
    for key in ("latents_mean", "latents_std"):
        if vae.get(key) is not None:
            raise ExportError(f"{where}: {key} is {vae[key]!r}; only null is supported")
