"""What is done to a traced graph before it goes into the bundle; results change by rounding only.

1. Inputs and outputs carry the bundle's symbolic shapes.
2. Nodes that only rename a tensor go, and remarks that the tracer left.
3. 3x3 convolutions of many channels on large planes are computed by ``export.winograd``.
4. The initialisers are stored as ``export.initializers`` says: in fewer bytes where that loses
   nothing or is asked for (ONNX Runtime works them out when it opens the session), above 512 MB in
   ``<name>.onnx.data``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper

from engine.bundle import TensorSpec
from export.initializers import rename_inputs, store
from export.winograd import rewrite

DATA_FILE_BYTES: Final = 512 << 20
"""Above this many bytes of weights the model gets a data file (protobuf ends at 2 GB)."""


def finish(
    traced: Path,
    path: Path,
    *,
    takes: tuple[TensorSpec, ...],
    gives: tuple[TensorSpec, ...],
    plane: int = 0,
    data_file_bytes: int = DATA_FILE_BYTES,
    stored: str = "exact",
) -> Path | None:
    """Turn a traced graph into the bundle's model file.

    Args:
        traced: The file that the tracer wrote.
        path: The model file to write, named ``<component>.onnx``.
        takes: The inputs, in order.
        gives: The outputs, in order.
        plane: Side of the first input at the network's native size; 0 where it is no picture.
        data_file_bytes: Weights above this many bytes go into a data file.
        stored: How the weights are stored; see ``export.initializers``.

    Returns:
        The data file, None where the model file holds everything.
    """
    model = onnx.load(traced, load_external_data=False)
    graph = model.graph
    _declare(graph.input, takes)
    _declare(graph.output, gives)
    _drop_identities(graph)
    for node in graph.node:
        node.ClearField("doc_string")
    del graph.value_info[:]
    if plane:
        rewrite(graph, traced.parent, plane=plane)
    data = path.with_name(f"{path.name}.data")
    written = store(graph, traced.parent, data, data_file_bytes=data_file_bytes, stored=stored)
    onnx.save(model, path)
    onnx.checker.check_model(path)
    return written


def _declare(values: Any, specs: tuple[TensorSpec, ...]) -> None:
    """Give the inputs or outputs the declared shapes; the order must be the declared one."""
    names, expected = [value.name for value in values], [spec.name for spec in specs]
    if names != expected:
        raise ValueError(f"the graph has tensors {names}; expected {expected}")
    for value, spec in zip(values, specs, strict=True):
        element = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
        value.CopyFrom(helper.make_tensor_value_info(spec.name, element, list(spec.shape)))


def _drop_identities(graph: Any) -> None:
    """Remove Identity nodes, but for those that name an output of the graph."""
    outputs = {value.name for value in graph.output}
    aliases: dict[str, str] = {}
    kept = []
    for node in graph.node:
        if node.op_type == "Identity" and node.output[0] not in outputs:
            aliases[node.output[0]] = aliases.get(node.input[0], node.input[0])
        else:
            kept.append(node)
    rename_inputs(kept, aliases)
    del graph.node[:]
    graph.node.extend(kept)
