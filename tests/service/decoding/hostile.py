"""Hostile and odd pictures made by code, each with what must become of it.

An outcome is a sentence that the refusal holds, or the pixels that must come out.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from bench.picture_forms import (
    GREY,
    GREY_ALPHA,
    PALETTE,
    RGB,
    RGBA,
    SIGNATURE,
    chunk,
    exif,
    header,
    jpeg,
    png,
    print_jpeg,
    segment,
    with_segment,
)

Pixels = npt.NDArray[np.uint8]

SMOOTH: Pixels = cv2.GaussianBlur(
    np.random.RandomState(1).randint(0, 256, (40, 60, 3)).astype(np.uint8), (0, 0), 5
)
PNG = png(SMOOTH.astype(np.uint16), depth=8, colour=RGB)
JPEG = jpeg(SMOOTH)
GREY_40x60 = np.full((40, 60, 1), 90, np.uint16)
END = chunk(b"IEND", b"")
DAMAGED = "is a damaged or incomplete"
EARLY = "too early"
NEITHER = "is neither a PNG nor a JPEG picture"
TOO_LARGE = "pixels; at most"


@dataclass(frozen=True)
class Case:
    """A picture, and the pixels or the words of the refusal that it must come to."""

    name: str
    data: bytes
    outcome: str | Pixels


def by_pillow(data: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def saved(kind: str) -> bytes:
    """Another format's file, by Pillow."""
    stream = io.BytesIO()
    Image.fromarray(SMOOTH).save(stream, kind)
    return stream.getvalue()


def with_chunks(*extra: bytes) -> bytes:
    """The PNG with chunks behind its header."""
    return PNG[:33] + b"".join(extra) + PNG[33:]


def flat(width: int, height: int, data: bytes) -> bytes:
    """A grey PNG of that size over any compressed data."""
    head = header(width, height, depth=8, colour=GREY)
    return SIGNATURE + head + chunk(b"IDAT", data) + END


def zeros(count: int) -> bytes:
    """A zlib stream of zeros, made in pieces."""
    press = zlib.compressobj(9)
    block = bytes(1 << 20)
    whole, rest = divmod(count, len(block))
    parts = [press.compress(block) for _ in range(whole)]
    return b"".join([*parts, press.compress(block[:rest]), press.flush()])


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("index.html", "<script>alert(1)</script>")
    return stream.getvalue()


