"""The networks of a checkpoint, each ready to be traced and checked, loaded one at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from engine.bundle import SIZE_IDS, TEXT_ENCODER_2, Safety
from export.checkpoint import Checkpoint
from export.errors import ExportError, in_a_line
from export.onnx_configs import (
    ComponentOnnxConfig,
    SafetyCheckerOnnxConfig,
    TextEncoderOnnxConfig,
    UnetOnnxConfig,
    VaeDecoderOnnxConfig,
    VaeEncoderOnnxConfig,
)
from export.quiet import quiet
from export.wrappers import SafetyChecker, TextEncoder, Unet, VaeDecoder, VaeEncoder

Inputs = dict[str, NDArray[Any]]

_PLANES: Final = ((1, 8, 8), (3, 9, 13), (2, 24, 16))
"""(batch, h, w) of the latents that the gate compares at; 9x13 divides by nothing."""

_TRAINING_STEPS: Final = 1000
_THRESHOLDS: Final = {"special_care_embeds_weights", "concept_embeds_weights"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """One network of a checkpoint.

    Attributes:
        name: The component of the bundle.
        module: What is traced.
        config: How it is traced; holds the tensors' names and shapes.
        reference: The original, called with the inputs as keywords.
        cases: Inputs that the parity gate compares on.
        plane: Side of the first input at the native size; 0 where that is no picture.
    """

    name: str
    module: nn.Module
    config: ComponentOnnxConfig
    reference: Callable[..., Tensor | tuple[Tensor, ...]]
    cases: tuple[Inputs, ...]
    plane: int = 0


def builders(checkpoint: Checkpoint, *, tokens: int) -> dict[str, Callable[[], Network]]:
    """How each component is loaded, in the order in which they are exported.

    Raises:
        ExportError: When a weight file is not whole, so that none is exported in vain before.
    """
    for file in checkpoint.weights():
        _require_whole(file)
    checker: dict[str, Callable[[], Network]] = {}
    if checkpoint.preprocessor is not None:
        side = checkpoint.preprocessor.crop
        checker["safety_checker"] = lambda: safety_checker(checkpoint, side=side)
    return (
        checker
        | {
            name: partial(text_encoder, checkpoint, name, tokens=tokens)
            for name in checkpoint.text_encoders
        }
        | {
            "unet": lambda: unet(checkpoint),
            "vae_encoder": lambda: vae_encoder(checkpoint),
            "vae_decoder": lambda: vae_decoder(checkpoint),
        }
    )


def text_encoder(checkpoint: Checkpoint, name: str = "text_encoder", *, tokens: int) -> Network:
    """A CLIP text encoder with ``tokens`` positions. Where there are two, each gives what its last
    layer is given, and the second the projected end token too."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    positions = checkpoint.text_encoders[name].get("max_position_embeddings", 77)
    if tokens > positions:
        tokenizer = name.replace("text_encoder", "tokenizer")
        raise ExportError(
            f"{checkpoint.folder / tokenizer}: model_max_length is {tokens}, but the text "
            f"encoder has {positions} positions"
        )
    penultimate, projected = len(checkpoint.text_encoders) > 1, name == TEXT_ENCODER_2
    model = _load(
        checkpoint,
        name,
        CLIPTextModelWithProjection if projected else CLIPTextModel,
        # The plain rendering of attention: the others decide by shapes at run time.
        attn_implementation="eager",
        # transformers 5 writes the same weights without this prefix.
        key_mapping={r"^(?!text_model\.|text_projection\.)": "text_model."},
    )
    random = np.random.default_rng(0)
    vocabulary = model.config.vocab_size

    def reference(input_ids: Tensor) -> Tensor | tuple[Tensor, ...]:
        said = model(input_ids=input_ids, output_hidden_states=penultimate)
        hidden = said.hidden_states[-2] if penultimate else said.last_hidden_state
        return (hidden, said.text_embeds) if projected else hidden

    return Network(
        name=name,
        module=TextEncoder(model, tokens, penultimate=penultimate),
        config=TextEncoderOnnxConfig(
            model.config,
            tokens=tokens,
            penultimate=penultimate,
            pooled=model.config.projection_dim if projected else 0,
        ),
        reference=reference,
        cases=tuple(
            {"input_ids": random.integers(0, vocabulary, (batch, tokens))} for batch in (1, 3)
        ),
    )


