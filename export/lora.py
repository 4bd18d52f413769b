"""LoRA files fused into a checkpoint's weights: W + scale * alpha / r * B A for each layer.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685), section 4.1. A
layer is linear or a convolution; that of a convolution has A with its kernel and B of one place
(LoCon), or both of one place and the kernel between them. Two ways of naming are understood:

    kohya       lora_unet_down_blocks_0_..._to_q.lora_down.weight   .lora_up.weight   .alpha
    diffusers   unet.down_blocks.0. ... .to_q.lora_A.weight         .lora_B.weight

with the older names of diffusers besides. Where no alpha is given it is the rank r. A name that
fits no weight of the checkpoint is refused, and so is every other kind of adapter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from engine.bundle import FileRecord
from export.checkpoint import Checkpoint
from export.errors import ExportError
from export.lora_names import Targets, alpha_of, split_name
from export.weight_file import DTYPES, WeightFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What a file adds to one layer; the names of its tensors in the file.

    Attributes:
        module: The layer in its network.
        up: B, (M, r) or (M, r, 1, 1).
        down: A, (r, C) or (r, C, k, k).
        mid: The kernel (r, r, k, k) between them, where ``down`` is of one place; else None.
        alpha: The tensor of alpha, or alpha itself.
        root: Whether alpha is divided by the root of the rank (rsLoRA) and not by the rank.
    """

    module: str
    up: str
    down: str
    mid: str | None
    alpha: str | float | None
    root: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """A LoRA file that fits a checkpoint.

    Attributes:
        path: The file.
        scale: What it is multiplied with.
        layers: For each network what is added.
    """

    path: Path
    scale: float
    layers: Mapping[str, tuple[Layer, ...]]

    @classmethod
    def open(cls, path: Path, scale: float, checkpoint: Checkpoint) -> Lora:
        """Read a file's header and find the layers that it is for; no weights are loaded.

        Raises:
            ExportError: When it is no LoRA, or not one for this checkpoint.
        """
        if not math.isfinite(scale):
            raise ExportError(f"{path}: the scale is {scale}; a number is needed")
        file = WeightFile.open(path)
        targets = Targets.of(checkpoint)
        found: dict[tuple[str, str], dict[str, str]] = {}
        for name in file.tensors:
            network, module, role = split_name(path, name, targets)
            tensors = found.setdefault((network, module), {})
            if role in tensors:
                raise ExportError(
                    f"{path}: both {tensors[role]} and {name} are for {module} of the {network}"
                )
            tensors[role] = name
        if not found:
            raise ExportError(f"{path}: holds no weights")
        layers: dict[str, tuple[Layer, ...]] = {}
        for (network, module), tensors in found.items():
            layer = _layer(file, network, module, tensors)
            _check(file, layer, targets.shapes[network][module], network)
            layers[network] = (*layers.get(network, ()), layer)
        return cls(path=path, scale=scale, layers=layers)

    def fuse(self, network: str, model: Any) -> None:
        """Add what the file has for a network to the weights of a loaded model, in fp32."""
        import torch
        from safetensors import safe_open

        with torch.no_grad(), safe_open(self.path, framework="pt") as file:
            for layer in self.layers.get(network, ()):
                up, down = (file.get_tensor(name).float() for name in (layer.up, layer.down))
                weight = model.get_submodule(layer.module).weight
                rank = down.shape[0]
                if isinstance(layer.alpha, str):
                    alpha = float(file.get_tensor(layer.alpha).float())
                else:
                    alpha = float(rank) if layer.alpha is None else layer.alpha
                b, a = up.flatten(1), down.flatten(1)
                if layer.mid is None:
                    change = b @ a
                else:
                    mid = file.get_tensor(layer.mid).float()
                    change = torch.einsum("mr,rskl,sc->mckl", b, mid, a)
                factor = self.scale * alpha / (math.sqrt(rank) if layer.root else rank)
                weight += factor * change.reshape(weight.shape)

    def record(self) -> dict[str, Any]:
        """What the bundle's provenance says of it."""
        return {
            "file": self.path.name,
            "sha256": FileRecord.of(self.path).sha256,
            "scale": self.scale,
        }


def with_loras(checkpoint: Checkpoint, files: Sequence[tuple[Path, float]]) -> Checkpoint:
    """The checkpoint with LoRA files, each with its scale, to be fused when it is loaded.

    Raises:
        ExportError: When a file is no LoRA for this checkpoint.
    """
    if not files:
        return checkpoint
    loras = tuple(Lora.open(path, scale, checkpoint) for path, scale in files)
    records = [lora.record() for lora in loras]
    return replace(
        checkpoint,
        loras=(*checkpoint.loras, *loras),
        extras={**checkpoint.extras, "loras": records},
    )


def _layer(file: WeightFile, network: str, module: str, tensors: Mapping[str, str]) -> Layer:
    for role, name in (("down", "lora_down (or lora_A)"), ("up", "lora_up (or lora_B)")):
        if role not in tensors:
            there = min(tensors.values())
            raise ExportError(f"{file.path}: has {there}, but no {name} for {module}")
    alpha, root = alpha_of(file, network, module)
    return Layer(
        module=module,
        up=tensors["up"],
        down=tensors["down"],
        mid=tensors.get("mid"),
        alpha=tensors.get("alpha", alpha),
        root=root,
    )


def _check(file: WeightFile, layer: Layer, weight: tuple[int, ...], network: str) -> None:
    """The product must have the weight's shape; a convolution of one place is a matrix."""
    used = [name for name in (layer.up, layer.down, layer.mid) if name is not None]
    for name in used:
        if file.tensors[name].dtype not in DTYPES:
            kind = file.tensors[name].dtype
            raise ExportError(
                f"{file.path}: {name} is of type {kind}; supported: {', '.join(DTYPES)}"
            )
    if isinstance(layer.alpha, str) and prod(shape := file.tensors[layer.alpha].shape) != 1:
        raise ExportError(
            f"{file.path}: {layer.alpha} has the shape {list(shape)}; one number is needed"
        )
    up, down = (_flat(file.tensors[name].shape) for name in (layer.up, layer.down))
    rank = down[0] if down else 0
    if layer.mid is None:
        fits = down == (rank, *_flat(weight)[1:])
    else:
        mid = file.tensors[layer.mid].shape
        kernel = weight[2:]
        fits = bool(kernel) and down == (rank, weight[1]) and mid == (rank, rank, *kernel)
    if not (fits and rank and up == (weight[0], rank)):
        shapes = ", ".join(f"{name} {list(file.tensors[name].shape)}" for name in used)
        raise ExportError(
            f"{file.path}: {shapes} do not fit {layer.module} of the {network}, which is "
            f"{list(weight)}"
        )


def _flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without a kernel of one place."""
    return shape[:2] if all(side == 1 for side in shape[2:]) else shape
