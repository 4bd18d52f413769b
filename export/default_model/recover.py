"""Brings a bundle of the default model back into the diffusers folder it was exported from.

    python -m export.default_model.recover BUNDLE --output FOLDER

For: training on from the model that ships, without keeping its weights twice. Only models of this
recipe's shape are read. Each weight is found by the node that reads it, since a tracer names a node
after the module it traced; the folder is written only when torch gives what the bundle gives.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from onnx import numpy_helper
from torch import nn
from transformers import CLIPTokenizer

from engine.bundle import Bundle
from engine.errors import BundleError
from export.default_model.model import (
    LATENT_FACTOR,
    ModelSettings,
    build_text_encoder,
    build_unet,
    build_vae,
    save_pipeline,
)
from export.wrappers import TextEncoder, Unet, VaeDecoder, VaeEncoder

Weights = dict[str, npt.NDArray[np.float32]]

MAX_ERROR: Final = 1e-4
"""Largest difference between torch and the bundle, of outputs about 1 in size."""

_ROLES: Final = {
    ("Conv", 1): "weight",
    ("Conv", 2): "bias",
    ("Gemm", 1): "weight",
    ("Gemm", 2): "bias",
    ("LayerNormalization", 1): "weight",
    ("LayerNormalization", 2): "bias",
    ("Gather", 0): "weight",
    ("MatMul", 1): "weight",
}
"""What the input of an operator is to its module; constants of Mul and Add may stand first."""


class RecoverError(ValueError):
    """The bundle is not one of this recipe's models; the message says what does not fit."""


def recover(bundle: Bundle, output: Path) -> None:
    """Write the diffusers folder of a bundle.

    Args:
        bundle: Of a model trained by this package.
        output: The folder, replaced when the new one is complete.

    Raises:
        RecoverError: When a weight is missing or torch gives another output.
    """
    networks = {name: _read(bundle, name) for name in bundle.components}
    tokenizer = _tokenizer(bundle)
    settings = _settings(networks["unet"], networks["text_encoder"], bundle)
    unet = build_unet(settings)
    text = build_text_encoder(settings, tokenizer)
    vae = build_vae(networks["vae_decoder"]["decoder.layers.0.weight"].shape[0])
    vae.register_to_config(scaling_factor=bundle.latents.scaling_factor)
    for name, model in (
        ("unet", unet),
        ("text_encoder", text),
        ("vae_encoder", vae.encoder),
        ("vae_decoder", vae.decoder),
    ):
        _load(model, networks[name], name)
    size = settings.size // LATENT_FACTOR
    rng = np.random.RandomState(0)
    tokens = rng.randint(0, len(tokenizer), (1, settings.tokens)).astype(np.int64)
    tokens[:, -1] = tokenizer.eos_token_id
    noise = rng.standard_normal
    _compare(bundle, "text_encoder", TextEncoder(text, settings.tokens), [tokens])
    _compare(bundle, "vae_encoder", VaeEncoder(vae), [noise((1, 3, 64, 64))])
    _compare(bundle, "vae_decoder", VaeDecoder(vae), [noise((1, 4, size, size))])
    hidden = noise((1, settings.tokens, settings.text_width))
    _compare(bundle, "unet", Unet(unet), [noise((1, 9, size, size)), np.array([500.0]), hidden])
    save_pipeline(output, vae=vae, unet=unet, text=text, tokenizer=tokenizer)


def _read(bundle: Bundle, name: str) -> Weights:
    """The weights of a component by the names of torch's modules, as far as nodes tell them."""
    component = bundle.components[name]
    if component.data is not None:
        raise RecoverError(f"{component.data.file}: models with a data file are not of this recipe")
    graph = onnx.load(bundle.path / component.model.file).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in constants:
            constants[node.output[0]] = constants[node.input[0]]
    weights: Weights = {}
    for node in graph.node:
        if node.op_type == "Cast":
            continue
        for position, source in enumerate(node.input):
            role = _role(node, position)
            if role is not None and source in constants:
                values = constants[source].astype(np.float32)
                path = _path(node.name, root=name)
                if node.op_type == "MatMul":
                    values = values.T
                if node.op_type in ("Mul", "Add") and values.shape[1:] == (1, 1):
                    values = values[:, 0, 0]  # of a GroupNorm, which ONNX knows only by parts
                weights[f"{path}.{role}" if path else role] = np.ascontiguousarray(values)
    return weights


def _role(node: Any, position: int) -> str | None:
    if node.op_type in ("Mul", "Add"):
        return {"Mul": "weight", "Add": "bias"}[node.op_type]
    return _ROLES.get((node.op_type, position))