def many_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is there again and again."""
    whole = jpeg(SMOOTH, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    last = whole.rindex(b"\xff\xda")
    return whole[:-2] + whole[last:-2] * count + b"\xff\xd9"


def resized_frame(width: int, height: int) -> bytes:
    """The JPEG with another size in its frame header."""
    at = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:at] + struct.pack(">HH", height, width) + JPEG[at + 4 :]


def animation() -> bytes:
    control = struct.pack(">IIIIIHHBB", 0, 60, 40, 0, 0, 1, 10, 0, 0)
    return with_chunks(chunk(b"acTL", struct.pack(">II", 3, 0)), chunk(b"fcTL", control))


def small_animation() -> bytes:
    """One frame whose row has a filter that is not there: it ended a decoder of 2025."""
    control = struct.pack(">IIIIIHHBB", 0, 1, 1, 0, 0, 1, 1, 0, 0)
    return (
        SIGNATURE
        + header(1, 1, depth=8, colour=RGB)
        + chunk(b"acTL", struct.pack(">II", 1, 0))
        + chunk(b"fcTL", control)
        + chunk(b"IDAT", zlib.compress(b"\x09\0\0\0"))
        + END
    )


def endless_exif() -> bytes:
    """A directory whose next directory is itself, with an entry that points to itself."""
    entry = struct.pack("<HHII", 0x8769, 4, 1, 8)
    return b"II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 8)


def png_cases() -> Iterator[Case]:
    yield Case("a plain PNG", PNG, SMOOTH)
    yield Case(
        "144 megapixels of grey in 140 KB", flat(12000, 12000, zeros(12001 * 12000)), TOO_LARGE
    )
    yield Case("a header of 30000x30000", flat(30000, 30000, b""), TOO_LARGE)
    yield Case("a header of 40000x40000", flat(40000, 40000, b""), TOO_LARGE)
    yield Case("a header of 2^31-1 on both sides", flat(2**31 - 1, 2**31 - 1, b""), TOO_LARGE)
    yield Case("26 megapixels", flat(6500, 4000, zeros(6501 * 4000)), "25000000 in all")
    yield Case("a width of 0", flat(0, 40, zeros(40)), "says it is 0x40 pixels")
    yield Case("1x1", flat(1, 1, zeros(2)), "is 1x1 pixels; at least 8 on a side are needed")
    yield Case("1x16384", flat(1, 16384, zeros(2 * 16384)), "at least 8 on a side")
    yield Case("8x1000", flat(8, 1000, zeros(9 * 1000)), "one side may be 16 times the other")
    yield Case("8x128", flat(8, 128, zeros(9 * 128)), np.zeros((128, 8, 3), np.uint8))
    for name in (b"zTXt", b"iCCP"):
        bomb = chunk(name, b"a\0\0" + zeros(80_000_000))
        yield Case(f"80 MB in a {name.decode()} of 80 KB", with_chunks(bomb), SMOOTH)
    text = chunk(b"tEXt", b"a\0" + bytes(5_000_000))
    yield Case("5 MB of text", with_chunks(text), "whose tEXt chunk has 5000002 bytes; at most")
    lie = struct.pack(">I", 2**31 - 1) + b"tEXt"
    yield Case("text that says it has 2 GB", with_chunks(lie), "has 2147483647 bytes; at most")
    lie = struct.pack(">I", 2**31 - 1) + b"IDAT"
    yield Case("data that says it has 2 GB", PNG[:33] + lie + PNG[41:], EARLY)
    yield Case("half a PNG", PNG[: len(PNG) // 2], EARLY)
    yield Case("half the data, all chunks whole", cut_data(), DAMAGED)
    yield Case("a PNG without its end", PNG[:-12], EARLY)
    yield Case("only a signature", SIGNATURE, "ends before its header does")
    yield Case("only a header", PNG[:33], EARLY)
    yield Case("a header and an end", PNG[:33] + END, "is a PNG without any pixels")
    yield Case("empty data", PNG[:33] + chunk(b"IDAT", b"") + END, DAMAGED)
    yield Case("a wrong check sum of the data", PNG[:-16] + b"\0\0\0\0" + PNG[-12:], DAMAGED)
    yield Case("a wrong check sum of the header", PNG[:29] + b"\0\0\0\0" + PNG[33:], DAMAGED)
    wrong = chunk(b"eXIf", exif(6))[:-4] + b"\0\0\0\0"
    yield Case("a wrong check sum of what is left out", with_chunks(wrong), SMOOTH)
    yield Case("two headers", with_chunks(header(4000, 4000, depth=8, colour=RGB)), DAMAGED)
    yield Case(
        "a header of 14 bytes", SIGNATURE + chunk(b"IHDR", bytes(14)) + PNG[33:], "damaged PNG"
    )
    yield Case("a depth of 0", PNG[:24] + b"\0" + PNG[25:], "is a damaged PNG picture")
    yield Case("an unknown part", with_chunks(chunk(b"EVIL", b"")), "an unknown chunk: EVIL")
    yield Case("a part whose name is no name", with_chunks(chunk(b"\0\xff<>", b"")), "damaged PNG")
    yield Case("70000 empty parts", with_chunks(*[chunk(b"tEXt", b"")] * 70_000), "more than 65536")
    more = png(GREY_40x60, depth=8, colour=GREY)[:33] + chunk(b"IDAT", zeros(80_000_000)) + END
    yield Case("80 MB of data where 2 KB are due", more, np.zeros((40, 60, 3), np.uint8))
    yield Case("an animation of 3 frames", animation(), "is an animated PNG")
    yield Case("an animation of 131 bytes", small_animation(), "is 1x1 pixels")
    yield Case("frames without an animation", with_chunks(chunk(b"fdAT", bytes(90))), SMOOTH)
    yield Case("a PNG that is a ZIP too", PNG + zipped(), SMOOTH)
    yield Case("a PNG and 1 MB of noise", PNG + np.random.RandomState(0).bytes(1 << 20), SMOOTH)
    yield Case("EXIF that leads to itself", with_chunks(chunk(b"eXIf", endless_exif())), SMOOTH)
    turned = with_chunks(chunk(b"eXIf", exif(8)))
    yield Case("EXIF that turns", turned, np.ascontiguousarray(np.rot90(SMOOTH)))
    no_palette = png(GREY_40x60, depth=8, colour=PALETTE)
    yield Case("a palette that is missing", no_palette, DAMAGED)
    colours = chunk(b"PLTE", bytes(range(6)))
    beyond = png(GREY_40x60, depth=8, colour=PALETTE, extra=[colours])
    yield Case("entries beyond the palette", beyond, np.zeros((40, 60, 3), np.uint8))
    clear = png(np.zeros((9, 9, 4), np.uint16), depth=16, colour=RGBA)
    yield Case("colours hidden by alpha", clear, np.full((9, 9, 3), 255, np.uint8))
    deep = png(np.full((9, 9, 2), 65535, np.uint16), depth=16, colour=GREY_ALPHA)
    yield Case("16 bits", deep, np.full((9, 9, 3), 255, np.uint8))


def cut_data() -> bytes:
    """A PNG whose compressed data stops in the middle."""
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in SMOOTH))
    return PNG[:33] + chunk(b"IDAT", data[: len(data) // 2]) + END


def jpeg_cases() -> Iterator[Case]:
    scan = JPEG.index(b"\xff\xda")
    yield Case("a plain JPEG", JPEG, by_pillow(JPEG))
    yield Case("half a JPEG", JPEG[: len(JPEG) // 2], EARLY)
    yield Case("a JPEG without its end", JPEG[:-2], EARLY)
    yield Case("only the start", JPEG[:3], "ends before its header does")
    yield Case("only the headers", JPEG[:scan], EARLY)
    yield Case("headers and an end", JPEG[:scan] + b"\xff\xd9", "is a damaged JPEG picture")
    yield Case("a frame of 65535x65535", resized_frame(65535, 65535), TOO_LARGE)
    yield Case("a frame of height 0", resized_frame(60, 0), "says it is 60x0 pixels")
    twice = with_segment(JPEG, 0xC0, JPEG[JPEG.index(b"\xff\xc0") + 4 :][:15])
    yield Case("two frames", twice, "is a damaged JPEG picture")
    at = JPEG.index(b"\xff\xc0") + 4
    deep = JPEG[:at] + b"\x0c" + JPEG[at + 1 :]
    yield Case("12 bits a sample", deep, "of 12 bits a sample; only 8 are allowed")
    two = JPEG[: at + 5] + b"\x02" + JPEG[at + 6 :]
    yield Case("2 components", two, "of 2 components; allowed: 1, 3, 4")
    lie = JPEG[:2] + b"\xff\xe1\xff\xff" + JPEG[2:40]
    yield Case("a segment longer than the file", lie, "ends before its header does")
    yield Case("a segment of length 0", JPEG[:2] + b"\xff\xe1\0\0" + JPEG[2:], "damaged JPEG")
    empty = segment(0xFE, b"")
    yield Case("5000 comments", JPEG[:2] + empty * 5000 + JPEG[2:], "more than 4096 segments")
    yield Case("fill bytes", JPEG[:2] + b"\xff" * 100_000 + JPEG[2:], by_pillow(JPEG))
    yield Case("nothing but fill bytes", JPEG[:2] + b"\xff" * 100_000, "before its header does")
    yield Case("1000 scans", many_scans(1000), "is a JPEG of more than 100 scans")
    yield Case("50 more scans", many_scans(50), by_pillow(many_scans(50)))
    yield Case("a JPEG that is a ZIP too", JPEG + zipped(), by_pillow(JPEG))
    yield Case("two JPEGs in one file", JPEG + JPEG, by_pillow(JPEG))
    looped = with_segment(JPEG, 0xE1, b"Exif\0\0" + endless_exif())
    yield Case("EXIF that leads to itself in a JPEG", looped, by_pillow(JPEG))
    turned = with_segment(JPEG, 0xE1, b"Exif\0\0" + exif(6))
    yield Case("EXIF that turns a JPEG", turned, np.rot90(by_pillow(JPEG), 3))
    thumbnail = with_segment(JPEG, 0xE1, b"Exif\0\0" + exif(1) + JPEG[:2000])
    yield Case("a thumbnail in EXIF", thumbnail, by_pillow(JPEG))
    inks = np.dstack([SMOOTH, SMOOTH[..., 0] // 4])
    yield Case("CMYK", print_jpeg(inks), by_pillow(print_jpeg(inks)))
    yield Case("YCCK", print_jpeg(inks, ycck=True), by_pillow(print_jpeg(inks, ycck=True)))


def other_cases() -> Iterator[Case]:
    for kind in ("GIF", "WEBP", "BMP", "TIFF", "EPS", "PPM", "JPEG2000"):
        yield Case(f"a {kind}", saved(kind), NEITHER)
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    yield Case("an SVG", svg, NEITHER)
    yield Case("a page", b"<!doctype html><script>alert(1)</script>", NEITHER)
    yield Case("nothing", b"", NEITHER)
    yield Case("one byte", b"\x89", NEITHER)
    yield Case("zeros", bytes(1000), NEITHER)
    yield Case("a PNG behind a space", b" " + PNG, NEITHER)
    yield Case("a signature spoilt by text mode", PNG.replace(b"\r\n", b"\n", 1), NEITHER)
    yield Case("21 MB", PNG + bytes(21_000_000), "bytes; at most 20000000 are allowed")


CASES = [*png_cases(), *jpeg_cases(), *other_cases()]
