"""Operations counted from graphs, against those counted by hand and by PyTorch."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bench import flops

Shape = tuple[int, ...]


@dataclass
class Case:
    """One node, the shapes of its inputs and weights, and its operations counted by hand."""

    operator: str
    inputs: dict[str, Shape]
    weights: dict[str, Shape]
    by_hand: int
    domain: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def node(self) -> Any:
        names = [*self.inputs, *self.weights]
        return helper.make_node(self.operator, names, ["y"], domain=self.domain, **self.attributes)


MICROSOFT = "com.microsoft"
CASES = [
    Case("MatMul", {"x": (2, 5, 3)}, {"w": (3, 7)}, 2 * 2 * 5 * 3 * 7),
    Case(
        "Gemm",
        {"x": (3, 5)},
        {"w": (7, 3), "b": (7,)},
        2 * 5 * 3 * 7,
        attributes={"transA": 1, "transB": 1},
    ),
    Case(
        "Einsum",
        {"x": (2, 3, 4)},
        {"w": (2, 4, 5)},
        2 * 2 * 3 * 4 * 5,
        attributes={"equation": "bij, bjk -> bik"},
    ),
    Case(
        "Conv",
        {"x": (2, 4, 8, 6)},
        {"w": (6, 2, 3, 3)},
        2 * (2 * 6 * 4 * 3) * 2 * 9,
        attributes={"pads": [1, 1, 1, 1], "strides": [2, 2], "group": 2},
    ),
    Case(
        "ConvTranspose",
        {"x": (2, 4, 8, 6)},
        {"w": (4, 5, 2, 2)},
        2 * (2 * 4 * 8 * 6) * 5 * 4,
        attributes={"strides": [2, 2]},
    ),
    Case(
        "FusedMatMul",
        {"x": (2, 3, 5)},
        {"w": (3, 7)},
        2 * 2 * 5 * 3 * 7,
        MICROSOFT,
        {"transA": 1},
    ),
    Case(
        "MultiHeadAttention",
        {"x": (2, 9, 8)},
        {"k": (2, 5, 8), "v": (2, 5, 6)},
        2 * 2 * 9 * 5 * (8 + 6),
        MICROSOFT,
        {"num_heads": 2},
    ),
    Case(
        "Attention",
        {"x": (2, 9, 8)},
        {"w": (8, 24), "b": (24,)},
        2 * 2 * 9 * (8 * 24 + 9 * 8 * 2),
        MICROSOFT,
        {"num_heads": 2},
    ),
]


def write(path: Path, nodes: list[Any], ranks: dict[str, int], weights: dict[str, Shape]) -> Path:
    """A graph of nodes that give ``y``, all axes of its inputs free."""
    floats = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info(name, floats, [f"{name}{i}" for i in range(rank)])
            for name, rank in ranks.items()
        ],
        [helper.make_tensor_value_info("y", floats, None)],
        [
            numpy_helper.from_array(np.ones(shape, np.float32), name)
            for name, shape in weights.items()
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.operator)
def test_operations_by_hand(case: Case, tmp_path: Path) -> None:
    ranks = {name: len(shape) for name, shape in case.inputs.items()}
    path = write(tmp_path / "g.onnx", [case.node], ranks, case.weights)
    counted = flops.count(path, case.inputs)
    assert counted == flops.Flops(by_operator={case.operator: case.by_hand}, uncounted=())


def test_shapes_that_are_worked_out_are_counted(tmp_path: Path) -> None:
    """What shape inference cannot follow: half of an axis, its length computed in the graph."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "last"], ["side"]),
        helper.make_node("Div", ["side", "two"], ["half"]),
        helper.make_node("Slice", ["x", "zero", "half", "last"], ["left"]),
        helper.make_node("MatMul", ["left", "w"], ["y"]),
    ]
    path = write(tmp_path / "g.onnx", nodes, {"x": 2}, {"w": (4, 5)})
    model = onnx.load(path)
    for name, value in (("last", 1), ("two", 2), ("zero", 0)):
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [1], [value]))
    onnx.save(model, path)
    assert flops.count(path, {"x": (3, 8)}).total == 2 * 3 * 4 * 5


def test_weights_in_a_file_of_their_own(tmp_path: Path) -> None:
    path = write(tmp_path / "g.onnx", [CASES[0].node], {"x": 3}, {"w": (3, 7)})
    external = {"save_as_external_data": True, "location": "w.data", "size_threshold": 0}
    onnx.save(onnx.load(path), path, **external)
    assert flops.count(path, {"x": (2, 5, 3)}).total == CASES[0].by_hand


def test_unknown_operators_are_named(tmp_path: Path) -> None:
    node = helper.make_node("Inverse", ["x"], ["y"], domain=MICROSOFT)
    counted = flops.count(write(tmp_path / "g.onnx", [node], {"x": 2}, {}), {"x": (2, 2)})
    assert counted == flops.Flops(by_operator={}, uncounted=("Inverse",))


@pytest.mark.export
def test_pytorch_counts_the_same(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    class Block(torch.nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.down = torch.nn.Conv2d(9, 16, 3, stride=2, padding=1)
            self.attention = torch.nn.Linear(16, 48)
            self.up = torch.nn.ConvTranspose2d(16, 4, 2, stride=2)

        def forward(self, sample: Any) -> Any:
            planes = self.down(sample)
            batch, channels, height, width = planes.shape
            tokens = planes.flatten(2).transpose(1, 2)
            query, key, value = self.attention(tokens).chunk(3, -1)
            scores = torch.softmax(query @ key.transpose(1, 2), -1)
            tokens = tokens + scores @ value
            return self.up(tokens.transpose(1, 2).reshape(batch, channels, height, width))

    block, sample = Block().eval(), torch.zeros(2, 9, 16, 24)
    path = tmp_path / "block.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the exporter that export/ uses
        torch.onnx.export(block, (sample,), path, input_names=["sample"], dynamo=False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        block(sample)
    assert flops.count(path, {"sample": (2, 9, 16, 24)}).total == counter.get_total_flops()
