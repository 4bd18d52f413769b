"""Pictures as bytes to arrays and back; the only place where channels change their order.

Inside the engine a picture is RGB uint8 (H, W, 3). Only PNG and JPEG are read, known by their
bytes; their size is read from the header before anything is decoded.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from engine.errors import InputError

Rgb = npt.NDArray[np.uint8]
Grey = npt.NDArray[np.uint8]

MAX_SIDE: Final = 16384
MAX_PIXELS: Final = 64_000_000
MAX_BYTES: Final = 64 << 20

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_JPEG: Final = b"\xff\xd8\xff"
_JPEG_SIZES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of the frame header, which carries the size."""

_FAST_PNG: Final = (
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP),
)

_ORIENTATION_TAG: Final = 0x0112
_SHORT: Final = 3
_PARAMETERLESS: Final = frozenset({0x01, *range(0xD0, 0xD8)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the first bytes say: ``format`` is ``"png"`` or ``"jpeg"``, sizes in pixels."""

    format: str
    width: int
    height: int


def sniff(data: bytes, *, field: str = "image") -> Header:
    """Read format and size from the header, and refuse what must not be decoded.

    Args:
        data: The file's bytes.
        field: What the picture is for, named in the error.

    Raises:
        InputError: If it is not a PNG or JPEG, or larger than 16384 on a side or 64 megapixels.
    """
    if len(data) > MAX_BYTES:
        raise InputError(field, f"has {len(data)} bytes; at most {MAX_BYTES} are allowed")
    if data.startswith(_PNG):
        header = _png_header(data, field)
    elif data.startswith(_JPEG):
        header = _jpeg_header(data, field)
    else:
        raise InputError(field, "is neither a PNG nor a JPEG picture")
    if min(header.width, header.height) < 1:
        raise InputError(field, f"says it is {header.width}x{header.height} pixels")
    if max(header.width, header.height) > MAX_SIDE or header.width * header.height > MAX_PIXELS:
        allowed = f"at most {MAX_SIDE} on a side and {MAX_PIXELS} in all are allowed"
        raise InputError(field, f"is {header.width}x{header.height} pixels; {allowed}")
    return header


def decode_picture(data: bytes, *, field: str = "image") -> Rgb:
    """Decode a PNG or JPEG to (H, W, 3) uint8 RGB.

    EXIF orientation is applied, alpha is laid over white, 16-bit values are scaled to 8.

    Raises:
        InputError: If the bytes are not a whole PNG or JPEG within the limits.
    """
    pixels = _decode(data, field)
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=2)
    if pixels.shape[2] == 4:
        return _over(pixels, background=255)
    return pixels


def decode_mask(data: bytes, *, field: str = "mask") -> Grey:
    """Decode a PNG or JPEG to its luminance, (H, W) uint8; alpha is laid over black.

    Raises:
        InputError: If the bytes are not a whole PNG or JPEG within the limits.
    """
    pixels = _decode(data, field)
    if pixels.ndim == 2:
        return pixels
    rgb = _over(pixels, background=0) if pixels.shape[2] == 4 else pixels
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), np.uint8)


def encode_png(rgb: Rgb) -> bytes:
    """Encode (H, W, 3) uint8 RGB as PNG, without loss and without metadata.

    One filter and runs only: of a photograph that is a third of the time of zlib's level 3 and no
    more bytes.
    """
    return _encode(".png", rgb, _FAST_PNG)


def encode_jpeg(rgb: Rgb, quality: int = 95) -> bytes:
    """Encode (H, W, 3) uint8 RGB as JPEG of the given quality (1 to 100)."""
    return _encode(".jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, quality])


def _encode(suffix: str, rgb: Rgb, options: Sequence[int]) -> bytes:
    ok, buffer = cv2.imencode(suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), options)
    if not ok:
        raise InputError("image", f"of shape {rgb.shape} could not be encoded as {suffix}")
    return buffer.tobytes()


def _decode(data: bytes, field: str) -> npt.NDArray[np.uint8]:
    """(H, W), (H, W, 3) or (H, W, 4) uint8 in RGB order, upright."""
    header = sniff(data, field=field)
    kind = header.format.upper()
    # A JPEG goes through the colour path, which knows CMYK and turns the picture upright;
    # a PNG keeps its alpha and depth only when left unchanged.
    flags = cv2.IMREAD_COLOR if header.format == "jpeg" else cv2.IMREAD_UNCHANGED
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as exc:
        raise InputError(
            field, f"is a damaged or incomplete {header.format.upper()} picture"
        ) from exc
    if pixels is None:
        raise InputError(field, f"is a damaged or incomplete {header.format.upper()} picture")
    if sorted(pixels.shape[:2]) != sorted((header.height, header.width)):
        raise InputError(field, f"is a {kind} whose header and data disagree")
    if header.format == "png":
        pixels = _with_grey_transparency(pixels, data)
        pixels = _upright(pixels, _png_orientation(data))
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if pixels.ndim == 2:
        return np.ascontiguousarray(pixels, np.uint8)
    if pixels.shape[2] == 2:  # grey with alpha
        pixels = pixels[..., [0, 0, 0, 1]]
    if pixels.shape[2] == 4:
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA), np.uint8)
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), np.uint8)


def _over(rgba: npt.NDArray[np.uint8], *, background: int) -> Rgb:
    """Lay straight-alpha RGBA over a grey level, rounding to nearest."""
    colour, alpha = rgba[..., :3].astype(np.uint16), rgba[..., 3:].astype(np.uint16)
    return ((colour * alpha + background * (255 - alpha) + 127) // 255).astype(np.uint8)


def _png_header(data: bytes, field: str) -> Header:
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise InputError(field, "is a PNG that ends before its header does")
    width, height = struct.unpack(">II", data[16:24])
    return Header(format="png", width=width, height=height)


def _png_chunk(data: bytes, wanted: bytes) -> bytes:
    """The first chunk of a kind before the picture's data; empty where there is none."""
    position = len(_PNG)
    while position + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        if kind == wanted:
            return data[position + 8 : position + 8 + length]
        if kind in (b"IDAT", b"IEND"):
            break
        position += 12 + length
    return b""


def _with_grey_transparency(pixels: npt.NDArray[Any], data: bytes) -> npt.NDArray[Any]:
    """Give a grey PNG with a transparent level (tRNS) its alpha, which OpenCV leaves out."""
    depth, colour_type, level = data[24], data[25], _png_chunk(data, b"tRNS")
    if colour_type != 0 or len(level) != 2 or pixels.ndim != 2:
        return pixels
    full = np.iinfo(pixels.dtype).max
    key = int.from_bytes(level, "big") * full // ((1 << depth) - 1)
    alpha = np.where(pixels == key, 0, full).astype(pixels.dtype)
    return np.dstack([pixels, pixels, pixels, alpha])


def _png_orientation(data: bytes) -> int:
    """The EXIF orientation in a PNG's eXIf chunk (PNG specification, third edition); 1 without."""
    return _tiff_orientation(_png_chunk(data, b"eXIf"))


def _tiff_orientation(block: bytes) -> int:
    """The orientation (tag 0x0112) in the first directory of a TIFF block; 1 where there is none
    or the block is damaged."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, start)
        for i in range(count):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", block, start + 2 + 12 * i)
            if (tag, kind) == (_ORIENTATION_TAG, _SHORT):
                return value if 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1


def _upright(pixels: npt.NDArray[np.generic], orientation: int) -> npt.NDArray[Any]:
    """Undo an EXIF orientation (EXIF 2.32, table 6): mirror, then turn clockwise."""
    if orientation in (2, 4, 5, 7):
        pixels = pixels[:, ::-1]
    turns = {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}[orientation]
    return np.ascontiguousarray(np.rot90(pixels, turns))


def _jpeg_header(data: bytes, field: str) -> Header:
    position = 2
    while position + 9 < len(data):
        if data[position] != 0xFF:
            raise InputError(field, "is a damaged JPEG picture")
        marker = data[position + 1]
        if marker == 0xFF or marker in _PARAMETERLESS:
            position += 1 if marker == 0xFF else 2
            continue
        if marker in _JPEG_SIZES:
            height, width = struct.unpack(">HH", data[position + 5 : position + 9])
            return Header(format="jpeg", width=width, height=height)
        position += 2 + struct.unpack(">H", data[position + 2 : position + 4])[0]
    raise InputError(field, "is a JPEG that ends before its header does")
