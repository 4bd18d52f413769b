"""How the weights of a graph are stored: shared, in fewer bytes, or aside.

By itself nothing is lost: fp16 holds the weights that it holds exactly. ``"fp16"`` holds all
matrices and filters in it, rounded. ``"int8"`` holds them in blocks of 64 numbers with an fp16
scale each, as GGUF's Q8_0 does in blocks of 32: 8.25 bits a weight, whatever axis a block lies on.
What a graph computes with is fp32 all the same: the runtime works the weights out when it opens
the session.

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

BLOCK: Final = 64
"""Weights that share a scale in ``"int8"``."""

STORED: Final = ("exact", "fp16", "int8")

_HALF: Final = "_fp16"
_BYTES: Final = "_int8"
_SCALES: Final = "_scales"
_DATA_TENSOR_BYTES: Final = 1024
_PAGE: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """One initialiser that stays: as it is (``"exact"``), in ``"fp16"`` or in ``"int8"``."""

    tensor: Any
    kind: str

    def parts(self, values: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """What is stored of the values, by its names."""
        name = str(self.tensor.name)
        if self.kind == "fp16":
            return {f"{name}{_HALF}": values.astype(np.float16)}
        if self.kind == "int8":
            numbers, scales = _blocks(values)
            return {f"{name}{_BYTES}": numbers, f"{name}{_BYTES}{_SCALES}": scales}
        return {name: values}

    def nodes(self) -> list[Any]:
        """The nodes that give the values in fp32 under the initialiser's name."""
        name = str(self.tensor.name)
        if self.kind == "fp16":
            return [_cast(f"{name}{_HALF}", name, f"{name}_to_fp32")]
        if self.kind == "int8":
            numbers, scales = f"{name}{_BYTES}", f"{name}{_BYTES}{_SCALES}"
            whole, scaled = f"{numbers}_whole", f"{numbers}_scaled"
            return [
                _cast(numbers, whole, f"{numbers}_to_fp32"),
                _cast(scales, f"{scales}_fp32", f"{scales}_to_fp32"),
                helper.make_node("Mul", [whole, f"{scales}_fp32"], [scaled], name=scaled),
                helper.make_node("Reshape", [scaled, _shape_name(self.tensor)], [name], name=name),
            ]
        return []

    def nbytes(self, values: npt.NDArray[Any]) -> int:
        """Bytes that are stored."""
        if self.kind == "int8":
            return values.size + values.size // BLOCK * 2
        return values.nbytes // (2 if self.kind == "fp16" else 1)


def _shape_name(tensor: Any) -> str:
    return "shape_" + "_".join(map(str, tensor.dims))


def _cast(source: str, target: str, name: str) -> Any:
    return helper.make_node("Cast", [source], [target], name=name, to=TensorProto.FLOAT)


def _blocks(
    values: npt.NDArray[Any],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float16]]:
    """(n, 64) whole numbers and (n, 1) scales; a scale that fp16 takes for 0 makes a block 0."""
    blocks = np.asarray(values, np.float32).reshape(-1, BLOCK)
    scales = (np.abs(blocks).max(axis=1, keepdims=True) / 127).astype(np.float16)
    divisors = np.where(scales == 0, np.float32(np.inf), scales.astype(np.float32))
    return np.clip(np.rint(blocks / divisors), -127, 127).astype(np.int8), scales


def store(
    graph: Any, source: Path, data: Path, *, data_file_bytes: int, stored: str = "exact"
) -> Path | None:
    """Rewrite the initialisers of a graph in place.

    Those with the same content become one; those that fp16 holds exactly are stored in fp16 and get
    one Cast to fp32 under their old name; they stand in the order of their names, so that the
    same checkpoint gives the same bytes.

    Args:
        graph: The ``GraphProto``.
        source: Folder against which the graph's present data files are named.
        data: The data file to write where it is needed.
        data_file_bytes: Weights above this many bytes go into it.
        stored: One of ``STORED``.

    Returns:
        ``data`` where it was written, else None.
    """
    _bring_back_constants(graph, source)
    plans, total = _plan(graph, source, stored)
    aside = total > data_file_bytes
    tensors = []
    with ExitStack() as stack:
        stream = stack.enter_context(data.open("wb")) if aside else None
        for plan in plans:
            for name, values in plan.parts(read(plan.tensor, source)).items():
                tensor = TensorProto(
                    name=name,
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
    shapes = {_shape_name(plan.tensor): plan.tensor for plan in plans if plan.kind == "int8"}
    for name, tensor in shapes.items():
        tensors.append(numpy_helper.from_array(np.array(tensor.dims, np.int64), name))
    casts = [node for plan in plans for node in plan.nodes()]
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


def _plan(graph: Any, source: Path, stored: str) -> tuple[list[_Plan], int]:
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
        plan = _Plan(tensor=tensor, kind=_kind(values, stored))
        plans.append(plan)
        total += plan.nbytes(values)
    rename_inputs(graph.node, aliases)
    return plans, total


def _kind(values: npt.NDArray[Any], stored: str) -> str:
    """How an initialiser is stored; vectors are rounded never, they are few."""
    if values.dtype != np.float32 or values.nbytes < HALF_STORAGE_BYTES:
        return "exact"
    rounded = values.ndim > 1
    if stored == "int8" and rounded and values.size % BLOCK == 0 and np.isfinite(values).all():
        return "int8"
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if stored != "exact" and rounded and np.isfinite(half).all():
        return "fp16"
    return "fp16" if np.array_equal(half.astype(np.float32), values) else "exact"


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
