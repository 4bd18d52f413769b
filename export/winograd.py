"""3x3 convolutions as Winograd's minimal filtering F(4x4, 3x3): a quarter of the products.

The picture is cut into patches of 6x6 places, 4 apart. Patch and filter are taken to 36 points
each, multiplied there, which over all channels is 36 matrix products, and the sums are taken back
to 4x4 places: Y = A'[(G g G') * (B' d B)]A (Lavin and Gray 2015, arXiv:1509.09308, section 4.3).
The result is that of the convolution but for rounding, some 1e-5 of its size.

It pays where the channels are many, since the transforms do work for each channel, and where the
plane is large, since the filters become four times as large and each is used once a patch. The
filters are stored as they were: the runtime works out their points when it opens the session, and
holds those in their place (1 GB more for the UNet of Stable Diffusion 1.5).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from onnx import helper, numpy_helper

from export.initializers import read

CHANNELS: Final = 256
"""Fewer, in or out: the transforms take as long as the products that they save."""

PLANE: Final = 32
"""Smaller ones, at the network's native size: reading the larger filters takes the time."""

_TILE: Final = 4
_POINTS: Final = 36

_B: Final = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    np.float64,
)
_G: Final = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
    np.float64,
)
_A: Final = np.array(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
    np.float64,
)
"""B and A transposed, and G, at the points 0, 1, -1, 2, -2 and infinity."""


def rewrite(
    graph: Any, source: Path, *, plane: int, smallest_plane: int = PLANE, channels: int = CHANNELS
) -> int:
    """Replace the convolutions of a graph where it pays.

    Args:
        graph: The ``GraphProto``; its first input is a picture (B, C, H, W).
        source: Folder against which the graph's data files are named.
        plane: Side of that picture at the network's native size.
        smallest_plane: Side of the planes from which on a convolution is replaced.
        channels: Channels, in and out, from which on.

    Returns:
        How many were replaced.
    """
    weights = {tensor.name: tensor for tensor in graph.initializer}
    sides = _sides(graph, plane)
    made = _Made(graph, source, weights)
    nodes = []
    replaced = 0
    for node in graph.node:
        if (
            _is_plain(node)
            and node.input[1] in weights
            and min(weights[node.input[1]].dims[:2]) >= channels
            and sides.get(node.input[0], 0) >= smallest_plane
        ):
            nodes += made.convolution(node)
            replaced += 1
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend([*made.nodes, *nodes])
    in_use = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in in_use]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return replaced


def _sides(graph: Any, plane: int) -> dict[str, float]:
    """The side of each plane, followed through strides and upsamplings by two."""
    sides: dict[str, float] = {graph.input[0].name: plane}
    for node in graph.node:
        side = next((sides[name] for name in node.input if name in sides), None)
        if side is None:
            continue
        if node.op_type == "Conv":
            side /= _ints(node, "strides", [1])[0]
        elif node.op_type == "Resize":
            side *= 2
        sides |= dict.fromkeys(node.output, side)
    return sides


def _is_plain(node: Any) -> bool:
    """A 3x3 convolution that keeps the plane, with a bias."""
    return (
        node.op_type == "Conv"
        and len(node.input) == 3
        and _ints(node, "kernel_shape", []) == [3, 3]
        and _ints(node, "pads", [0]) == [1] * 4
        and set(_ints(node, "strides", [1]) + _ints(node, "dilations", [1])) == {1}
        and _ints(node, "group", [1]) == [1]
    )


def _ints(node: Any, name: str, default: list[int]) -> list[int]:
    for attribute in node.attribute:
        if attribute.name == name:
            value = helper.get_attribute_value(attribute)
            return [value] if isinstance(value, int) else list(value)
    return default


