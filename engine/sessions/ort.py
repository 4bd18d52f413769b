"""ONNX Runtime sessions, with inputs and outputs bound to numpy memory."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from engine.bundle import Component, TensorSpec
from engine.errors import BundleError, SessionError
from engine.sessions.base import bind_axes, shape_of

_TYPES: Final = {
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
    "int64": "tensor(int64)",
}
_KEPT_BUFFERS: Final = 8
"""Output buffers and bindings are kept for that many recent shapes."""

_Place: TypeAlias = tuple[tuple[int, tuple[int, ...]], ...]
"""Address and shape of every input and output."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Bound:
    """A run that was checked and bound: it holds for the very same arrays again.

    An array stays where it lies for as long as it exists, so there is nothing to check anew.
    """

    feeds: tuple[tuple[str, weakref.ref[npt.NDArray[Any]], tuple[int, ...]], ...]
    binding: ort.IOBinding
    outputs: tuple[npt.NDArray[Any], ...]

    def fits(self, feeds: Mapping[str, npt.NDArray[Any]]) -> bool:
        if len(feeds) != len(self.feeds):
            return False
        for name, held, shape in self.feeds:
            array = feeds.get(name)
            if array is None or held() is not array or array.shape != shape:
                return False
        return True


class OrtSession:
    """A network of a bundle on ONNX Runtime's CPU provider.

    Args:
        directory: The bundle's folder.
        component: The network's entry in the bundle.
        threads: Threads of one run; 0 lets the runtime take one per physical core.

    Raises:
        BundleError: If the graph does not have the tensors the bundle declares.
        SessionError: If the runtime cannot open the graph.
    """

    def __init__(self, directory: Path, component: Component, *, threads: int = 0) -> None:
        self._path = directory / component.model.file
        self.inputs = component.inputs
        self.outputs = component.outputs
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Denormal numbers slow a CPU down a hundredfold and mean nothing in a picture.
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        # Each network has threads of its own: those that have nothing to do must not spin on the
        # cores while the next network works.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session = ort.InferenceSession(
                self._path, options, providers=["CPUExecutionProvider"]
            )
        except Exception as exc:  # the runtime's own exception classes have no common base
            raise SessionError(f"{self._path}: ONNX Runtime cannot open it: {exc}") from exc
        _compare(self._path, "input", self._session.get_inputs(), self.inputs)
        _compare(self._path, "output", self._session.get_outputs(), self.outputs)
        self._bound: dict[_Place, ort.IOBinding] = {}
        self._buffers: dict[tuple[tuple[int, ...], ...], tuple[npt.NDArray[Any], ...]] = {}
        self._last: _Bound | None = None

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> tuple[npt.NDArray[Any], ...]:
        """See ``engine.sessions.base.Session.run``."""
        bound = self._last
        if bound is None or not bound.fits(feeds):
            bound = self._bind(feeds)
        try:
            self._session.run_with_iobinding(bound.binding)
        except Exception as exc:
            raise SessionError(f"{self._path}: ONNX Runtime failed: {exc}") from exc
        return bound.outputs

    def close(self) -> None:
        """See ``engine.sessions.base.Session.close``."""
        self._last = None
        self._bound.clear()
        self._buffers.clear()
        del self._session

    def _bind(self, feeds: Mapping[str, npt.NDArray[Any]]) -> _Bound:
        """Check what a run is fed, and bind it."""
        axes = bind_axes(self.inputs, feeds)
        outputs = self._output_buffers(tuple(shape_of(spec, axes) for spec in self.outputs))
        self._last = _Bound(
            feeds=tuple((name, weakref.ref(array), array.shape) for name, array in feeds.items()),
            binding=self._binding(feeds, outputs),
            outputs=outputs,
        )
        return self._last

    def _binding(
        self, feeds: Mapping[str, npt.NDArray[Any]], outputs: tuple[npt.NDArray[Any], ...]
    ) -> ort.IOBinding:
        """The binding of these arrays, made once as long as they lie where they lay.

        A binding knows addresses and owns nothing. It is used only where arrays of the same shapes
        lie at the same addresses now, so that one that outlives its arrays does no harm.
        """
        arrays = [feeds[spec.name] for spec in self.inputs] + list(outputs)
        place = tuple((a.__array_interface__["data"][0], a.shape) for a in arrays)
        binding = self._bound.pop(place, None)
        if binding is None:
            binding = self._session.io_binding()
            for spec in self.inputs:
                binding.bind_input(spec.name, *_memory(feeds[spec.name]))
            for spec, array in zip(self.outputs, outputs, strict=True):
                binding.bind_output(spec.name, *_memory(array))
        self._bound[place] = binding
        if len(self._bound) > _KEPT_BUFFERS:
            del self._bound[next(iter(self._bound))]
        return binding

    def _output_buffers(self, shapes: tuple[tuple[int, ...], ...]) -> tuple[npt.NDArray[Any], ...]:
        """Buffers for these shapes, the ones used last kept for the next run."""
        buffers = self._buffers.pop(shapes, None)
        if buffers is None:
            buffers = tuple(
                np.empty(shape, spec.dtype)
                for shape, spec in zip(shapes, self.outputs, strict=True)
            )
        self._buffers[shapes] = buffers
        if len(self._buffers) > _KEPT_BUFFERS:
            del self._buffers[next(iter(self._buffers))]
        return buffers


def _memory(array: npt.NDArray[Any]) -> tuple[str, int, Any, tuple[int, ...], int]:
    """Where an array lies, as a binding wants to be told."""
    return "cpu", 0, array.dtype, array.shape, array.ctypes.data


def _compare(path: Path, kind: str, found: list[Any], specs: tuple[TensorSpec, ...]) -> None:
    """The graph's own tensors must be the declared ones, fixed axes included."""
    declared = {spec.name: spec for spec in specs}
    if sorted(node.name for node in found) != sorted(declared):
        names = [node.name for node in found]
        raise BundleError(f"{path}: has {kind}s {names}; the bundle declares {sorted(declared)}")
    for node in found:
        spec = declared[node.name]
        fits = len(node.shape) == len(spec.shape) and all(
            not (isinstance(a, int) and isinstance(b, int)) or a == b
            for a, b in zip(node.shape, spec.shape, strict=True)
        )
        if node.type != _TYPES[spec.dtype] or not fits:
            raise BundleError(
                f"{path}: {kind} {node.name} is {node.type} {node.shape}; "
                f"the bundle declares {spec.dtype} {list(spec.shape)}"
            )


def probe() -> str:
    """Run a one-node graph, and say what ran it.

    Raises:
        SessionError: If the runtime is there but cannot run a kernel.
    """
    try:
        session = ort.InferenceSession(_DOUBLE, providers=["CPUExecutionProvider"])
        (twice,) = session.run(None, {"x": np.array([21.0], np.float32)})
    except Exception as exc:
        raise SessionError(f"ONNX Runtime cannot run a kernel: {exc}") from exc
    if twice[0] != 42.0:
        raise SessionError(f"ONNX Runtime computes 21 + 21 = {twice[0]}")
    return f"onnxruntime {ort.__version__}"


_DOUBLE: Final = bytes.fromhex(
    "080812003a3a0a0e0a01780a017812017922034164641206646f75626c655a0f0a0178120a0a0808"
    "0112040a020801620f0a0179120a0a08080112040a02080142040a00100d"
)
"""The ONNX graph ``y = x + x``."""
