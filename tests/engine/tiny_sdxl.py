"""The tiny bundle as an SDXL one: two text encoders, pooled embeddings, sizes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper

from engine.bundle import SIZE_IDS, TEXT_ENCODER_2, Bundle, Component, FileRecord, TensorSpec
from tests.engine import tiny

WIDTH_2, POOLED = 12, 6
HIDDEN = "penultimate_hidden_state"


def make_sdxl_bundle(folder: Path, *, zeros: bool = True, **settings: Any) -> Path:
    """Write the tiny bundle with what SDXL has more; returns its folder.

    The second tokenizer pads with another token than the first.

    Args:
        folder: Where it goes.
        zeros: Whether embeddings are zeros where no negative prompt is given.
        settings: Of ``make_bundle``.
    """
    bundle = Bundle.open(tiny.make_bundle(folder, **settings))
    rng = np.random.default_rng(9)
    text = json.loads((folder / "tokenizer.json").read_text())
    text["padding"].update(pad_id=11, pad_token="bad")
    (folder / "tokenizer_2.json").write_text(json.dumps(text))
    components = {
        **bundle.components,
        "text_encoder": _text_encoder(folder / "text_encoder.onnx", rng, tiny.WIDTH),
        TEXT_ENCODER_2: _text_encoder(folder / "text_encoder_2.onnx", rng, WIDTH_2, POOLED),
        "unet": _unet(folder, rng, bundle.unet_channels),
    }
    dataclasses.replace(
        bundle,
        family="sdxl",
        components=components,
        tokenizer_2=FileRecord.of(folder / "tokenizer_2.json"),
        force_zeros_for_empty_prompt=zeros,
    ).write()
    return folder


def _text_encoder(path: Path, rng: np.random.Generator, width: int, pooled: int = 0) -> Component:
    """A row of a table for each token; pooled, their mean times a matrix."""
    normal = rng.standard_normal
    nodes = [helper.make_node("Gather", ["table", "input_ids"], [HIDDEN])]
    weights = {"table": normal((tiny.VOCABULARY, width)).astype(np.float32)}
    gives = [
        TensorSpec(name=HIDDEN, dtype="float32", shape=("batch", tiny.TOKENS, width)),
    ]
    if pooled:
        nodes += [
            helper.make_node("ReduceMean", [HIDDEN], ["mean"], axes=[1], keepdims=0),
            helper.make_node("MatMul", ["mean", "project"], ["text_embeds"]),
        ]
        weights["project"] = normal((width, pooled)).astype(np.float32)
        gives.append(TensorSpec(name="text_embeds", dtype="float32", shape=("batch", pooled)))
    takes = [TensorSpec(name="input_ids", dtype="int64", shape=("batch", tiny.TOKENS))]
    return tiny._save(path, nodes, weights, takes, gives)


def _unet(folder: Path, rng: np.random.Generator, channels: int) -> Component:
    """tanh(conv3x3(sample) + a line of the prompt's mean, the pooled text and the sizes +
    sin(timestep / 100))."""
    nodes = [
        helper.make_node("Conv", ["sample", "kernel"], ["mixed"], pads=[1, 1, 1, 1]),
        helper.make_node("ReduceMean", ["encoder_hidden_states"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("Concat", ["mean", "text_embeds", "time_ids"], ["told"], axis=1),
        helper.make_node("MatMul", ["told", "project"], ["said"]),
        helper.make_node("Mul", ["timestep", "hundredth"], ["phase"]),
        helper.make_node("Sin", ["phase"], ["wave"]),
        helper.make_node("Unsqueeze", ["wave", "last"], ["when"]),
        helper.make_node("Add", ["said", "when"], ["bias"]),
        helper.make_node("Unsqueeze", ["bias", "plane"], ["spread"]),
        helper.make_node("Add", ["mixed", "spread"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["noise_pred"]),
    ]
    width = tiny.WIDTH + WIDTH_2
    project = rng.standard_normal((width + POOLED + SIZE_IDS, tiny.CHANNELS)) * 0.3
    project[-SIZE_IDS:] *= 0.02
    weights = {
        "kernel": rng.standard_normal((tiny.CHANNELS, channels, 3, 3)).astype(np.float32) * 0.15,
        "project": project.astype(np.float32),
        "hundredth": np.float32(0.01),
        "last": np.array([1], np.int64),
        "plane": np.array([2, 3], np.int64),
    }
    shapes: dict[str, tuple[int | str, ...]] = {
        "sample": ("batch", channels, *tiny.PLANE),
        "timestep": ("batch",),
        "encoder_hidden_states": ("batch", "tokens", width),
        "text_embeds": ("batch", POOLED),
        "time_ids": ("batch", SIZE_IDS),
    }
    takes = [TensorSpec(name=n, dtype="float32", shape=shape) for n, shape in shapes.items()]
    gives = [
        TensorSpec(name="noise_pred", dtype="float32", shape=("batch", tiny.CHANNELS, *tiny.PLANE))
    ]
    return tiny._save(folder / "unet.onnx", nodes, weights, takes, gives)