def _path(node: str, *, root: str) -> str:
    """The module that a node was traced from: "/unet/a.0/b/Conv" is "a.0.b"."""
    parts = node.strip("/").split("/")[:-1]
    if parts[:1] == [root]:
        parts = parts[1:]
    # A sequence's members repeat its name: "layers/layers.2/conv/conv.0".
    kept = [a for a, b in zip(parts, [*parts[1:], ""], strict=True) if not b.startswith(f"{a}.")]
    return ".".join(kept)


def _load(model: nn.Module, weights: Weights, name: str) -> None:
    """Fill every parameter of a module.

    Raises:
        RecoverError: When one has no weight, or several, or of another shape.
    """
    state = model.state_dict()
    with torch.no_grad():
        for key, parameter in state.items():
            found = list(_candidates(key, weights))
            if len(found) != 1:
                raise RecoverError(f"{name}: {len(found)} weights fit {key!r}; one is needed")
            values = torch.from_numpy(found[0])
            if values.shape != parameter.shape:
                raise RecoverError(
                    f"{name}: {key!r} has the shape {tuple(values.shape)}; "
                    f"{tuple(parameter.shape)} is needed"
                )
            parameter.copy_(values)
    model.eval()


def _candidates(key: str, weights: Weights) -> Iterator[npt.NDArray[np.float32]]:
    """Weights whose path is a parameter's, with or without the outer modules' names."""
    if key.endswith("pool.positional_embedding"):
        key = key.replace("positional_embedding", "bias")  # added to the mean token
    for path, values in weights.items():
        if path == key or key.endswith(f".{path}") or path.endswith(f".{key}"):
            yield values


def _settings(unet: Weights, text: Weights, bundle: Bundle) -> ModelSettings:
    """The sizes, read off the weights' shapes; the heads are the recipe's."""
    try:
        levels = sum(f"down_blocks.{i}.resnets.0.conv1.weight" in unet for i in range(8))
        position = next(v for k, v in text.items() if k.endswith("position_embedding.weight"))
        return ModelSettings(
            size=bundle.defaults.size,
            channels=tuple(
                unet[f"down_blocks.{i}.resnets.0.conv1.weight"].shape[0] for i in range(levels)
            ),
            layers=sum(f"down_blocks.0.resnets.{i}.conv1.weight" in unet for i in range(8)),
            text_width=position.shape[1],
            text_layers=sum(
                any(k.endswith(f"layers.{i}.mlp.fc1.weight") for k in text) for i in range(64)
            ),
            tokens=position.shape[0],
        )
    except (StopIteration, KeyError, ValueError) as exc:
        raise RecoverError(f"{bundle.path}: the networks are not of this recipe's shape") from exc


def _tokenizer(bundle: Bundle) -> CLIPTokenizer:
    """The tokenizer in the two files of the original CLIP."""
    described = json.loads((bundle.path / bundle.tokenizer.file).read_bytes())
    model, length = described["model"], described["truncation"]["max_length"]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        vocabulary.write_text(json.dumps(model["vocab"]), encoding="utf-8")
        pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        merges.write_text("#version: 0.2\n" + "".join(f"{p}\n" for p in pairs), encoding="utf-8")
        return CLIPTokenizer(str(vocabulary), str(merges), model_max_length=length)


def _compare(bundle: Bundle, name: str, model: nn.Module, values: list[npt.NDArray[Any]]) -> None:
    """Run both on the same numbers.

    Raises:
        RecoverError: When they differ by more than ``MAX_ERROR``.
    """
    component = bundle.components[name]
    session = ort.InferenceSession(
        str(bundle.path / component.model.file), providers=["CPUExecutionProvider"]
    )
    typed = [v if v.dtype == np.int64 else v.astype(np.float32) for v in values]
    feeds: Mapping[str, npt.NDArray[Any]] = {
        spec.name: value for spec, value in zip(component.inputs, typed, strict=True)
    }
    (expected,) = session.run(None, feeds)
    with torch.no_grad():
        got = model.eval()(*map(torch.from_numpy, typed)).numpy()
    error = float(np.abs(got - expected).max())
    if not error <= MAX_ERROR * max(1.0, float(np.abs(expected).max())):
        raise RecoverError(f"{name}: torch and the bundle differ by {error:.2g}")


def main(arguments: list[str] | None = None) -> int:
    """The command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m export.default_model.recover",
        description="Bring a bundle of the default model back into its diffusers folder.",
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    chosen = parser.parse_args(arguments)
    try:
        recover(Bundle.open(chosen.bundle), chosen.output)
    except (RecoverError, BundleError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
