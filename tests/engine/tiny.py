"""A whole bundle without torch: tiny graphs made with onnx.helper.

The networks are not trained, but they are honest stand-ins: the UNet's answer depends on every
channel, on the timestep and on the prompt, and not on the other rows of the call.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

from engine.bundle import Bundle, Component, Defaults, FileRecord, Latents, Safety, TensorSpec
from engine.safety_checker import open_nsfw_input

TOKENS, WIDTH, CHANNELS, VOCABULARY = 8, 16, 4, 32
PLANE = ("height/8", "width/8")
SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
}

SAFETY = Safety(
    shortest_edge=16,
    crop=16,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    special_care=(0.5,),
    concepts=(0.6, 0.7),
)
"""A checker for pictures of 16x16 that takes care of red, and has green and blue for concepts."""


def make_bundle(
    folder: Path,
    *,
    unet_channels: int = 9,
    gaussian: bool = True,
    scheduler: dict[str, Any] | None = None,
    size: int = 64,
    safety: Safety | None = None,
) -> Path:
    """Write a tiny bundle and return its folder; with ``safety`` it has a checker of its own, whose
    cosine i is the mean of channel i of what it sees."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(unet_channels)
    tokenizer = Tokenizer(models.WordLevel(_vocabulary(), unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS, pad_id=0, pad_token="?")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "LICENSE").write_text("made for tests\n")
    components = {
        "text_encoder": _text_encoder(folder, rng),
        "unet": _unet(folder, rng, unet_channels),
        "vae_encoder": _vae_encoder(folder, rng, gaussian),
        "vae_decoder": _vae_decoder(folder, rng),
    }
    if safety is not None:
        components["safety_checker"] = _safety_checker(folder, safety)
    Bundle(
        path=folder,
        family="sd1",
        target="cpu",
        precision="fp32",
        components=components,
        tokenizer=FileRecord.of(folder / "tokenizer.json"),
        latents=Latents(channels=CHANNELS, scaling_factor=0.5, rgb_factors=((0.3, 0.2, 0.1),) * 5),
        scheduler=SCHEDULER | (scheduler or {}),
        defaults=Defaults(
            num_inference_steps=4,
            guidance_scale=3.0,
            size=size,
            max_size=2 * size,
            context=0.5,
            scheduler="ddim",
        ),
        documents=(FileRecord.of(folder / "LICENSE"),),
        safety=safety,
    ).write()
    return folder


def level_seen(image: npt.NDArray[np.uint8]) -> float:
    """The mean level, of 0 to 255, of what open_nsfw sees of a picture."""
    return float(open_nsfw_input(image).mean() + np.mean([104, 117, 123]))


