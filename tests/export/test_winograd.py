"""Convolutions by Winograd's filtering: which are replaced, and that they compute the same."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.bundle import TensorSpec
from tests.export.originals import normal

pytest.importorskip("torch")
pytestmark = pytest.mark.export

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

PLAIN = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
X = (TensorSpec(name="x", dtype="float32", shape=("batch", 6, "height", "width")),)
Y = (TensorSpec(name="y", dtype="float32", shape=("batch", 5, "height", "width")),)

ROUNDING = 3e-5
"""Of the largest value: the transforms' sums in fp32, of numbers up to a hundred times as large."""


def write_graph(path: Path, convolutions: list[dict[str, Any]], *, aside: bool = False) -> None:
    """A chain of 3x3 convolutions x -> y, each 6 -> 6 channels but the last, 6 -> 5.

    Entries: ``weight`` names another one's, ``resize`` doubles the plane before, all others are
    attributes.
    """
    helper, to_tensor = onnx.helper, onnx.numpy_helper.from_array
    nodes, weights = [], {"twice": np.array([1, 1, 2, 2], np.float32)}
    x = "x"
    for i, entry in enumerate(convolutions):
        last = i == len(convolutions) - 1
        attributes = PLAIN | entry
        if attributes.pop("resize", False):
            nodes.append(helper.make_node("Resize", [x, "", "twice"], [f"r{i}"], mode="nearest"))
            x = f"r{i}"
        weight, group = attributes.pop("weight", f"w{i}"), attributes.get("group", 1)
        channels, side = 5 if last else 6, attributes["kernel_shape"][0]
        shape = (channels, 6 // group, side, side)
        weights.setdefault(weight, normal(i, *shape).astype(np.float16).astype(np.float32))
        weights[f"b{i}"] = normal(100 + i, channels)
        y = "y" if last else f"y{i}"
        nodes.append(helper.make_node("Conv", [x, weight, f"b{i}"], [y], **attributes))
        x = y
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["n", 6, "h", "w"])],
        [helper.make_tensor_value_info("y", 1, ["m", 5, "p", "q"])],
        [to_tensor(values, name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path, save_as_external_data=aside, location="weights", size_threshold=0)


def run(path: Path, x: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def rewritten(path: Path, output: Path, *, plane: int = 64, **limits: int) -> int:
    from export.winograd import rewrite

    model = onnx.load(path, load_external_data=False)
    count = rewrite(model.graph, path.parent, plane=plane, **{"channels": 5, **limits})
    onnx.save(model, output)
    onnx.checker.check_model(output)
    return count


def kinds(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 7, 9), (3, 1, 1), (1, 4, 13), (2, 30, 6)])
@pytest.mark.parametrize("aside", [False, True])
def test_a_replaced_convolution_computes_the_same(
    shape: tuple[int, int, int], aside: bool, tmp_path: Path
) -> None:
    write_graph(tmp_path / "a.onnx", [{}, {"weight": "w0"}, {}], aside=aside)
    assert rewritten(tmp_path / "a.onnx", tmp_path / "b.onnx") == 3
    assert kinds(tmp_path / "b.onnx")["ConvTranspose"] == 3
    batch, height, width = shape
    x = normal(7, batch, 6, height, width)
    expected, found = run(tmp_path / "a.onnx", x), run(tmp_path / "b.onnx", x)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING * np.abs(expected).max())


@pytest.mark.parametrize(
    ("other", "replaced"),
    [
        ({}, 2),
        ({"strides": [2, 2]}, 0),  # what follows has a plane of 16
        ({"resize": True, "strides": [2, 2]}, 1),
        ({"dilations": [2, 2]}, 1),
        ({"pads": [1, 1, 0, 0]}, 1),
        ({"group": 2}, 1),
        ({"kernel_shape": [1, 1], "pads": [0, 0, 0, 0]}, 1),
    ],
)
def test_only_plain_convolutions_of_large_planes_are_replaced(
    other: dict[str, Any], replaced: int, tmp_path: Path
) -> None:
    write_graph(tmp_path / "a.onnx", [other, {}])
    assert rewritten(tmp_path / "a.onnx", tmp_path / "b.onnx", plane=32) == replaced
    x = normal(7, 1, 6, 9, 9)
    expected, found = run(tmp_path / "a.onnx", x), run(tmp_path / "b.onnx", x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING * np.abs(expected).max())


