"""The names in a LoRA file: which layer of which network a tensor is for, and which part it is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from export.checkpoint import Checkpoint
from export.errors import ExportError
from export.original_names import original_layers
from export.weight_file import WeightFile

Shapes = Mapping[str, tuple[int, ...]]

_KOHYA: Final = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
_DIFFUSERS: Final = {
    "unet.": "unet",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
}
_OTHER_KINDS: Final = {
    r"\.hada_": "LoHa",
    r"\.lokr_": "LoKr",
    r"\.dora_scale$|lora_magnitude_vector": "DoRA",
    r"\.oft_|\.oft_diag": "OFT",
    r"\.boft_": "BOFT",
    r"\.(a1|a2|b1|b2|bm)\.weight$": "GLoRA",
    r"\.on_input$|ia3": "(IA)3",
    r"\.diff(_b)?$": "a whole difference of weights",
    r"^bundle_emb\.|^emb_params$|\.string_to_param": "a textual inversion",
    r"\.lora_B\.(\w+\.)?bias$|\.lora_up\.bias$": "LoRA with biases",
}
_ROLES: Final = (
    (r"\.lora_A(\.\w+)?\.weight$", "down"),
    (r"\.lora_B(\.\w+)?\.weight$", "up"),
    (r"\.lora_(down|up|mid)\.weight$", ""),
    (r"\.lora\.(down|up)\.weight$", ""),
    (r"_lora\.(down|up)\.weight$", ""),
    (r"\.lora_linear_layer\.(down|up)\.weight$", ""),
    (r"\.(alpha)$", ""),
)
_OLD_TEXT: Final = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_LAYOUTS: Final = (
    "understood are kohya's names (lora_unet_*, lora_te_*) and diffusers' (unet.*, text_encoder.*)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """The layers of a checkpoint that a LoRA may be for.

    Attributes:
        shapes: For each network, the layers and the shapes of their weights.
        flat: For each network, the layers by their names with ``_`` for ``.``, as kohya has them,
            those of the UNet by their original names too.
    """

    shapes: Mapping[str, Shapes]
    flat: Mapping[str, Mapping[str, str]]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Targets:
        """Read the headers of the checkpoint's weight files."""
        shapes = {
            network: _shapes(checkpoint, network)
            for network in checkpoint.variant
            if network in _DIFFUSERS.values()
        }
        flat = {
            network: _flat({layer: layer for layer in known}) for network, known in shapes.items()
        }
        flat["unet"] = _flat(original_layers(shapes["unet"])) | flat["unet"]
        return cls(shapes=shapes, flat=flat)


def _flat(layers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace(".", "_"): layer for name, layer in layers.items()}


def _shapes(checkpoint: Checkpoint, network: str) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for file in checkpoint.weights(network):
        for name, tensor in WeightFile.open(file).tensors.items():
            layer, _, kind = name.rpartition(".")
            if kind == "weight" and len(tensor.shape) in (2, 4):
                if network != "unet" and not layer.startswith(("text_model.", "text_projection")):
                    layer = f"text_model.{layer}"  # transformers 5 leaves it out
                shapes[layer] = tensor.shape
    return shapes


def split_name(path: Path, name: str, targets: Targets) -> tuple[str, str, str]:
    """The network, the layer and the role (up, down, mid, alpha) of a tensor.

    Raises:
        ExportError: When it is of another kind of adapter, or for no layer of the checkpoint.
    """
    for pattern, kind in _OTHER_KINDS.items():
        if re.search(pattern, name):
            raise ExportError(f"{path}: {name} is {kind}; plain LoRA and LoCon are supported")
    for pattern, role in _ROLES:
        if (found := re.search(pattern, name)) is not None:
            stem, role = name[: found.start()], role or found[1]
            network, layer = _layer(path, name, stem, targets)
            return network, layer, role
    raise ExportError(f"{path}: {name} is no part of a LoRA; {_LAYOUTS}")


def _layer(path: Path, name: str, stem: str, targets: Targets) -> tuple[str, str]:
    network = None
    for start, known in (*_KOHYA.items(), *_DIFFUSERS.items()):
        if stem.startswith(start):
            network, stem = known, stem.removeprefix(start)
            break
    if network is None and ".processor." in stem:  # diffusers' oldest, of the UNet alone
        network = "unet"
    if network is None:
        raise ExportError(f"{path}: {name} is for no network that is known; {_LAYOUTS}")
    if network not in targets.flat:
        raise ExportError(f"{path}: {name} is for a {network}, which this checkpoint has not")
    layers = targets.flat[network]
    for candidate in _candidates(stem, network):
        if candidate in layers:
            return network, layers[candidate]
    raise ExportError(f"{path}: {name} is for no layer of this checkpoint's {network}; {_LAYOUTS}")


def _candidates(stem: str, network: str) -> list[str]:
    """How the layer may be called: as it stands, or by diffusers' older names of attention."""
    flat = stem.replace(".", "_")
    plain = stem.replace(".processor.", ".")
    head, _, last = plain.rpartition(".")
    found = [flat, plain.replace(".", "_")]
    if last == "to_out":
        found.append(f"{head}.to_out.0".replace(".", "_"))
    if network != "unet" and last in _OLD_TEXT:
        found.append(f"{head}.{_OLD_TEXT[last]}".replace(".", "_"))
    return found


def alpha_of(file: WeightFile, network: str, layer: str) -> tuple[float | None, bool]:
    """Alpha by the settings of PEFT that newer files carry, and whether the rank's root divides it.

    Raises:
        ExportError: When the settings cannot be read, or are of another kind of adapter.
    """
    text = file.metadata.get("lora_adapter_metadata")
    if text is None:
        return None, False
    try:
        settings: dict[str, Any] = json.loads(text)
        start = f"{network}."
        own = {
            key.removeprefix(start): value
            for key, value in settings.items()
            if key.startswith(start)
        }
        if own.get("use_dora"):
            raise ExportError(f"{file.path}: is DoRA; plain LoRA and LoCon are supported")
        alpha = own.get("lora_alpha")
        for pattern, value in (own.get("alpha_pattern") or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", layer):
                alpha = value
                break
        return (None if alpha is None else float(alpha)), bool(own.get("use_rslora"))
    except (ValueError, TypeError, AttributeError, re.error) as exc:
        raise ExportError(f"{file.path}: its lora_adapter_metadata cannot be read: {exc}") from exc
