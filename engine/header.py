"""What a picture file says before it is decoded, and how much of it is too much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from engine.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureLimits:
    """What is decoded at all.

    Attributes:
        max_bytes: Largest file in bytes.
        min_side: Shortest side in pixels.
        max_side: Longest side in pixels.
        max_pixels: Most pixels in all.
        max_aspect: The long side is at most so many times the short one; None allows every shape.
    """

    max_bytes: int = 64 << 20
    min_side: int = 1
    max_side: int = 16384
    max_pixels: int = 64_000_000
    max_aspect: int | None = None


LIMITS: Final = PictureLimits()
"""For pictures that the caller chose: files on the command line, and Python."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the file says of itself.

    Attributes:
        format: ``"png"`` or ``"jpeg"``.
        width: In pixels, as stored: before the EXIF orientation is applied.
        height: In pixels, as stored.
        length: Bytes from the first to the end of the picture; what follows is not part of it.
    """

    format: str
    width: int
    height: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A PNG or JPEG file taken apart, nothing decoded.

    Attributes:
        header: Format and size.
        bare: The file with only what the pixels depend on. Text, colour profiles, EXIF, thumbnails
            and whatever follows the picture never reach a decoder.
        orientation: By EXIF, 1 to 8.
        clear_level: The level that is transparent in a grey PNG, of 255 (of 65535 at 16 bits).
    """

    header: Header
    bare: bytes
    orientation: int = 1
    clear_level: int | None = None


def check_size(width: int, height: int, *, limits: PictureLimits, field: str) -> None:
    """Refuse a picture by the size in its header.

    Raises:
        InputError: With the size and what is allowed.
    """
    size = f"{width}x{height} pixels"
    if min(width, height) < 1:
        raise InputError(field, f"says it is {size}")
    if max(width, height) > limits.max_side or width * height > limits.max_pixels:
        allowed = f"at most {limits.max_side} on a side and {limits.max_pixels} in all are allowed"
        raise InputError(field, f"is {size}; {allowed}")
    if min(width, height) < limits.min_side:
        raise InputError(field, f"is {size}; at least {limits.min_side} on a side are needed")
    aspect = limits.max_aspect
    if aspect is not None and max(width, height) > aspect * min(width, height):
        raise InputError(field, f"is {size}; one side may be {aspect} times the other at most")