def test_few_channels_and_small_planes_stay(tmp_path: Path) -> None:
    write_graph(tmp_path / "a.onnx", [{}, {"resize": True}, {}])
    assert rewritten(tmp_path / "a.onnx", tmp_path / "b.onnx", channels=6) == 2
    assert rewritten(tmp_path / "a.onnx", tmp_path / "b.onnx", plane=16) == 2
    assert rewritten(tmp_path / "a.onnx", tmp_path / "b.onnx", plane=15) == 0
    assert kinds(tmp_path / "b.onnx") == kinds(tmp_path / "a.onnx")


def test_operations_are_counted_as_those_of_plain_convolutions_too(tmp_path: Path) -> None:
    from bench import flops

    nodes = [{}, {"resize": True}]
    write_graph(tmp_path / "a.onnx", nodes)
    rewritten(tmp_path / "a.onnx", tmp_path / "b.onnx")
    plain, found = (
        flops.count(tmp_path / name, {"x": (2, 6, 8, 12)}) for name in ("a.onnx", "b.onnx")
    )
    assert found.plain == plain.plain == plain.total
    assert found.by_operator["MatMul"] == plain.total / 4


def test_filters_are_stored_small_and_worked_out_once(tmp_path: Path) -> None:
    from export import graph, winograd

    channels = winograd.CHANNELS
    wide = normal(0, channels, channels, 3, 3).astype(np.float16).astype(np.float32)
    helper, to_tensor = onnx.helper, onnx.numpy_helper.from_array
    specs = tuple(
        TensorSpec(name=name, dtype="float32", shape=("batch", channels, "height", "width"))
        for name in "xy"
    )
    info = [helper.make_tensor_value_info(name, 1, ["n", channels, "h", "w"]) for name in "xy"]
    made = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], **PLAIN)],
        "g",
        info[:1],
        info[1:],
        [to_tensor(wide, "w"), to_tensor(normal(1, channels), "b")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "t.onnx")
    path = tmp_path / "m.onnx"
    graph.finish(tmp_path / "t.onnx", path, takes=specs[:1], gives=specs[1:], plane=winograd.PLANE)
    assert path.stat().st_size < 0.6 * wide.nbytes
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    left = kinds(tmp_path / "optimised.onnx")
    assert (left["MatMul"], left["Tile"], left["Cast"]) == (1, 0, 0)
    x = normal(7, 1, channels, 10, 7)
    expected, found = run(tmp_path / "t.onnx", x), run(path, x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING * np.abs(expected).max())


def test_a_wide_autoencoder_is_exported_with_it(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    from diffusers import AutoencoderKL

    from export import graph, networks, onnx_configs, parity
    from export.checkpoint import Checkpoint

    folder = tmp_path / "wide"
    shutil.copytree(checkpoint("plain_kl"), folder)
    AutoencoderKL(
        block_out_channels=(8, 8, 8, 256),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.5,
    ).save_pretrained(folder / "vae")
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps(config | {"sample_size": 32}))
    opened = Checkpoint.open(folder)
    # In the middle block and the deepest level, planes of 32 and, in the decoder, 64.
    for build, convolutions in ((networks.vae_decoder, 9), (networks.vae_encoder, 5)):
        network = build(opened)
        network = replace(network, cases=network.cases[:1])
        onnx_configs.convert(network.module, network.config, tmp_path / "traced.onnx")
        specs = {"takes": network.config.takes, "gives": network.config.gives}
        path = tmp_path / f"{network.name}.onnx"
        graph.finish(tmp_path / "traced.onnx", path, plane=network.plane, **specs)
        assert kinds(path)["ConvTranspose"] == convolutions
        assert parity.check(network, path).psnr_db > 100