def write_open_nsfw(path: Path, *, above: float, scale: float = 10.0) -> Path:
    """Write a network with the tensors of open_nsfw that is nearly sure of each picture whose
    ``level_seen`` is above a threshold, and nearly sure of the contrary of all others."""
    nodes = [
        helper.make_node("ReduceMean", ["input_0"], ["level"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Sub", ["level", "above"], ["beyond"]),
        helper.make_node("Mul", ["beyond", "scale"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["flat"]),
        helper.make_node("Unsqueeze", ["flat", "one"], ["nsfw"]),
        helper.make_node("Sub", ["sure", "nsfw"], ["sfw"]),
        helper.make_node("Concat", ["sfw", "nsfw"], ["4195"], axis=1),
    ]
    weights = {
        "above": np.float32(above - np.mean([104, 117, 123])),
        "scale": np.float32(scale),
        "one": np.array([1], np.int64),
        "sure": np.float32(1),
    }
    picture = TensorSpec(name="input_0", dtype="float32", shape=("batch", 224, 224, 3))
    scores = TensorSpec(name="4195", dtype="float32", shape=("batch", 2))
    _save(path, nodes, weights, [picture], [scores])
    return path


def _vocabulary() -> dict[str, int]:
    words = ("?", "a", "an", "the", "red", "green", "blue", "apple", "cat", "dog", "sky", "bad")
    return {word: i for i, word in enumerate(words)}


def _text_encoder(folder: Path, rng: np.random.Generator) -> Component:
    table = rng.standard_normal((VOCABULARY, WIDTH)).astype(np.float32)
    return _save(
        folder / "text_encoder.onnx",
        [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])],
        {"table": table},
        [TensorSpec(name="input_ids", dtype="int64", shape=("batch", TOKENS))],
        [TensorSpec(name="last_hidden_state", dtype="float32", shape=("batch", TOKENS, WIDTH))],
    )


def _unet(folder: Path, rng: np.random.Generator, channels: int) -> Component:
    """tanh(conv3x3(sample) + project(mean of the prompt) + sin(timestep / 100))."""
    nodes = [
        helper.make_node("Conv", ["sample", "kernel"], ["mixed"], pads=[1, 1, 1, 1]),
        helper.make_node(
            "ReduceMean", ["encoder_hidden_states"], ["meaning"], axes=[1], keepdims=0
        ),
        helper.make_node("MatMul", ["meaning", "project"], ["said"]),
        helper.make_node("Mul", ["timestep", "hundredth"], ["phase"]),
        helper.make_node("Sin", ["phase"], ["wave"]),
        helper.make_node("Unsqueeze", ["wave", "last"], ["when"]),
        helper.make_node("Add", ["said", "when"], ["bias"]),
        helper.make_node("Unsqueeze", ["bias", "plane"], ["spread"]),
        helper.make_node("Add", ["mixed", "spread"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["noise_pred"]),
    ]
    weights = {
        "kernel": rng.standard_normal((CHANNELS, channels, 3, 3)).astype(np.float32) * 0.15,
        "project": rng.standard_normal((WIDTH, CHANNELS)).astype(np.float32) * 0.5,
        "hundredth": np.float32(0.01),
        "last": np.array([1], np.int64),
        "plane": np.array([2, 3], np.int64),
    }
    return _save(
        folder / "unet.onnx",
        nodes,
        weights,
        [
            TensorSpec(name="sample", dtype="float32", shape=("batch", channels, *PLANE)),
            TensorSpec(name="timestep", dtype="float32", shape=("batch",)),
            TensorSpec(
                name="encoder_hidden_states", dtype="float32", shape=("batch", "tokens", WIDTH)
            ),
        ],
        [TensorSpec(name="noise_pred", dtype="float32", shape=("batch", CHANNELS, *PLANE))],
    )


def _vae_encoder(folder: Path, rng: np.random.Generator, gaussian: bool) -> Component:
    name, rows = ("moments", 2 * CHANNELS) if gaussian else ("latents", CHANNELS)
    nodes = [
        helper.make_node("AveragePool", ["image"], ["cells"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Conv", ["cells", "kernel"], [name]),
    ]
    kernel = rng.standard_normal((rows, 3, 1, 1)).astype(np.float32)
    return _save(
        folder / "vae_encoder.onnx",
        nodes,
        {"kernel": kernel},
        [TensorSpec(name="image", dtype="float32", shape=("batch", 3, "height", "width"))],
        [TensorSpec(name=name, dtype="float32", shape=("batch", rows, *PLANE))],
    )


def _vae_decoder(folder: Path, rng: np.random.Generator) -> Component:
    nodes = [
        helper.make_node("Conv", ["latents", "kernel"], ["colour"]),
        helper.make_node("Tanh", ["colour"], ["bounded"]),
        helper.make_node("Resize", ["bounded", "", "scales"], ["image"], mode="nearest"),
    ]
    weights = {
        "kernel": rng.standard_normal((3, CHANNELS, 1, 1)).astype(np.float32) * 0.5,
        "scales": np.array([1, 1, 8, 8], np.float32),
    }
    return _save(
        folder / "vae_decoder.onnx",
        nodes,
        weights,
        [TensorSpec(name="latents", dtype="float32", shape=("batch", CHANNELS, *PLANE))],
        [TensorSpec(name="image", dtype="float32", shape=("batch", 3, "height", "width"))],
    )


def _safety_checker(folder: Path, safety: Safety) -> Component:
    side, count = safety.crop, len(safety.special_care) + len(safety.concepts)
    return _save(
        folder / "safety_checker.onnx",
        [
            helper.make_node("ReduceMean", ["image"], ["means"], axes=[2, 3], keepdims=0),
            helper.make_node("MatMul", ["means", "channels"], ["cosines"]),
        ],
        {"channels": np.eye(3, count, dtype=np.float32)},
        [TensorSpec(name="image", dtype="float32", shape=("batch", 3, side, side))],
        [TensorSpec(name="cosines", dtype="float32", shape=("batch", count))],
    )


def _save(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: dict[str, npt.NDArray[Any] | np.generic],
    inputs: list[TensorSpec],
    outputs: list[TensorSpec],
) -> Component:
    types = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}

    def info(spec: TensorSpec) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(spec.name, types[spec.dtype], list(spec.shape))

    graph = helper.make_graph(
        nodes,
        path.stem,
        [info(spec) for spec in inputs],
        [info(spec) for spec in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return Component(model=FileRecord.of(path), inputs=tuple(inputs), outputs=tuple(outputs))
