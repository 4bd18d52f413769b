"""Floating-point operations of an ONNX graph: the multiplications and additions of its matrix
products and convolutions, two for each weight and place, as PyTorch's FlopCounterMode counts.

The shapes are the real ones: the graph is run once, and every counted node's tensors tell theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort

Shape = tuple[int, ...]
Shapes = Callable[[str], Shape]

_FREE: Final = {
    "BiasAdd",
    "BiasGelu",
    "BiasSoftmax",
    "BiasSplitGelu",
    "FastGelu",
    "Gelu",
    "GroupNorm",
    "QuickGelu",
    "SimplifiedLayerNormalization",
    "SkipGroupNorm",
    "SkipLayerNormalization",
}
"""Contributed operators without a matrix product."""
_NESTED: Final = {"If", "Loop", "Scan", "GRU", "LSTM", "RNN"}
_TRANSFORMS: Final = ("/patches", "/whole")
_POINTS: Final = "/products"
"""Ends of the names that ``export.winograd`` gives."""
_PLAIN_PER_POINT: Final = 4
"""9 multiplications for each of 16 places, in place of 36 for all of them."""
_OUTSIDE: Final = ("ai.onnx", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """What was counted.

    Attributes:
        by_operator: What the graph does.
        uncounted: Operators that nothing is known of.
        saved: How many more it would be if the convolutions that ``edgefill export`` computes by
            Winograd's filtering were plain ones.
    """

    by_operator: dict[str, int]
    uncounted: tuple[str, ...]
    saved: int = 0

    @property
    def total(self) -> int:
        return sum(self.by_operator.values())

    @property
    def plain(self) -> int:
        """What the network takes when all its convolutions are plain ones."""
        return self.total + self.saved


def count(path: Path, shapes: Mapping[str, Shape]) -> Flops:
    """Count the operations of one run.

    Args:
        path: The graph; weights beside it are found.
        shapes: The shape of every input.

    Raises:
        ImportError: If ``onnx`` is not installed.
        KeyError: If an input has no shape.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    folded = _folded(model.graph)
    counted = [
        node for node in model.graph.node if node.op_type in _RULES and node.output[0] not in folded
    ]
    real = _real_shapes(path, model, counted, shapes)
    by_operator: dict[str, int] = {}
    saved = 0
    for node in counted:
        flops = _RULES[node.op_type](node, real.__getitem__)
        by_operator[node.op_type] = by_operator.get(node.op_type, 0) + flops
        if node.name.endswith(_TRANSFORMS):
            saved -= flops
        elif node.name.endswith(_POINTS):
            saved += (_PLAIN_PER_POINT - 1) * flops
    unknown = {
        node.op_type
        for node in model.graph.node
        if node.op_type not in _RULES
        and (node.op_type in _NESTED or (node.domain not in _OUTSIDE and node.op_type not in _FREE))
    }
    return Flops(by_operator=by_operator, uncounted=tuple(sorted(unknown)), saved=saved)


def _folded(graph: Any) -> set[str]:
    """What follows from the weights alone: the runtime works it out when it opens the graph."""
    known = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.input and all(name in known or not name for name in node.input):
            known.update(node.output)
    return known


def _real_shapes(
    path: Path, model: Any, nodes: list[Any], shapes: Mapping[str, Shape]
) -> dict[str, Shape]:
    """The shape of every tensor that the nodes touch, from one run of the graph on zeros."""
    from onnx import TensorProto, helper

    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    touched = {name for node in nodes for name in (*node.input, *node.output[:1]) if name}
    asked = sorted(touched - weights.keys())
    if not asked:
        return weights
    feeds = {
        value.name: np.zeros(
            shapes[value.name], helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        )
        for value in model.graph.input
        if value.name not in weights
    }
    del model.graph.output[:]
    names = [f"shape_of_{i}" for i in range(len(asked))]
    for name, told in zip(asked, names, strict=True):
        model.graph.node.append(helper.make_node("Shape", [name], [told]))
        model.graph.output.append(helper.make_tensor_value_info(told, TensorProto.INT64, [None]))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(path.resolve().parent)
    )
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    told = session.run(names, feeds)
    return weights | {
        name: tuple(int(side) for side in shape) for name, shape in zip(asked, told, strict=True)
    }


def _attribute(node: Any, name: str, default: Any) -> Any:
    from onnx import helper

    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return default


def _convolution(weight: int) -> Callable[[Any, Shapes], int]:
    """Every output is a product of one filter, (M, C / group, ...), with a window."""

    def rule(node: Any, shape: Shapes) -> int:
        return 2 * prod(shape(node.output[0])) * prod(shape(node.input[weight])[1:])

    return rule


def _transposed(node: Any, shape: Shapes) -> int:
    """Every input is multiplied with a filter, (C, M / group, ...)."""
    return 2 * prod(shape(node.input[0])) * prod(shape(node.input[1])[1:])


def _product(node: Any, shape: Shapes) -> int:
    """Every output is a sum over the last axis of the first matrix, or its first where that is
    transposed."""
    left = shape(node.input[0])
    transposed = _attribute(node, "transA", 0) and len(left) > 1
    return 2 * prod(shape(node.output[0])) * left[-2 if transposed else -1]


def _einsum(node: Any, shape: Shapes) -> int:
    equation = _attribute(node, "equation", b"").decode().replace(" ", "")
    terms = equation.split("->")[0].split(",")
    if len(terms) != 2 or "." in equation:
        raise ValueError(f"Einsum {equation} cannot be counted; two terms without ... can be")
    sides: dict[str, int] = {}
    for term, name in zip(terms, node.input, strict=True):
        sides |= dict(zip(term, shape(name), strict=True))
    return 2 * prod(sides.values())


def _attention(node: Any, shape: Shapes) -> int:
    """com.microsoft: picture tokens (B, S, D) times weights (D, 3 E), then attention. ai.onnx:
    attention alone."""
    if node.domain in _OUTSIDE:
        return _attention_alone(node, shape)
    batch, tokens, _ = source = shape(node.input[0])
    wide = shape(node.input[1])[1]
    return 2 * prod(source) * wide + 2 * batch * tokens * tokens * (wide // 3) * 2


def _attention_alone(node: Any, shape: Shapes) -> int:
    """Scores and values of queries (B, S, E) or (B, H, S, E), keys and values of L tokens."""
    query, key, value = (shape(name) for name in node.input[:3])
    return 2 * key[-2] * (prod(query) + prod(query[:-1]) * value[-1])


_RULES: Final[dict[str, Callable[[Any, Shapes], int]]] = {
    "Attention": _attention,
    "MultiHeadAttention": _attention_alone,
    "Conv": _convolution(1),
    "ConvInteger": _convolution(1),
    "FusedConv": _convolution(1),
    "NhwcConv": _convolution(1),
    "QLinearConv": _convolution(3),
    "ConvTranspose": _transposed,
    "DynamicQuantizeMatMul": _product,
    "Einsum": _einsum,
    "FusedGemm": _product,
    "FusedMatMul": _product,
    "Gemm": _product,
    "MatMul": _product,
    "MatMulInteger": _product,
    "MatMulIntegerToFloat": _product,
    "MatMulNBits": _product,
    "QLinearMatMul": _product,
}
