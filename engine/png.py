"""PNG files (PNG specification, third edition): written, and taken apart chunk by chunk before
anything of them is decoded."""

from __future__ import annotations

import struct
import zlib
from typing import Final

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from engine.errors import InputError
from engine.header import Container, Header, PictureLimits, check_size
from engine.orientation import read_orientation

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
MAX_CHUNKS: Final = 65536
"""Encoders write the data in pieces of 8 KiB and more: enough for half a gigabyte."""

MAX_ANCILLARY: Final = 4 << 20
"""Largest chunk in bytes that is no part of the pixels: no text or colour profile comes near."""

_PIXELS: Final = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_GREY: Final = 0
_RGB: Final = 2
_UP: Final = 2
_LEVEL: Final = 1


def encode(rgb: npt.NDArray[np.uint8]) -> bytes:
    """Write (H, W, 3) uint8 RGB without loss and without metadata.

    Every row is stored as its difference from the one above (filter type 2), and deflated by ISA-L:
    of a photograph that is a quarter of the time of libpng's fastest setting, for 5 % more bytes.

    Raises:
        InputError: If the array is no such picture.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or not rgb.size:
        raise InputError("image", f"of {rgb.dtype} {rgb.shape} cannot be written as a PNG")
    height, width = rgb.shape[:2]
    rows = np.ascontiguousarray(rgb).reshape(height, width * 3)
    filtered = np.empty((height, 1 + width * 3), np.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 8, _RGB, 0, 0, 0)
    data = isal_zlib.compress(filtered.reshape(-1).data, _LEVEL)
    chunks = [_chunk(b"IHDR", header), _chunk(b"IDAT", data), _chunk(b"IEND", b"")]
    return SIGNATURE + b"".join(chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = isal_zlib.crc32(data, isal_zlib.crc32(kind))
    return b"".join([struct.pack(">I", len(data)), kind, data, struct.pack(">I", checksum)])


def take_apart(data: bytes, *, limits: PictureLimits, field: str) -> Container:
    """Read a PNG's chunks, and refuse what must not be decoded.

    Raises:
        InputError: With a sentence about the field.
    """
    width, height, depth, colour = _header(data, field)
    check_size(width, height, limits=limits, field=field)
    first: dict[bytes, bytes] = {}
    kept = [SIGNATURE]
    position = len(SIGNATURE)
    for _ in range(MAX_CHUNKS):
        if position + 12 > len(data):
            raise InputError(field, "is a PNG that ends too early")
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if not kind.isalpha():
            raise InputError(field, "is a damaged PNG picture")
        name = kind.decode("ascii")
        if kind not in _PIXELS and length > MAX_ANCILLARY:
            allowed = f"at most {MAX_ANCILLARY} are allowed"
            raise InputError(field, f"is a PNG whose {name} chunk has {length} bytes; {allowed}")
        if end > len(data):
            raise InputError(field, "is a PNG that ends too early")
        if kind == b"acTL":
            raise InputError(field, "is an animated PNG; only still pictures are allowed")
        if kind in _PIXELS:
            kept.append(data[position:end])
        elif name[0].isupper():
            raise InputError(field, f"is a PNG with an unknown chunk: {name}")
        if kind in (b"tRNS", b"eXIf") and b"IDAT" not in first and _sound(data, position, end):
            first.setdefault(kind, data[position + 8 : end - 4])
        elif kind == b"IDAT":
            first.setdefault(kind, b"")
        position = end
        if kind == b"IEND":
            break
    else:
        raise InputError(field, f"is a PNG of more than {MAX_CHUNKS} chunks")
    if b"IDAT" not in first:
        raise InputError(field, "is a PNG without any pixels")
    clear = first.get(b"tRNS", b"")
    full = (1 << depth) - 1
    level = (int.from_bytes(clear, "big") & full) * (1 if depth == 16 else 255 // full)
    return Container(
        header=Header(format="png", width=width, height=height, length=position),
        bare=b"".join(kept),
        orientation=read_orientation(first.get(b"eXIf", b"")),
        clear_level=level if colour == _GREY and len(clear) == 2 else None,
    )


def _header(data: bytes, field: str) -> tuple[int, int, int, int]:
    """Width, height, bits a sample and colour type."""
    if len(data) < 33:
        raise InputError(field, "is a PNG that ends before its header does")
    length, kind, width, height, depth, colour = struct.unpack_from(">I4sIIBB", data, 8)
    if (length, kind) != (13, b"IHDR") or depth not in (1, 2, 4, 8, 16):
        raise InputError(field, "is a damaged PNG picture")
    return width, height, depth, colour


def _sound(data: bytes, position: int, end: int) -> bool:
    """Whether the check sum of a chunk is right; a decoder passes over one whose is not."""
    return data[end - 4 : end] == struct.pack(">I", zlib.crc32(data[position + 4 : end - 4]))
