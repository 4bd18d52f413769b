"""Weights rounded to fp16 and int8: how large, how far off, and that the runtime folds them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engine.bundle import Bundle
from export import ParityError, export_checkpoint
from export.initializers import BLOCK, store

pytest.importorskip("torch")
pytestmark = pytest.mark.export

Get = Callable[[str], Path]
SHAPE = (64, 96)


def product(weights: NDArray[Any], folder: Path, stored: str, limit: int = 1 << 30) -> Path:
    """A graph y = x W, or x + W for a vector, with its weights stored so."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul" if weights.ndim == 2 else "Add", ["x", "w"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, [None, weights.shape[0]])],
        [value("y", TensorProto.FLOAT, [None, weights.shape[-1]])],
        [numpy_helper.from_array(weights, "w")],
    )
    store(graph, folder, folder / "g.onnx.data", data_file_bytes=limit, stored=stored)
    path = folder / "g.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    onnx.checker.check_model(path)
    return path


def values(path: Path) -> NDArray[np.float32]:
    """The weights that a graph computes with."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    rows = session.get_inputs()[0].shape[1]
    return np.asarray(session.run(None, {"x": np.eye(rows, dtype=np.float32)})[0])


def weights() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_a_block_is_whole_numbers_times_its_scale(limit: int, tmp_path: Path) -> None:
    w = weights()
    w.reshape(-1, BLOCK)[:4] = [[0.0], [1e-9], [65504.0], [-3e30]]
    w.reshape(-1, BLOCK)[3] = -3e4
    w.reshape(-1, BLOCK)[3, 0] = 7.0
    path = product(w, tmp_path, "int8", limit)
    found = values(path).reshape(-1, BLOCK)
    blocks = w.reshape(-1, BLOCK)
    scales = (np.abs(blocks).max(axis=1, keepdims=True) / 127).astype(np.float16).astype(np.float64)
    # Half a step, and what rounding the scale to fp16 leaves of the largest.
    assert np.all(np.abs(found - blocks) <= scales * (0.5 + 127 / 2048) + 1e-7)
    whole = found / np.where(scales == 0, 1, scales)
    np.testing.assert_allclose(whole, whole.round(), atol=1e-3)
    stored = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
    assert stored["w_int8"].dims == [w.size // BLOCK, BLOCK]
    assert stored["w_int8"].data_type == TensorProto.INT8
    assert stored["w_int8_scales"].data_type == TensorProto.FLOAT16
    data = tmp_path / "g.onnx.data"
    size = path.stat().st_size + (data.stat().st_size if data.exists() else 0)
    assert size < w.nbytes * 0.3 + 4096 * (limit == 0)


def test_what_is_stored_how(tmp_path: Path) -> None:
    rounded = weights().astype(np.float16).astype(np.float32)
    odd = np.random.default_rng(1).standard_normal((33, 33), dtype=np.float32)
    huge = weights() * 1e6
    endless = weights()
    endless[3, 3] = np.inf
    small = weights()[:8, :8]
    cases = [
        (weights(), {"exact": ["w"], "fp16": ["w_fp16"], "int8": ["w_int8"]}),
        (rounded, {"exact": ["w_fp16"], "fp16": ["w_fp16"], "int8": ["w_int8"]}),
        (odd, {"exact": ["w"], "fp16": ["w_fp16"], "int8": ["w_fp16"]}),
        (huge, {"exact": ["w"], "fp16": ["w"], "int8": ["w_int8"]}),
        (endless, {"exact": ["w"], "fp16": ["w"], "int8": ["w"]}),
        (weights().ravel(), {"exact": ["w"], "fp16": ["w"], "int8": ["w"]}),
        (small, {"exact": ["w"], "fp16": ["w"], "int8": ["w"]}),
    ]
    for w, expected in cases:
        for stored, names in expected.items():
            graph = onnx.load(product(w, tmp_path, stored)).graph
            assert graph.initializer[0].name in names, (stored, names)


def test_the_runtime_works_the_weights_out_once(tmp_path: Path) -> None:
    for stored in ("fp16", "int8"):
        path = product(weights(), tmp_path, stored)
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "folded.onnx")
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(tmp_path / "folded.onnx").graph.node
        assert [node.op_type for node in nodes] == ["MatMul"]


@pytest.fixture(scope="module")
def calm(checkpoint: Get, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose text encoder's matrices are of the usual size, not ten times as large."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("calm") / "checkpoint"
    shutil.copytree(checkpoint("inpaint_kl"), folder)
    file = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    for name, value in tensors.items():
        if value.ndim == 2 and "embedding" not in name:
            value *= 0.1
    save_file(tensors, file, {"format": "pt"})
    return folder


@pytest.mark.parametrize(("precision", "share", "least"), [("fp16", 0.7, 60), ("int8", 0.55, 30)])
def test_bundle(precision: str, share: float, least: float, calm: Path, tmp_path: Path) -> None:
    bundle = export_checkpoint(calm, tmp_path / "bundle", precision=precision, deep_cache=0)
    assert Bundle.open(bundle.path).precision == precision
    weights = calm / "unet" / "diffusion_pytorch_model.safetensors"
    assert bundle.components["unet"].model.size < share * weights.stat().st_size
    for name, component in bundle.components.items():
        assert component.parity is not None
        assert component.parity.psnr_db > least, name
    decoder = onnx.load(bundle.path / "vae_decoder.onnx").graph.initializer
    assert not any(tensor.data_type == TensorProto.INT8 for tensor in decoder)


def test_the_gate_of_rounded_weights(
    checkpoint: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.parity.MIN_PSNR_DB_OF", {"fp16": 1000.0, "int8": 1000.0})
    for precision in ("fp16", "int8"):
        with pytest.raises(ParityError, match=r"^text_encoder: .*, PSNR .* \(limit 1000 dB\); no"):
            export_checkpoint(checkpoint("inpaint_kl"), tmp_path / "b", precision=precision)
