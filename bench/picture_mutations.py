"""Damage done to PNG and JPEG files by chance, most of it so that a decoder still goes deep.

A damaged chunk gets a right check sum again, damaged rows are compressed again, a cut JPEG gets its
end marker back: otherwise the first check would refuse nearly all of them.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from bench.picture_forms import SIGNATURE, chunk, segment

Chunk: TypeAlias = tuple[bytes, bytes]
"""Name and data of a PNG chunk."""

Mutation: TypeAlias = Callable[[random.Random, bytes, Sequence[bytes]], bytes]
"""A damaged copy of a picture; the other pictures are there to take pieces from."""

_MOST_ROWS: Final = 2 << 20
"""Bytes of rows too many, so that the files stay small."""

_NAMES: Final = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf", b"acTL", b"fdAT", b"iCCP")
_NUMBERS: Final = (0, 1, 2, 7, 8, 9, 255, 256, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


def mutate(chance: random.Random, data: bytes, others: Sequence[bytes]) -> tuple[str, bytes]:
    """Damage a picture in one way, or now and then in a few.

    Args:
        chance: Decides everything.
        data: A whole PNG or JPEG.
        others: More of them.

    Returns:
        The ways' names, and what came of it.
    """
    own = PNG_MUTATIONS if data.startswith(SIGNATURE) else JPEG_MUTATIONS
    names = []
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        way = chance.choice(own if chance.random() < 0.8 else ANY_MUTATIONS)
        names.append(way.__name__)
        data = way(chance, data, others)
    return "+".join(names), data


def flip(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A few bits anywhere."""
    return _flipped(chance, data)


