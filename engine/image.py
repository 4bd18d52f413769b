"""Pictures as bytes to arrays and back; the only place where channels change their order.

Inside the engine a picture is RGB uint8 (H, W, 3). Only PNG and JPEG are read, known by their
bytes. A file is taken apart before anything is decoded (``png.py``, ``jpeg.py``): its size is held
against the limits, and the decoder gets nothing but what the pixels depend on.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from engine import jpeg, png
from engine.errors import InputError
from engine.header import LIMITS, Container, Header, PictureLimits
from engine.orientation import upright

Rgb = npt.NDArray[np.uint8]
Grey = npt.NDArray[np.uint8]

MAX_BYTES: Final = LIMITS.max_bytes

_BAND: Final = 1 << 19
"""Pixels that are blended at once, so that what is in between stays small."""


def sniff(data: bytes, *, field: str = "image", limits: PictureLimits = LIMITS) -> Header:
    """Read format and size without decoding, and refuse what must not be decoded.

    Args:
        data: The file's bytes.
        field: What the picture is for, named in the error.
        limits: What is allowed.

    Raises:
        InputError: If it is no whole PNG or JPEG, is animated, or is beyond the limits.
    """
    return _take_apart(data, field, limits).header


def decode_picture(data: bytes, *, field: str = "image", limits: PictureLimits = LIMITS) -> Rgb:
    """Decode a PNG or JPEG to (H, W, 3) uint8 RGB.

    EXIF orientation is applied, alpha is laid over white, 16-bit values are scaled to 8.

    Raises:
        InputError: If the bytes are not a whole PNG or JPEG within the limits.
        MemoryError: If there is no memory for it.
    """
    container = _take_apart(data, field, limits)
    pixels = _decode(container, field)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    elif pixels.shape[2] == 4:
        pixels = _over(pixels, background=255)
    return upright(pixels, container.orientation)


def decode_mask(data: bytes, *, field: str = "mask", limits: PictureLimits = LIMITS) -> Grey:
    """Decode a PNG or JPEG to its luminance, (H, W) uint8; alpha is laid over black.

    Raises:
        InputError: If the bytes are not a whole PNG or JPEG within the limits.
        MemoryError: If there is no memory for it.
    """
    container = _take_apart(data, field, limits)
    pixels = _decode(container, field)
    if pixels.ndim == 3:
        rgb = _over(pixels, background=0) if pixels.shape[2] == 4 else pixels
        pixels = np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), np.uint8)
    return upright(pixels, container.orientation)


def encode_png(rgb: Rgb) -> bytes:
    """Encode (H, W, 3) uint8 RGB as PNG, without loss and without metadata; see ``png.encode``."""
    return png.encode(rgb)


def encode_jpeg(rgb: Rgb, quality: int = 95) -> bytes:
    """Encode (H, W, 3) uint8 RGB as JPEG of the given quality (1 to 100)."""
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    ok, buffer = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise InputError("image", f"of shape {rgb.shape} could not be encoded as JPEG")
    return buffer.tobytes()


def _take_apart(data: bytes, field: str, limits: PictureLimits) -> Container:
    if len(data) > limits.max_bytes:
        raise InputError(field, f"has {len(data)} bytes; at most {limits.max_bytes} are allowed")
    if data.startswith(png.SIGNATURE):
        return png.take_apart(data, limits=limits, field=field)
    if data.startswith(jpeg.SIGNATURE):
        return jpeg.take_apart(data, limits=limits, field=field)
    raise InputError(field, "is neither a PNG nor a JPEG picture")


def _decode(container: Container, field: str) -> npt.NDArray[np.uint8]:
    """(H, W), (H, W, 3) or (H, W, 4) uint8 in RGB order, turned as it is stored."""
    header = container.header
    kind = header.format.upper()
    # A JPEG goes through the colour path, which knows CMYK; a PNG keeps its alpha and depth only
    # when left unchanged.
    colour = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    flags = colour if header.format == "jpeg" else cv2.IMREAD_UNCHANGED
    try:
        pixels = cv2.imdecode(np.frombuffer(container.bare, np.uint8), flags)
    except cv2.error as exc:
        if exc.code == cv2.Error.StsNoMem:
            raise MemoryError(str(exc)) from exc
        raise InputError(field, f"is a damaged or incomplete {kind} picture") from exc
    if pixels is None:
        raise InputError(field, f"is a damaged or incomplete {kind} picture")
    if pixels.shape[:2] != (header.height, header.width):
        raise InputError(field, f"is a {kind} whose header and data disagree")
    clear = pixels == container.clear_level if container.clear_level is not None else None
    if pixels.dtype == np.uint16:
        pixels = cv2.convertScaleAbs(pixels, alpha=1 / 257)  # 65535 / 257 = 255; to the nearest
    if clear is not None and pixels.ndim == 2:  # OpenCV leaves the transparent level out
        alpha = np.where(clear, np.uint8(0), np.uint8(255))
        return np.dstack([pixels, pixels, pixels, alpha])
    if pixels.ndim == 2:
        return np.ascontiguousarray(pixels, np.uint8)
    if pixels.shape[2] == 4:
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA), np.uint8)
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), np.uint8)


def _over(rgba: npt.NDArray[np.uint8], *, background: int) -> Rgb:
    """Lay straight-alpha RGBA over a grey level, rounding to nearest."""
    height, width = rgba.shape[:2]
    rgb = np.empty((height, width, 3), np.uint8)
    step = max(1, _BAND // width)
    for top in range(0, height, step):
        band = rgba[top : top + step].astype(np.uint16)
        colour, alpha = band[..., :3], band[..., 3:]
        rgb[top : top + step] = (colour * alpha + (background * (255 - alpha) + 127)) // 255
    return rgb
