"""A UNet split for caching of deep features: the whole one, and its outer layers alone.

DeepCache (Ma et al., "DeepCache: Accelerating Diffusion Models for Free", arXiv 2312.00858) finds
that what comes up from deep in the UNet changes little from step to step. The whole UNet therefore
gives that feature out besides its prediction, and the shallow one takes it in place of all that
lies below. The cut is made in the finished graph: a skip connection enters the way up in a
``Concat``, whose other input is the deep feature. Branch 0, the paper's usual one, cuts at the
skip connection of ``conv_in``, and leaves one layer of the way up; branch b leaves b layers more on
either way. Only the cuts at the latents' own resolution are made.

    python -m export.deep_cache BUNDLE --output DIR [--branch B]

makes them in a bundle that is there already.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.external_data_helper import uses_external_data

from engine.bundle import SHALLOW_UNET, Bundle, Component, FileRecord, TensorSpec
from engine.errors import EngineError
from export import parity
from export.errors import ExportError
from export.output import require_free, staged

DEEP: Final = "deep_feature"

_PLANES: Final = ((1, 8, 8), (2, 9, 13))
"""(batch, h, w) of the latents that both graphs are compared on."""

Inputs = dict[str, NDArray[Any]]


def split(folder: Path, unet: Component, *, branch: int) -> tuple[Component, Component]:
    """Let the UNet of a folder give its deep feature out, and write the shallow one beside it.

    Weights that lie in the UNet's data file are read from there by both; others are written twice.

    Args:
        folder: Where ``unet.onnx`` lies, which is written anew.
        unet: Its entry.
        branch: Skip connection to cut at.

    Returns:
        The entries of both; the parity of the shallow one is how far it is from the whole one when
        it is given the whole one's own feature.

    Raises:
        ExportError: If the graph has no such skip connection at the latents' resolution.
        ParityError: If the shallow graph does not compute what the whole one does.
    """
    path, shallow_path = folder / unet.model.file, folder / f"{SHALLOW_UNET}.onnx"
    model = onnx.load(path, load_external_data=False)
    _rename(model.graph, _deep_feature(model.graph, branch), DEEP)
    shallow = onnx.ModelProto()
    shallow.CopyFrom(model)
    _keep_needed(shallow.graph, given=DEEP)
    model.graph.output.append(onnx.ValueInfoProto(name=DEEP))
    onnx.save(model, path)
    cases = _cases(unet)
    answers = _run(path, cases)
    shape = ("batch", answers[0][1].shape[1], "height/8", "width/8")
    declared = helper.make_tensor_value_info(DEEP, TensorProto.FLOAT, shape)
    model.graph.output[-1].CopyFrom(declared)
    shallow.graph.input.append(declared)
    for graph, file in ((model, path), (shallow, shallow_path)):
        onnx.save(graph, file)
        onnx.checker.check_model(file)
    given = [{**inputs, DEEP: deep} for inputs, (_, deep) in zip(cases, answers, strict=True)]
    found = _run(shallow_path, given)
    figures = [
        parity.compare(whole, outer) for (whole, _), (outer,) in zip(answers, found, strict=True)
    ]
    feature = TensorSpec(name=DEEP, dtype="float32", shape=shape)
    shared = any(uses_external_data(tensor) for tensor in shallow.graph.initializer)
    entry = replace(unet, model=FileRecord.of(path), outputs=(*unet.outputs, feature))
    shallow_entry = Component(
        model=FileRecord.of(shallow_path),
        data=unet.data if shared else None,
        inputs=(*unet.inputs, feature),
        outputs=unet.outputs,
        parity=parity.require(SHALLOW_UNET, figures),
    )
    return entry, shallow_entry


def add_to_bundle(
    source: Path, output: Path, *, branch: int = 0, overwrite: bool = False
) -> Bundle:
    """Write a bundle again, its UNet split.

    Raises:
        ExportError: If the bundle cannot be opened or split, or the output may not be written.
        ParityError: See ``split``.
    """
    require_free(output, overwrite=overwrite)
    try:
        bundle = Bundle.open(source)
    except EngineError as exc:
        raise ExportError(str(exc)) from exc
    if SHALLOW_UNET in bundle.components:
        raise ExportError(f"{source}: has a shallow UNet already")
    with staged(output, overwrite=overwrite) as folder:
        for record in bundle.files():
            shutil.copyfile(source / record.file, folder / record.file)
        whole, outer = split(folder, bundle.components["unet"], branch=branch)
        components = {**bundle.components, "unet": whole, SHALLOW_UNET: outer}
        replace(bundle, path=folder, components=components).write()
    return Bundle.open(output)


def _deep_feature(graph: Any, branch: int) -> str:
    """The name of what meets a skip connection on the way up.

    The skip connections are used up in the reverse of their order: the last ``Concat`` of channels
    is that of ``conv_in``, the one before it that of the first layer, until the last ``Resize``,
    before which all is smaller.
    """
    found = []
    for node in reversed(graph.node):
        if node.op_type == "Resize":
            break
        if _joins_channels(node):
            found.append(node.input[0])
    if not 0 <= branch < len(found):
        allowed = f"0 to {len(found) - 1}" if found else "none, it has no skip connections"
        raise ExportError(f"unet: the branch to cut at is {branch}; allowed: {allowed}")
    return str(found[branch])


def _joins_channels(node: Any) -> bool:
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), None)
    return node.op_type == "Concat" and axis == 1 and len(node.input) == 2


def _rename(graph: Any, old: str, new: str) -> None:
    """Give a tensor another name wherever it is written or read."""
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new


def _keep_needed(graph: Any, *, given: str) -> None:
    """Take out all that the outputs do not depend on once a tensor is given."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if given not in node.output and needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(weights)


def _cases(unet: Component) -> list[Inputs]:
    """Inputs of a UNet, every row at another timestep."""
    random = np.random.default_rng(5)
    cases = []
    for batch, height, width in _PLANES:
        sizes = {"batch": batch, "tokens": 7, "height/8": height, "width/8": width}
        inputs = {
            spec.name: random.standard_normal(
                [sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape], np.float32
            )
            for spec in unet.inputs
        }
        inputs["timestep"] = random.uniform(0, 999, batch).astype(np.float32)
        cases.append(inputs)
    return cases


def _run(path: Path, cases: list[Inputs]) -> list[list[NDArray[Any]]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [list(session.run(None, inputs)) for inputs in cases]


def main(arguments: list[str] | None = None) -> int:
    """The command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m export.deep_cache", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--branch", type=int, default=0)
    chosen = parser.parse_args(arguments)
    try:
        bundle = add_to_bundle(chosen.bundle, chosen.output, branch=chosen.branch)
    except ExportError as exc:
        print(exc, file=sys.stderr)
        return 1
    shallow = bundle.components[SHALLOW_UNET]
    print(f"{shallow.model.file}: {shallow.model.size} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
