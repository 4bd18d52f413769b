"""The networks of a checkpoint as their own libraries load them, and sessions of a bundle."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from engine.bundle import Bundle

TOLERANCE = 1e-4
"""fp32 against fp32 in networks of outputs of order one: 4e-6 is usual, the gate allows 1e-3."""

Call = Callable[..., NDArray[Any]]


def original(folder: Path, component: str) -> Call:
    """The original of a component, called with the bundle's tensor names."""
    import diffusers
    import torch
    from transformers import CLIPTextModel

    logging.getLogger("diffusers").setLevel(logging.ERROR)
    if component == "text_encoder":
        text = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
        run: Callable[..., Any] = lambda input_ids: text(input_ids).last_hidden_state  # noqa: E731
    elif component == "unet":
        unet = diffusers.UNet2DConditionModel.from_pretrained(
            folder / "unet", torch_dtype=torch.float32
        )
        run = lambda **inputs: unet(**inputs).sample  # noqa: E731
    else:
        index = (folder / "model_index.json").read_text()
        kind = "AutoencoderTiny" if "AutoencoderTiny" in index else "AutoencoderKL"
        vae = getattr(diffusers, kind).from_pretrained(folder / "vae", torch_dtype=torch.float32)
        if component == "vae_decoder":
            run = lambda latents: vae.decode(latents).sample  # noqa: E731
        elif kind == "AutoencoderKL":
            run = lambda image: vae.encode(image).latent_dist.parameters  # noqa: E731
        else:
            run = lambda image: vae.encode(image).latents  # noqa: E731

    def call(**inputs: NDArray[Any]) -> NDArray[Any]:
        with torch.no_grad():
            tensors = {name: torch.from_numpy(values) for name, values in inputs.items()}
            return np.asarray(run(**tensors))

    return call


def session(bundle: Bundle, component: str) -> Call:
    """The exported component in ONNX Runtime, called the same way."""
    opened = onnxruntime.InferenceSession(
        bundle.path / bundle.components[component].model.file, providers=["CPUExecutionProvider"]
    )
    return lambda **inputs: np.asarray(opened.run(None, inputs)[0])


def normal(seed: int, *shape: int) -> NDArray[np.float32]:
    """Standard normal numbers, the same for the same seed."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
