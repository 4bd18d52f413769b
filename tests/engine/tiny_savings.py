"""The tiny bundle with all that a request may save with: a split UNet and a fast decoder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper

from engine.bundle import FAST_DECODER, SHALLOW_UNET, Bundle, Component, Latents, TensorSpec
from tests.engine import tiny

DEEP_CHANNELS = 6
FAST_LATENTS = Latents(channels=tiny.CHANNELS, scaling_factor=0.8, shift_factor=0.1)


def make_savings_bundle(folder: Path, **settings: Any) -> Path:
    """Write the tiny bundle with a UNet in two parts and a fast decoder; returns its folder."""
    bundle = Bundle.open(tiny.make_bundle(folder, **settings))
    rng = np.random.default_rng(3)
    whole, shallow = _unets(folder, rng, bundle.components["unet"])
    extra = {"unet": whole, SHALLOW_UNET: shallow, FAST_DECODER: _fast_decoder(folder, rng)}
    dataclasses.replace(
        bundle, components={**bundle.components, **extra}, fast_latents=FAST_LATENTS
    ).write()
    return folder


def _unets(folder: Path, rng: np.random.Generator, plain: Component) -> tuple[Component, Component]:
    """tanh(deep + conv1x1(sample) + sin(timestep / 100)), and deep = conv3x3(sample) + prompt."""
    channels = plain.inputs[0].shape[1]
    deep_nodes = [
        helper.make_node("Conv", ["sample", "wide"], ["mixed"], pads=[1, 1, 1, 1]),
        helper.make_node(
            "ReduceMean", ["encoder_hidden_states"], ["meaning"], axes=[1], keepdims=0
        ),
        helper.make_node("MatMul", ["meaning", "project"], ["said"]),
        helper.make_node("Unsqueeze", ["said", "plane"], ["spread"]),
        helper.make_node("Add", ["mixed", "spread"], ["deep_feature"]),
    ]
    outer_nodes = [
        helper.make_node("Conv", ["deep_feature", "narrow"], ["below"]),
        helper.make_node("Conv", ["sample", "skip"], ["beside"]),
        helper.make_node("Mul", ["timestep", "hundredth"], ["phase"]),
        helper.make_node("Sin", ["phase"], ["wave"]),
        helper.make_node("Unsqueeze", ["wave", "cells"], ["when"]),
        helper.make_node("Add", ["below", "beside"], ["both"]),
        helper.make_node("Add", ["both", "when"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["noise_pred"]),
    ]
    normal = rng.standard_normal
    outer = {
        "narrow": normal((tiny.CHANNELS, DEEP_CHANNELS, 1, 1)).astype(np.float32) * 0.2,
        "skip": normal((tiny.CHANNELS, channels, 1, 1)).astype(np.float32) * 0.2,
        "hundredth": np.float32(0.01),
        "cells": np.array([1, 2, 3], np.int64),
    }
    deep_weights = {
        "wide": normal((DEEP_CHANNELS, channels, 3, 3)).astype(np.float32) * 0.2,
        "project": normal((tiny.WIDTH, DEEP_CHANNELS)).astype(np.float32) * 0.5,
        "plane": np.array([2, 3], np.int64),
    }
    feature = TensorSpec(
        name="deep_feature", dtype="float32", shape=("batch", DEEP_CHANNELS, *tiny.PLANE)
    )
    takes, gives = list(plain.inputs), list(plain.outputs)
    return (
        tiny._save(
            folder / "unet.onnx",
            deep_nodes + outer_nodes,
            outer | deep_weights,
            takes,
            [*gives, feature],
        ),
        tiny._save(folder / "unet_shallow.onnx", outer_nodes, outer, [*takes, feature], gives),
    )


def _fast_decoder(folder: Path, rng: np.random.Generator) -> Component:
    nodes = [
        helper.make_node("Conv", ["latents", "kernel"], ["colour"]),
        helper.make_node("Resize", ["colour", "", "scales"], ["image"], mode="nearest"),
    ]
    weights = {
        "kernel": rng.standard_normal((3, tiny.CHANNELS, 1, 1)).astype(np.float32) * 0.3,
        "scales": np.array([1, 1, 8, 8], np.float32),
    }
    latents = TensorSpec(
        name="latents", dtype="float32", shape=("batch", tiny.CHANNELS, *tiny.PLANE)
    )
    image = TensorSpec(name="image", dtype="float32", shape=("batch", 3, "height", "width"))
    return tiny._save(folder / f"{FAST_DECODER}.onnx", nodes, weights, [latents], [image])
