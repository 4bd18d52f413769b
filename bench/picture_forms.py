"""Pictures in every form that PNG and JPEG have, written from their samples.

The PNG writer is our own, so that the samples in the file are known whatever a library thinks of
them; JPEGs come from OpenCV and, those for print, from Pillow.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
CHANNELS: Final = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}
DEPTHS: Final = {
    GREY: (1, 2, 4, 8, 16),
    RGB: (8, 16),
    PALETTE: (1, 2, 4, 8),
    GREY_ALPHA: (8, 16),
    RGBA: (8, 16),
}
SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"

_ADAM7: Final = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
"""Column, row and steps of each pass."""

Samples = npt.NDArray[np.uint16]


def chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG chunk with its length and check sum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header(width: int, height: int, *, depth: int, colour: int, interlaced: bool = False) -> bytes:
    """An IHDR chunk."""
    fields = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    return chunk(b"IHDR", fields)


def png(
    samples: Samples,
    *,
    depth: int,
    colour: int,
    interlaced: bool = False,
    extra: Sequence[bytes] = (),
    pieces: int = 1,
) -> bytes:
    """A PNG of (H, W, channels) samples, its rows filtered by all five filters in turn.

    Args:
        samples: As stored: levels of ``depth`` bits, or palette entries.
        depth: Bits a sample.
        colour: Colour type.
        interlaced: By Adam7.
        extra: Chunks between the header and the data.
        pieces: How many IDAT chunks the data is cut into.
    """
    height, width = samples.shape[:2]
    parts = [samples]
    if interlaced:
        cut = (samples[y::dy, x::dx] for x, y, dx, dy in _ADAM7)
        parts = [part for part in cut if part.size]
    data = zlib.compress(b"".join(_filtered(part, depth) for part in parts))
    step = -(-len(data) // pieces)
    return b"".join(
        [
            SIGNATURE,
            header(width, height, depth=depth, colour=colour, interlaced=interlaced),
            *extra,
            *(chunk(b"IDAT", data[i : i + step]) for i in range(0, len(data), step)),
            chunk(b"IEND", b""),
        ]
    )


def exif(orientation: int, order: str = "<") -> bytes:
    """A TIFF block whose only entry is the orientation."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(f"{order}HHIHH", 0x0112, 3, 1, orientation, 0)
    return mark + struct.pack(f"{order}IH", 8, 1) + entry + bytes(4)


def segment(marker: int, body: bytes) -> bytes:
    """A JPEG segment with its length."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def with_segment(jpeg: bytes, marker: int, body: bytes) -> bytes:
    """A JPEG with one more segment behind its first marker."""
    return jpeg[:2] + segment(marker, body) + jpeg[2:]


def jpeg(rgb: npt.NDArray[np.uint8], *options: int) -> bytes:
    """A JPEG of (H, W, 3) or (H, W) uint8, with OpenCV's options."""
    pixels = rgb[..., ::-1] if rgb.ndim == 3 else rgb
    return bytes(cv2.imencode(".jpg", pixels, list(options))[1].tobytes())


def print_jpeg(cmyk: npt.NDArray[np.uint8], *, ycck: bool = False, **options: Any) -> bytes:
    """A JPEG of (H, W, 4) uint8 for print; YCCK differs from CMYK by the Adobe segment's word."""
    from PIL import Image

    stream = io.BytesIO()
    height, width = cmyk.shape[:2]
    Image.frombytes("CMYK", (width, height), cmyk.tobytes()).save(stream, "JPEG", **options)
    data = bytearray(stream.getvalue())
    data[data.index(b"Adobe") + 11] = 2 if ycck else 0
    return bytes(data)


def png_forms(samples: np.random.RandomState) -> Iterator[tuple[str, bytes]]:
    """Every colour type and depth, plain and interlaced, with and without transparency."""
    for colour, depths in DEPTHS.items():
        for depth in depths:
            shape = (21, 27, CHANNELS[colour])
            pixels = samples.randint(0, 1 << depth, shape).astype(np.uint16)
            for interlaced in (False, True):
                for clear in (False, True):
                    if clear and colour in (GREY_ALPHA, RGBA):
                        continue
                    extra = []
                    if colour == PALETTE:
                        extra.append(chunk(b"PLTE", samples.bytes(3 << depth)))
                    if clear and colour == PALETTE:
                        extra.append(chunk(b"tRNS", samples.bytes(1 << (depth - 1))))
                    elif clear:
                        extra.append(chunk(b"tRNS", pixels[3, 4].astype(">u2").tobytes()))
                    name = f"png-{colour}-{depth}{'-adam7' * interlaced}{'-clear' * clear}"
                    yield (
                        name,
                        png(pixels, depth=depth, colour=colour, interlaced=interlaced, extra=extra),
                    )


def jpeg_forms(samples: np.random.RandomState) -> Iterator[tuple[str, bytes]]:
    """Grey, colour with every subsampling, progressive, with restart marks, turned by EXIF."""
    rough = samples.randint(0, 256, (45, 53, 3)).astype(np.uint8)
    smooth = np.asarray(cv2.GaussianBlur(rough, (0, 0), 4), np.uint8)
    progressive = (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    yield "jpeg-grey", jpeg(smooth[..., 0])
    yield "jpeg-grey-progressive", jpeg(smooth[..., 0], *progressive)
    for name, factor in (
        ("444", cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
        ("422", cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422),
        ("420", cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420),
        ("411", cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411),
    ):
        sampling = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor)
        yield f"jpeg-{name}", jpeg(smooth, *sampling)
        yield f"jpeg-{name}-progressive", jpeg(smooth, *sampling, *progressive)
    yield "jpeg-restart", jpeg(smooth, cv2.IMWRITE_JPEG_RST_INTERVAL, 2)
    yield "jpeg-rough", jpeg(rough, cv2.IMWRITE_JPEG_QUALITY, 30)


def _filtered(samples: Samples, depth: int) -> bytes:
    """Rows of (H, W, channels) samples, packed and filtered."""
    height, width, channels = samples.shape
    if depth == 16:
        rows = samples.astype(">u2").reshape(height, -1).view(np.uint8)
    else:
        bits = np.unpackbits(samples.astype(np.uint8)[..., None], axis=3)[..., 8 - depth :]
        rows = np.packbits(bits.reshape(height, -1), axis=1)
    back = max(1, channels * depth // 8)
    above = np.zeros_like(rows[0]).astype(int)
    out = bytearray()
    for i, row in enumerate(rows.astype(int)):
        left, corner = np.zeros_like(row), np.zeros_like(row)
        left[back:], corner[back:] = row[:-back], above[:-back]
        guess = (0, left, above, (left + above) // 2, _paeth(left, above, corner))[i % 5]
        out += bytes([i % 5]) + ((row - guess) % 256).astype(np.uint8).tobytes()
        above = row
    return bytes(out)


def _paeth(a: npt.NDArray[Any], b: npt.NDArray[Any], c: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The Paeth predictor: whichever of left, above and corner is nearest to a + b - c."""
    p = a + b - c
    pa, pb, pc = abs(p - a), abs(p - b), abs(p - c)
    nearest = np.where((pa <= pb) & (pa <= pc), a, np.where(pb <= pc, b, c))
    return np.asarray(nearest)
