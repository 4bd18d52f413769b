"""JPEG files taken apart, marker by marker (ITU-T T.81, annex B); nothing is decoded."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from dataclasses import field as attribute
from typing import Final

from engine.errors import InputError
from engine.header import Container, Header, PictureLimits, check_size
from engine.orientation import read_orientation

SIGNATURE: Final = b"\xff\xd8\xff"
MAX_SCANS: Final = 100
"""A progressive picture has about ten. Each scan costs a pass over all pixels."""

MAX_SEGMENTS: Final = 4096
"""Bounds the search for the size. Cameras write depth maps and previews in hundreds of segments;
a colour profile for print alone has half a megabyte, so that no number of bytes would do."""

_SOS, _EOI, _COM = 0xDA, 0xD9, 0xFE
_JFIF, _EXIF, _ADOBE = 0xE0, 0xE1, 0xEE
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of the frame header, which carries the size."""

_DROPPED: Final = frozenset({*range(0xE0, 0xF0), _COM}) - {_JFIF, _ADOBE}
"""Application data and comments; JFIF and Adobe say how the colours are meant."""

_NEXT: Final = re.compile(rb"\xff+([\x01-\xfe])")
_AFTER_DATA: Final = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
"""The next marker in compressed data, where FF 00 is a byte and RST0 to RST7 belong to it."""


@dataclass(slots=True)
class _Found:
    """What was seen so far."""

    size: tuple[int, int] | None = None
    orientation: int | None = None
    scans: int = 0
    data_from: int = 0
    kept: list[bytes] = attribute(default_factory=lambda: [SIGNATURE[:2]])


def take_apart(data: bytes, *, limits: PictureLimits, field: str) -> Container:
    """Read a JPEG's markers, and refuse what must not be decoded.

    Raises:
        InputError: With a sentence about the field.
    """
    found = _Found()
    position = 2
    for _ in range(MAX_SEGMENTS):
        pattern = _AFTER_DATA if found.scans else _NEXT
        match = pattern.search(data, position) if found.scans else pattern.match(data, position)
        if match is None:
            raise _broken(data, position, found, field)
        marker, start = match[1][0], match.end()
        if marker == _EOI:
            return _container(data, found, end=start, field=field)
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            position = start
            continue
        position = _segment(data, marker, start, found=found, limits=limits, field=field)
    raise InputError(field, f"is a JPEG of more than {MAX_SEGMENTS} segments")


def _segment(
    data: bytes, marker: int, start: int, *, found: _Found, limits: PictureLimits, field: str
) -> int:
    """Take note of one segment, whose length stands at ``start``; returns where it ends."""
    if start + 2 > len(data):
        raise _early(found, field)
    length = int.from_bytes(data[start : start + 2], "big")
    end = start + length
    if length < 2:
        raise _damaged(field)
    if end > len(data):
        raise _early(found, field)
    body = data[start + 2 : end]
    if marker in _FRAMES:
        if found.size is not None:
            raise _damaged(field)
        found.size = _frame(body, limits=limits, field=field)
    elif marker == _EXIF and found.orientation is None and body.startswith(b"Exif\0\0"):
        found.orientation = read_orientation(body[6:])
    elif marker == _SOS:
        if found.size is None:
            raise _damaged(field)
        found.scans += 1
        if found.scans == 1:
            found.data_from = start - 2
        if found.scans > MAX_SCANS:
            raise InputError(field, f"is a JPEG of more than {MAX_SCANS} scans")
    if not found.scans and marker not in _DROPPED:
        found.kept.append(data[start - 2 : end])
    return end


def _frame(body: bytes, *, limits: PictureLimits, field: str) -> tuple[int, int]:
    """Width and height in a frame header."""
    if len(body) < 6:
        raise _damaged(field)
    bits, height, width, components = struct.unpack_from(">BHHB", body)
    check_size(width, height, limits=limits, field=field)
    if bits != 8:
        raise InputError(field, f"is a JPEG of {bits} bits a sample; only 8 are allowed")
    if components not in (1, 3, 4):
        raise InputError(field, f"is a JPEG of {components} components; allowed: 1, 3, 4")
    return width, height


def _container(data: bytes, found: _Found, *, end: int, field: str) -> Container:
    if found.size is None or not found.scans:
        raise _damaged(field)
    width, height = found.size
    return Container(
        header=Header(format="jpeg", width=width, height=height, length=end),
        bare=b"".join([*found.kept, data[found.data_from : end]]),
        orientation=found.orientation or 1,
    )


def _broken(data: bytes, position: int, found: _Found, field: str) -> InputError:
    """Why there is no marker where one should be."""
    ended = found.scans or not data[position:].strip(b"\xff")
    return _early(found, field) if ended else _damaged(field)


def _early(found: _Found, field: str) -> InputError:
    what = "too early" if found.size else "before its header does"
    return InputError(field, f"is a JPEG that ends {what}")


def _damaged(field: str) -> InputError:
    return InputError(field, "is a damaged JPEG picture")