def unet(checkpoint: Checkpoint) -> Network:
    """The UNet; checked with every row at another timestep, whole and fractional."""
    from diffusers import UNet2DConditionModel

    model = _load(checkpoint, "unet", UNet2DConditionModel)
    config = UnetOnnxConfig(model.config)
    random = np.random.default_rng(1)

    def case(batch: int, height: int, width: int) -> Inputs:
        times = random.uniform(0, _TRAINING_STEPS - 1, batch)
        times[::2] = times[::2].round()
        sizes = {"batch": batch, "tokens": int(random.integers(2, 78))}
        sizes |= {"height/8": height, "width/8": width}
        inputs = {
            spec.name: _normal(random, *(sizes[a] if isinstance(a, str) else a for a in spec.shape))
            for spec in config.takes
        }
        inputs["timestep"] = times.astype(np.float32)
        if "time_ids" in inputs:
            inputs["time_ids"] = random.integers(0, 2048, (batch, SIZE_IDS)).astype(np.float32)
        return inputs

    def reference(
        sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **added: Tensor
    ) -> Tensor:
        return model(sample, timestep, encoder_hidden_states, added_cond_kwargs=added).sample

    native = min(native_size(checkpoint) // 8, 64)
    return Network(
        name="unet",
        module=Unet(model),
        config=config,
        reference=reference,
        cases=tuple(case(*plane) for plane in (*_PLANES, (1, native, native))),
        plane=native_size(checkpoint) // 8,
    )


def vae_encoder(checkpoint: Checkpoint) -> Network:
    """The encoding half of the autoencoder."""
    model = _vae(checkpoint)
    gaussian = checkpoint.vae_class == "AutoencoderKL"
    random = np.random.default_rng(2)

    def reference(image: Tensor) -> Tensor:
        encoded = model.encode(image)
        return encoded.latent_dist.parameters if gaussian else encoded.latents

    return Network(
        name="vae_encoder",
        module=VaeEncoder(model),
        config=VaeEncoderOnnxConfig(model.config, gaussian=gaussian),
        reference=reference,
        cases=tuple(
            {"image": np.tanh(_normal(random, batch, 3, 8 * height, 8 * width))}
            for batch, height, width in _PLANES
        ),
        plane=native_size(checkpoint),
    )


def vae_decoder(checkpoint: Checkpoint) -> Network:
    """The decoding half of the autoencoder."""
    return decoder(
        "vae_decoder",
        _vae(checkpoint),
        scaling_factor=checkpoint.scaling_factor,
        plane=native_size(checkpoint) // 8,
    )


def decoder(name: str, model: Any, *, scaling_factor: float, plane: int = 0) -> Network:
    """The decoding half of a loaded autoencoder, as a component of that name."""
    random = np.random.default_rng(3)
    channels, factor = model.config.latent_channels, np.float32(scaling_factor)
    return Network(
        name=name,
        module=VaeDecoder(model),
        config=VaeDecoderOnnxConfig(model.config),
        reference=lambda latents: model.decode(latents).sample,
        cases=tuple(
            {"latents": _normal(random, batch, channels, height, width) / factor}
            for batch, height, width in _PLANES
        ),
        plane=plane,
    )


def safety_checker(checkpoint: Checkpoint, *, side: int) -> Network:
    """The CLIP safety checker, for pictures of ``side`` by ``side`` pixels."""
    from diffusers.pipelines.stable_diffusion.safety_checker import (
        StableDiffusionSafetyChecker,
        cosine_distance,
    )

    # The plain rendering of attention: the others decide by shapes at run time.
    plain = {"attn_implementation": "eager"}
    model = _load(checkpoint, "safety_checker", StableDiffusionSafetyChecker, **plain)
    seen = model.config.vision_config.image_size
    if seen != side:
        raise ExportError(
            f"{checkpoint.folder / 'safety_checker'}: sees pictures of {seen} pixels, but the "
            f"feature extractor's crop_size is {side}"
        )
    random = np.random.default_rng(4)

    def reference(image: Tensor) -> Tensor:
        embeds = model.visual_projection(model.vision_model(image)[1])
        known = (model.special_care_embeds, model.concept_embeds)
        return torch.cat([cosine_distance(embeds, texts) for texts in known], dim=1)

    thresholds = len(model.special_care_embeds) + len(model.concept_embeds)
    return Network(
        name="safety_checker",
        module=SafetyChecker(model),
        config=SafetyCheckerOnnxConfig(model.config, side=side, thresholds=thresholds),
        reference=reference,
        cases=tuple({"image": _normal(random, batch, 3, side, side)} for batch in (1, 3)),
    )


def safety(checkpoint: Checkpoint) -> Safety | None:
    """What the bundle says of the safety checker, its thresholds read from the weight files."""
    seen = checkpoint.preprocessor
    if seen is None:
        return None
    thresholds: dict[str, tuple[float, ...]] = {}
    for file in checkpoint.weights("safety_checker"):
        with safe_open(file, framework="pt") as weights:
            for name in _THRESHOLDS & set(weights.keys()):
                thresholds[name] = tuple(weights.get_tensor(name).float().tolist())
    return Safety(
        shortest_edge=seen.shortest_edge,
        crop=seen.crop,
        mean=seen.mean,
        std=seen.std,
        special_care=thresholds["special_care_embeds_weights"],
        concepts=thresholds["concept_embeds_weights"],
    )


def native_size(checkpoint: Checkpoint) -> int:
    """Side in pixels at which the UNet was trained, from its ``sample_size``."""
    size = checkpoint.unet.get("sample_size") or 64
    return 8 * int(min(size) if isinstance(size, list | tuple) else size)


def _vae(checkpoint: Checkpoint) -> Any:
    import diffusers

    return _load(checkpoint, "vae", getattr(diffusers, checkpoint.vae_class))


def _load(checkpoint: Checkpoint, name: str, kind: Any, **settings: Any) -> Any:
    """A network of a checkpoint, its LoRA files fused; see ``load``."""
    model = load(checkpoint.part(name), kind, variant=checkpoint.variant[name], **settings)
    for lora in checkpoint.loras:
        lora.fuse(name, model)
    return model


def load(folder: Path, kind: Any, *, variant: str | None, **settings: Any) -> Any:
    """A network in fp32, from the safetensors files of the folder and nothing else.

    Both libraries give weights that they do not find random values, and say so in a log line.

    Raises:
        ExportError: When it cannot be loaded, or weights are missing or of another shape.
    """
    try:
        with quiet("diffusers", "transformers"):
            model, found = kind.from_pretrained(
                folder,
                variant=variant,
                use_safetensors=True,
                local_files_only=True,
                torch_dtype=torch.float32,
                low_cpu_mem_usage=False,
                # Then they are listed like the missing ones, and refused below.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **settings,
            )
    except ImportError:
        raise
    except Exception as exc:  # whatever a configuration leads the libraries to
        raise ExportError(f"{folder}: cannot be loaded: {in_a_line(exc)}") from exc
    other = [_mismatch(key) for key in found["mismatched_keys"]]
    for keys, what in ((found["missing_keys"], "are missing"), (other, "have another shape")):
        if keys:
            raise ExportError(
                f"{folder}: {len(keys)} of the weights that {kind.__name__} with this config.json "
                f"needs {what}, first {min(keys)}"
            )
    return model.eval().requires_grad_(False)


def _mismatch(key: Any) -> str:
    """One weight: diffusers gives its name and both shapes, transformers the name alone."""
    if isinstance(key, str):
        return key
    name, found, needed = key
    return f"{name} with {tuple(found)} for {tuple(needed)}"


def _require_whole(file: Path) -> None:
    """Raise unless the header of a weight file can be read and the file is as long as it says."""
    try:
        with safe_open(file, framework="np"):
            pass
    except (SafetensorError, OSError) as exc:
        raise ExportError(f"{file}: is no whole .safetensors file: {in_a_line(exc)}") from exc


def _normal(random: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return random.standard_normal(shape, dtype=np.float32)
