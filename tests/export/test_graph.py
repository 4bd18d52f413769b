"""Single graphs: storage in fp16 and aside, and the parity gate seen failing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine.bundle import Bundle, Parity, TensorSpec
from export.errors import ParityError
from tests.export.originals import normal

pytest.importorskip("torch")
pytestmark = pytest.mark.export

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

LOAD = (TensorSpec(name="x", dtype="float32", shape=("batch", 64)),)
GIVE = (TensorSpec(name="y", dtype="float32", shape=("batch", 64)),)


def write_graph(path: Path, weights: dict[str, np.ndarray], *, aside: bool = False) -> None:
    """y = (x + c) @ a @ b with an Identity between, as a tracer would leave it."""
    helper = onnx.helper
    shift = onnx.numpy_helper.from_array(normal(9, 64), "shift")
    nodes = [
        helper.make_node("Constant", [], ["c"], value=shift),
        helper.make_node("Add", ["x", "c"], ["s"]),
        helper.make_node("MatMul", ["s", "a"], ["h"], doc_string="line 7 of somebody's file"),
        helper.make_node("Identity", ["h"], ["i"]),
        helper.make_node("MatMul", ["i", "b"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["n", 64])],
        [helper.make_tensor_value_info("y", 1, ["m", "k"])],
        [onnx.numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(
        model,
        path,
        save_as_external_data=aside,
        location="weights",
        size_threshold=0,
        convert_attribute=True,
    )


def run(path: Path, x: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def half_values(seed: int) -> np.ndarray:
    return normal(seed, 64, 64).astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("traced_aside", [False, True])
@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_half_storage_is_lossless_and_half_the_size(
    tmp_path: Path, traced_aside: bool, limit: int
) -> None:
    from export.graph import finish

    traced = tmp_path / "traced" / "m.onnx"
    traced.parent.mkdir()
    weights = {"a": half_values(0), "b": normal(1, 64, 64)}
    write_graph(traced, weights, aside=traced_aside)
    path = tmp_path / "m.onnx"
    data = finish(traced, path, takes=LOAD, gives=GIVE, data_file_bytes=limit)
    assert (data is None) == (limit > 0)
    assert sorted(file.name for file in tmp_path.glob("m.onnx*")) == (
        ["m.onnx"] if data is None else ["m.onnx", "m.onnx.data"]
    )
    model = onnx.load(path)
    types = {t.name: onnx.numpy_helper.to_array(t).dtype.name for t in model.graph.initializer}
    assert types == {"a_fp16": "float16", "b": "float32"}
    kinds = [node.op_type for node in model.graph.node]
    assert kinds == ["Cast", "Constant", "Add", "MatMul", "MatMul"]
    dims = model.graph.output[0].type.tensor_type.shape.dim
    assert [dims[0].dim_param, dims[1].dim_value] == ["batch", 64]
    assert b"somebody" not in path.read_bytes()
    x = normal(2, 3, 64)
    expected = run(traced, x)
    shutil.rmtree(traced.parent)
    np.testing.assert_array_equal(run(path, x), expected)


def test_equal_initializers_become_one(tmp_path: Path) -> None:
    from export.graph import finish

    traced, path = tmp_path / "t.onnx", tmp_path / "m.onnx"
    write_graph(traced, {"a": half_values(0), "b": half_values(0)})
    finish(traced, path, takes=LOAD, gives=GIVE)
    assert [tensor.name for tensor in onnx.load(path).graph.initializer] == ["a_fp16"]
    assert path.stat().st_size < 0.3 * traced.stat().st_size
    x = normal(2, 3, 64)
    np.testing.assert_array_equal(run(path, x), run(traced, x))


def test_wrong_tensor_names_are_refused(tmp_path: Path) -> None:
    from export.graph import finish

    write_graph(tmp_path / "t.onnx", {"a": half_values(0), "b": half_values(1)})
    with pytest.raises(ValueError, match=r"has tensors \['x'\]; expected \['y'\]"):
        finish(tmp_path / "t.onnx", tmp_path / "m.onnx", takes=GIVE, gives=LOAD)


def test_half_checkpoint_is_stored_in_half(
    exported: Callable[[str], Bundle], checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    bundle, folder = exported("inpaint_tiny"), checkpoint("inpaint_tiny")
    for name, source in (("unet", "unet"), ("text_encoder", "text_encoder")):
        model = bundle.path / f"{name}.onnx"
        weights = sum(file.stat().st_size for file in (folder / source).glob("*.safetensors"))
        graph_alone = 400_000
        assert model.stat().st_size < weights + graph_alone
        large = [t for t in onnx.load(model).graph.initializer if len(t.raw_data) >= 4096]
        assert large
        assert {t.data_type for t in large} == {onnx.TensorProto.FLOAT16}


@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae_encoder", "vae_decoder"])
def test_the_runtime_folds_casts_and_shapes_away(
    component: str, exported: Callable[[str], Bundle], tmp_path: Path
) -> None:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    model = exported("inpaint_tiny").path / f"{component}.onnx"
    ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimised.onnx").graph.node
    assert [node.name for node in nodes if node.op_type == "Cast" and "fp32" in node.name] == []
    kinds = {node.op_type for node in nodes}
    assert kinds.isdisjoint({"Dropout", "Identity", "Where", "Expand", "If", "Loop"})


@pytest.mark.parametrize(
    ("variant", "component", "layers"),
    [("inpaint_kl", "unet", 8), ("inpaint_tiny", "unet", 8), ("inpaint_kl", "vae_decoder", 1)],
)
def test_attention_is_one_operator(
    variant: str, component: str, layers: int, exported: Callable[[str], Bundle]
) -> None:
    nodes = onnx.load(exported(variant).path / f"{component}.onnx").graph.node
    kinds = [(node.domain, node.op_type) for node in nodes]
    assert kinds.count(("com.microsoft", "MultiHeadAttention")) == layers
    rest = [node.name for node in nodes if node.op_type == "Softmax"]
    assert all("add_embedding" in name for name in rest)  # the pooling of added words


def test_parity_gate_fails_on_a_changed_weight(
    checkpoint: Callable[[str], Path], exported: Callable[[str], Bundle], tmp_path: Path
) -> None:
    from export import networks, parity
    from export.checkpoint import Checkpoint

    network = networks.unet(Checkpoint.open(checkpoint("inpaint_kl")))
    good = exported("inpaint_kl").path / "unet.onnx"
    assert parity.check(network, good).psnr_db > 100
    model = onnx.load(good)
    weight = next(t for t in model.graph.initializer if t.name == "unet.conv_out.weight")
    values = onnx.numpy_helper.to_array(weight) * np.float32(1.01)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "unet.onnx")
    with pytest.raises(ParityError, match=r"unet: differs from the checkpoint by up to 0\.0\d+ "):
        parity.check(network, tmp_path / "unet.onnx")


def test_parity_figures_and_limits() -> None:
    from export import parity

    same = parity.compare(np.ones(4), np.ones(4))
    assert same == Parity(psnr_db=200.0, max_abs_error=0.0)
    off = parity.compare(np.array([10.0, 0.0]), np.array([10.0, 0.1]))
    assert off.max_abs_error == pytest.approx(0.1)
    assert off.psnr_db == pytest.approx(20 * np.log10(10 / (0.1 / np.sqrt(2))))
    good = Parity(psnr_db=90.0, max_abs_error=1e-5)
    assert parity.require("unet", [good, same]) == good
    for bad in (
        Parity(psnr_db=59.9, max_abs_error=1e-5),
        Parity(psnr_db=90.0, max_abs_error=1.1e-3),
        parity.compare(np.ones(2), np.array([1.0, np.nan])),
        parity.compare(np.zeros(2), np.array([0.0, 1e-6])),
    ):
        with pytest.raises(ParityError, match="unet: differs"):
            parity.require("unet", [good, bad])
