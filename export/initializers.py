"""How the weights of a graph are stored: shared, in half the bytes where nothing is lost, or aside.

Tensors are read one after another, from the graph or through a memory map of its data file, and
written once, so that a model of several GB costs little memory here.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

HALF_STORAGE_BYTES: Final = 4096
"""Smaller initialisers stay as they are: a Cast would cost more than it saves."""

_HALF: Final = "_fp16"
_DATA_TENSOR_BYTES: Final = 1024
_PAGE: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """One initialiser that stays."""

    tensor: Any
    half: bool

    @property
    def name(self) -> str:
        return f"{self.tensor.name}{_HALF}" if self.half else str(self.tensor.name)


def store(graph: Any, source: Path, data: Path, *, data_file_bytes: int) -> Path | None:
    """Rewrite the initialisers of a graph in place.

    Those with the same content become one; those that fp16 holds exactly are stored in fp16 and get
    one Cast to fp32 under their old name; they stand in the order of their names, so that the
    same checkpoint gives the same bytes.

    Args:
        graph: The ``GraphProto``.
        source: Folder against which the graph's present data files are named.
        data: The data file to write where it is needed.
        data_file_bytes: Weights above this many bytes go into it.

    Returns:
        ``data`` where it was written, else None.
    """
    _bring_back_constants(graph, source)
    plans, total = _plan(graph, source)
    aside = total > data_file_bytes
    tensors = []
    with ExitStack() as stack:
        stream = stack.enter_context(data.open("wb")) if aside else None
        for plan in plans:
            values = read(plan.tensor, source)
            if plan.half:
                values = values.astype(np.float16)
            tensor = TensorProto(
                name=plan.name,
                dims=values.shape,
                data_type=helper.np_dtype_to_tensor_dtype(values.dtype),
            )
            if stream is not None and values.nbytes >= _DATA_TENSOR_BYTES:
                # At page borders, so that the runtime can map each tensor where it lies.
                stream.write(bytes(-stream.tell() % _PAGE))
                _point_to(tensor, data.name, stream.tell(), values.nbytes)
                stream.write(np.ascontiguousarray(values).data)
            else:
                tensor.raw_data = values.tobytes()
            tensors.append(tensor)
    casts = [
        helper.make_node(
            "Cast",
            [plan.name],
            [plan.tensor.name],
            name=f"{plan.tensor.name}_to_fp32",
            to=TensorProto.FLOAT,
        )
        for plan in plans
        if plan.half
    ]
    nodes = [*casts, *graph.node]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)
    return data if aside else None


def rename_inputs(nodes: Any, names: dict[str, str]) -> None:
    """Let the nodes read other tensors: old name -> new name."""
    for node in nodes:
        for i, name in enumerate(node.input):
            if name in names:
                node.input[i] = names[name]


def _bring_back_constants(graph: Any, source: Path) -> None:
    """Put into the graph what a tracer wrote aside of its Constant nodes; they are small."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t") and uses_external_data(attribute.t):
                values = np.array(read(attribute.t, source))
                attribute.t.CopyFrom(numpy_helper.from_array(values, attribute.t.name))


def _plan(graph: Any, source: Path) -> tuple[list[_Plan], int]:
    """Which initialisers stay and how, and how many bytes they will have."""
    first: dict[tuple[Any, ...], str] = {}
    aliases: dict[str, str] = {}
    plans, total = [], 0
    for tensor in sorted(graph.initializer, key=lambda tensor: str(tensor.name)):
        values = read(tensor, source)
        digest = hashlib.sha256(np.ascontiguousarray(values).data).digest()
        key = (tensor.data_type, values.shape, digest)
        if key in first:
            aliases[tensor.name] = first[key]
            continue
        first[key] = tensor.name
        half = _is_exact_in_half(values)
        plans.append(_Plan(tensor=tensor, half=half))
        total += values.nbytes // (2 if half else 1)
    rename_inputs(graph.node, aliases)
    return plans, total


def _is_exact_in_half(values: npt.NDArray[Any]) -> bool:
    if values.dtype != np.float32 or values.nbytes < HALF_STORAGE_BYTES:
        return False
    with np.errstate(over="ignore"):
        return np.array_equal(values.astype(np.float16).astype(np.float32), values)


def read(tensor: Any, source: Path) -> npt.NDArray[Any]:
    """The values of an initialiser, mapped where they lie in a data file."""
    if not uses_external_data(tensor):
        return numpy_helper.to_array(tensor)
    info = ExternalDataInfo(tensor)
    return np.memmap(
        source / info.location,
        dtype=helper.tensor_dtype_to_np_dtype(tensor.data_type),
        mode="r",
        offset=info.offset or 0,
        shape=tuple(tensor.dims),
    )


def _point_to(tensor: Any, location: str, offset: int, length: int) -> None:
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
