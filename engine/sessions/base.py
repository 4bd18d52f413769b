"""The session protocol, and the door where every tensor is checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from engine.bundle import VAE_SCALE_FACTOR, TensorSpec
from engine.errors import TensorMismatch

_PIXEL_AXES: Final = {"height": "height/8", "width": "width/8"}


class Session(Protocol):
    """One network, opened on one device."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What ``run`` must be fed."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What ``run`` returns, in this order."""

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> tuple[npt.NDArray[Any], ...]:
        """Run the network once.

        Args:
            feeds: An array for each input, C-contiguous, of the declared dtype and shape.

        Returns:
            The outputs. They are the session's own buffers, overwritten by the next run.

        Raises:
            TensorMismatch: If an array does not fit.
            SessionError: If the runtime fails.
        """

    def close(self) -> None:
        """Give back the device's memory; the session is of no use afterwards."""


def bind_axes(
    specs: tuple[TensorSpec, ...], feeds: Mapping[str, npt.NDArray[Any]]
) -> dict[str, int]:
    """Check arrays against the declared inputs and return the size of every symbolic axis.

    Raises:
        TensorMismatch: Naming the tensor, what it is and what it must be.
    """
    if len(feeds) != len(specs):
        unknown = sorted(set(feeds) - {spec.name for spec in specs})
        if unknown:
            raise TensorMismatch(f"inputs {unknown} are not known to the network")
    axes: dict[str, int] = {}
    for spec in specs:
        array = feeds.get(spec.name)
        if array is None:
            raise TensorMismatch(f"input {spec.name} is missing")
        if array.dtype != np.dtype(spec.dtype):
            raise TensorMismatch(f"input {spec.name} is {array.dtype}; it must be {spec.dtype}")
        if array.ndim != len(spec.shape):
            raise _wrong_shape(spec, array)
        for axis, size in zip(spec.shape, array.shape, strict=True):
            if axes.setdefault(axis, size) != size if isinstance(axis, str) else axis != size:
                raise _wrong_shape(spec, array)
        if not array.flags.c_contiguous:
            raise TensorMismatch(f"input {spec.name} is not contiguous in memory")
    for pixels, cells in _PIXEL_AXES.items():
        if pixels in axes:
            if axes[pixels] % VAE_SCALE_FACTOR:
                raise TensorMismatch(f"{pixels} is {axes[pixels]}; it must be a multiple of 8")
            axes[cells] = axes[pixels] // VAE_SCALE_FACTOR
        elif cells in axes:
            axes[pixels] = axes[cells] * VAE_SCALE_FACTOR
    return axes


def shape_of(spec: TensorSpec, axes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of a tensor once the symbolic axes have sizes."""
    return tuple(axes[axis] if isinstance(axis, str) else axis for axis in spec.shape)


def _wrong_shape(spec: TensorSpec, array: npt.NDArray[Any]) -> TensorMismatch:
    return TensorMismatch(f"input {spec.name} has shape {array.shape}; it must be {spec.shape}")
