"""Safetensors files as bytes: what a file holds, and a file written from pieces of another.

Tensors are copied as they lie, whatever their type, in pieces of a few MB, so that a checkpoint of
several GB is taken apart without a tensor library and with hardly any memory.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Final

from safetensors import SafetensorError, safe_open

from export.errors import ExportError, in_a_line

DTYPES: Final = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}
"""Types of weights that are read, and the bytes of one number."""

_PICKLES: Final = (".bin", ".ckpt", ".pt", ".pth")
_PIECE: Final = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """Where a tensor lies in a file: its type, its shape, and its first byte."""

    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """Its length in bytes."""
        return DTYPES.get(self.dtype, 1) * prod(self.shape)

    def reshaped(self, *shape: int) -> Tensor:
        """The same numbers in another shape."""
        return Tensor(dtype=self.dtype, shape=shape, start=self.start)

    def rows(self, first: int, last: int) -> Tensor:
        """The rows from ``first`` to ``last``, which is not among them."""
        row = self.nbytes // self.shape[0]
        shape = (last - first, *self.shape[1:])
        return Tensor(dtype=self.dtype, shape=shape, start=self.start + first * row)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFile:
    """The header of a safetensors file."""

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    @classmethod
    def open(cls, path: Path) -> WeightFile:
        """Read the header.

        Raises:
            ExportError: When it is no whole safetensors file.
        """
        if path.suffix in _PICKLES:
            raise ExportError(
                f"{path}: is a pickle, which can run code when it is opened; "
                "only .safetensors weights are read, convert it first"
            )
        try:
            with safe_open(path, framework="np"):  # checks every entry against the file's length
                pass
            with path.open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                entries: dict[str, Any] = json.loads(stream.read(length))
        except (SafetensorError, OSError, ValueError) as exc:
            raise ExportError(f"{path}: is no whole .safetensors file: {in_a_line(exc)}") from exc
        metadata = entries.pop("__metadata__", None) or {}
        tensors = {
            name: Tensor(
                dtype=entry["dtype"],
                shape=tuple(entry["shape"]),
                start=8 + length + entry["data_offsets"][0],
            )
            for name, entry in entries.items()
        }
        return cls(path=path, tensors=tensors, metadata=metadata)

    def write(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Write a file of some of the tensors, or pieces of them, under other names."""
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, tensor in tensors.items():
            offsets = [end, end := end + tensor.nbytes]
            entries[name] = {
                "dtype": tensor.dtype,
                "shape": tensor.shape,
                "data_offsets": offsets,
            }
        header = json.dumps(entries, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        with self.path.open("rb") as source, path.open("wb") as target:
            target.write(struct.pack("<Q", len(header)) + header)
            for tensor in tensors.values():
                _copy(source, target, tensor)


def _copy(source: BinaryIO, target: BinaryIO, tensor: Tensor) -> None:
    source.seek(tensor.start)
    left = tensor.nbytes
    while left:
        piece = source.read(min(left, _PIECE))
        target.write(piece)
        left -= len(piece)