def cut(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """The end is missing."""
    return data[: chance.randrange(len(data) + 1)]


def splice(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """The start of one file and the end of another."""
    other = chance.choice(others)
    return data[: chance.randrange(len(data) + 1)] + other[chance.randrange(len(other)) :]


def insert(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Bytes too many."""
    at = chance.randrange(len(data) + 1)
    return data[:at] + chance.randbytes(chance.choice((1, 2, 4, 64, 1000))) + data[at:]


def leave_out(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Bytes too few."""
    at = chance.randrange(len(data) + 1)
    return data[:at] + data[at + chance.choice((1, 2, 4, 64, 1000)) :]


def chunk_bits(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A few bits in one chunk, its check sum right."""
    return _in_one_chunk(chance, data, lambda body: _flipped(chance, body))


def chunk_cut(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A chunk that is shorter, its length and check sum right."""
    return _in_one_chunk(chance, data, lambda body: body[: chance.randrange(len(body) + 1)])


def chunk_order(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Chunks twice, missing, in another order, from another file or under another name."""
    chunks = _chunks(data)
    for _ in range(chance.choice((1, 1, 2))):
        if not chunks:
            break
        at, to = chance.randrange(len(chunks)), chance.randrange(len(chunks))
        how = chance.randrange(5)
        if how == 0:
            chunks.insert(to, chunks[at])
        elif how == 1:
            del chunks[at]
        elif how == 2:
            chunks[at], chunks[to] = chunks[to], chunks[at]
        elif how == 3:
            foreign = [found for other in others for found in _chunks(other)]
            chunks.insert(to, chance.choice(foreign))
        else:
            names = (
                b"IHDR",
                b"PLTE",
                b"tRNS",
                b"IDAT",
                b"IEND",
                b"eXIf",
                b"acTL",
                b"fdAT",
                b"iCCP",
            )
            chunks[at] = (chance.choice(names), chunks[at][1])
    return _png(chunks)


def length_lie(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A chunk that says it is longer or shorter than it is."""
    position, starts = len(SIGNATURE), []
    for _, body in _chunks(data):
        starts.append(position)
        position += 12 + len(body)
    if not starts:
        return data
    at = chance.choice(starts)
    return data[:at] + struct.pack(">I", chance.choice(_NUMBERS)) + data[at + 4 :]


def header_field(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Another width, height, depth, colour type or interlacing than the data has."""
    chunks = _chunks(data)
    if not chunks or len(chunks[0][1]) != 13:
        return data
    fields = list(struct.unpack(">IIBBBBB", chunks[0][1]))
    at = chance.randrange(7)
    near = fields[at] + chance.choice((-8, -1, 1, 8, 100))
    fields[at] = (
        min(max(0, near), 2**32 - 1) if at < 2 else chance.choice((0, 1, 2, 3, 4, 6, 8, 16))
    )
    if at < 2 and chance.random() < 0.2:
        fields[at] = chance.choice(_NUMBERS)
    return _png([(b"IHDR", struct.pack(">IIBBBBB", *fields)), *chunks[1:]])


def rows(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Damage under the compression: filters, samples, rows too many or too few."""
    chunks = _chunks(data)
    packed = b"".join(body for kind, body in chunks if kind == b"IDAT")
    try:
        plain = zlib.decompress(packed)
    except zlib.error:
        return data
    how = chance.randrange(4)
    if how == 0:
        plain = plain[: chance.randrange(len(plain) + 1)]
    elif how == 1:
        plain = (plain * chance.choice((2, 50, 500)))[:_MOST_ROWS]
    else:
        plain = _flipped(chance, plain)
    again = (b"IDAT", zlib.compress(plain, chance.choice((0, 1, 9))))
    before = [found for found in chunks if found[0] not in (b"IDAT", b"IEND")]
    return _png([*before, again, (b"IEND", b"")])


def segment_bits(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A few bits in one header segment: tables, frame, scan."""
    segments, rest = _segments(data)
    if not segments:
        return data
    at = chance.randrange(len(segments))
    segments[at] = (segments[at][0], _flipped(chance, segments[at][1]))
    return _jpeg(segments, rest)


def segment_order(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Segments twice, missing, in another order, from another file or under another marker."""
    segments, rest = _segments(data)
    if not segments:
        return data
    at, to = chance.randrange(len(segments)), chance.randrange(len(segments))
    how = chance.randrange(5)
    if how == 0:
        segments.insert(to, segments[at])
    elif how == 1:
        del segments[at]
    elif how == 2:
        segments[at], segments[to] = segments[to], segments[at]
    elif how == 3:
        segments.insert(to, chance.choice([s for other in others for s in _segments(other)[0]]))
    else:
        segments[at] = (chance.randrange(0xC0, 0xFF), segments[at][1])
    return _jpeg(segments, rest)


def frame_field(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Another size, number of components or sampling than the data has."""
    segments, rest = _segments(data)
    for i, (marker, body) in enumerate(segments):
        if marker in (0xC0, 0xC1, 0xC2) and len(body) >= 9:
            at = chance.randrange(len(body))
            value = chance.choice((0, 1, 2, 4, 8, 0x11, 0x22, 0x41, 0xFF, body[at] ^ 1))
            segments[i] = (marker, body[:at] + bytes([value]) + body[at + 1 :])
    return _jpeg(segments, rest)


def data_bits(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A few bits in the compressed data."""
    segments, rest = _segments(data)
    return _jpeg(segments, _flipped(chance, rest))


def data_cut(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Compressed data that stops early, its end marker there."""
    segments, rest = _segments(data)
    return _jpeg(segments, rest[: chance.randrange(len(rest) + 1)] + b"\xff\xd9")


def data_splice(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """The headers of one file and the data of another."""
    segments, rest = _segments(data)
    _, foreign = _segments(chance.choice(others))
    return _jpeg(segments, chance.choice((foreign, rest[:-2] + foreign)))


PNG_MUTATIONS: Final[tuple[Mutation, ...]] = (
    chunk_bits,
    chunk_cut,
    chunk_order,
    length_lie,
    header_field,
    rows,
    rows,
)
JPEG_MUTATIONS: Final[tuple[Mutation, ...]] = (
    segment_bits,
    segment_order,
    frame_field,
    data_bits,
    data_cut,
    data_splice,
)
ANY_MUTATIONS: Final[tuple[Mutation, ...]] = (flip, cut, splice, insert, leave_out)


def _flipped(chance: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16)) if data else 0):
        changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _in_one_chunk(chance: random.Random, data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    chunks = _chunks(data)
    if not chunks:
        return data
    at = chance.randrange(len(chunks))
    chunks[at] = (chunks[at][0], change(chunks[at][1]))
    return _png(chunks)


def _chunks(data: bytes) -> list[Chunk]:
    """The chunks of a PNG as far as they are whole; none of a JPEG."""
    found: list[Chunk] = []
    position = len(SIGNATURE)
    while data.startswith(SIGNATURE) and position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if position + 12 + length > len(data):
            break
        found.append((kind, data[position + 8 : position + 8 + length]))
        position += 12 + length
    return found


def _png(chunks: Sequence[Chunk]) -> bytes:
    return SIGNATURE + b"".join(chunk(kind, data) for kind, data in chunks)


def _segments(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """The segments of a JPEG up to its first scan's, and what follows."""
    found: list[tuple[int, bytes]] = []
    position = 2
    while data[position : position + 1] == b"\xff" and position + 4 <= len(data):
        marker = data[position + 1]
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if end > len(data) or end < position + 4:
            break
        found.append((marker, data[position + 4 : end]))
        position = end
        if marker == 0xDA:
            break
    return found, data[position:]


def _jpeg(segments: Sequence[tuple[int, bytes]], rest: bytes) -> bytes:
    return b"\xff\xd8" + b"".join(segment(marker, body[:65533]) for marker, body in segments) + rest