class _Made:
    """The nodes of the replaced convolutions; constants that they share are made once."""

    def __init__(self, graph: Any, source: Path, weights: dict[str, Any]) -> None:
        self._graph, self._source, self._weights = graph, source, weights
        self._made: set[str] = set()
        self.nodes: list[Any] = []

    def convolution(self, node: Any) -> list[Any]:
        """What takes the place of one: (B, C, H, W) -> patches (B, 36 C, H/4, W/4), points
        (B, 36, C, T), products (B, 36, M, T) and back."""
        (x, weight, bias), (y,) = node.input, node.output
        out, into = self._weights[weight].dims[:2]
        every = {"strides": [_TILE] * 2}
        # One row or column before, and up to four after, so that the last patch is whole.
        patch = {"group": into, "kernel_shape": [6, 6], "pads": [1, 1, 4, 4], **every}
        tile = {"group": out, "kernel_shape": [_TILE] * 2, **every}
        to_points = self._transform("to_points", _B.T, into)
        to_plane = self._transform("to_plane", _A, out)
        steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
            ("Conv", [x, to_points], "/patches", patch),
            ("Reshape", ["/patches", self._ints(0, into, _POINTS, -1)], "/channels", {}),
            ("Transpose", ["/channels"], "/points", {"perm": [0, 2, 1, 3]}),
            ("MatMul", [self._filter(weight), "/points"], "/products", {}),
            ("Transpose", ["/products"], "/sums", {"perm": [0, 2, 1, 3]}),
            ("Shape", ["/patches"], "/tiles", {"start": 2}),
            ("Concat", [self._ints(0, _POINTS * out), "/tiles"], "/tiled", {"axis": 0}),
            ("Reshape", ["/sums", "/tiled"], "/tiled_sums", {}),
            ("ConvTranspose", ["/tiled_sums", to_plane, bias], "/whole", tile),
            ("Shape", [x], "/sides", {"start": 2}),
            ("Slice", ["/whole", self._ints(0, 0), "/sides", self._ints(2, 3)], "", {}),
        ]
        own = {result for _, _, result, _ in steps}
        return [
            helper.make_node(
                kind,
                [f"{y}{name}" if name in own else name for name in inputs],
                [f"{y}{result}"],
                name=f"{node.name or y}{result}",
                **attributes,
            )
            for kind, inputs, result, attributes in steps
        ]

    def _filter(self, weight: str) -> str:
        """G g G' of a filter (M, C, 3, 3), as (36, M, C)."""
        name = f"{weight}/points"
        if self._once(name):
            values = read(self._weights[weight], self._source)
            out, into = values.shape[:2]
            taps = self._constant(f"{weight}/taps", values.transpose(2, 3, 0, 1).reshape(9, -1))
            matrix = np.einsum("ia,jb->ijab", _G, _G).reshape(_POINTS, 9)
            to_points = self._constant("winograd/filter_to_points", matrix)
            self._fold("MatMul", [to_points, taps], f"{name}/flat")
            self._fold("Reshape", [f"{name}/flat", self._ints(_POINTS, out, into)], name)
        return name

    def _transform(self, kind: str, matrix: npt.NDArray[Any], channels: int) -> str:
        """36 filters (1, k, k) for each channel, the outer products of the matrix's columns."""
        name = f"winograd/{kind}_{channels}"
        if self._once(name):
            side = matrix.shape[0]
            values = np.einsum("ai,bj->ijab", matrix, matrix).reshape(_POINTS, 1, side, side)
            one = self._constant(f"winograd/{kind}", values)
            self._fold("Tile", [one, self._ints(channels, 1, 1, 1)], name)
        return name

    def _fold(self, kind: str, inputs: list[str], name: str) -> None:
        """A node of constants, which the runtime replaces by its result."""
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name))

    def _ints(self, *values: int) -> str:
        name = "winograd/ints_" + "_".join(map(str, values))
        return self._constant(name, np.array(values, np.int64))

    def _constant(self, name: str, values: npt.NDArray[Any]) -> str:
        if self._once(name):
            if values.dtype == np.float64:
                values = values.astype(np.float32)
            self._graph.initializer.append(
                numpy_helper.from_array(np.ascontiguousarray(values), name)
            )
        return name

    def _once(self, name: str) -> bool:
        new = name not in self._made
        self._made.add(name)
        return new
