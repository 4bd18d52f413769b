"""Bytes to arrays: formats by content, alpha, depth, orientation, limits, damage."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from bench.picture_forms import chunk, exif
from engine import InputError
from engine.header import LIMITS
from engine.image import (
    decode_mask,
    decode_picture,
    encode_jpeg,
    encode_png,
    sniff,
)


def png(pixels: npt.NDArray[np.generic], suffix: str = ".png") -> bytes:
    """Encode pixels as they are (BGR order for colour)."""
    return bytes(cv2.imencode(suffix, pixels)[1].tobytes())


def palette_png() -> bytes:
    """2x1: palette entries red and, half transparent, green."""
    header = struct.pack(">IIBBBBB", 2, 1, 8, 3, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"PLTE", bytes([255, 0, 0, 0, 255, 0]))
        + chunk(b"tRNS", bytes([255, 128]))
        + chunk(b"IDAT", zlib.compress(b"\x00\x00\x01"))
        + chunk(b"IEND", b"")
    )


def jpeg_with_exif(jpeg: bytes, orientation: int) -> bytes:
    """Put an EXIF block with that orientation behind the JPEG's first marker."""
    body = b"Exif\0\0" + exif(orientation)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def png_with_exif(encoded: bytes, block: bytes) -> bytes:
    """Put an eXIf chunk behind the PNG's header chunk."""
    return encoded[:33] + chunk(b"eXIf", block) + encoded[33:]


def test_png_round_trip_is_exact(picture: npt.NDArray[np.uint8]) -> None:
    assert np.array_equal(decode_picture(encode_png(picture)), picture)


def test_jpeg_round_trip_is_close(picture: npt.NDArray[np.uint8]) -> None:
    decoded = decode_picture(encode_jpeg(picture, quality=98))
    assert np.abs(decoded.astype(int) - picture).mean() < 4


def test_header_is_read_without_decoding(picture: npt.NDArray[np.uint8]) -> None:
    for encoded, name in ((encode_png(picture), "png"), (encode_jpeg(picture), "jpeg")):
        header = sniff(encoded)
        assert (header.format, header.width, header.height) == (name, 128, 96)


def test_colour_order_is_rgb() -> None:
    blue_in_bgr = np.zeros((2, 2, 3), np.uint8)
    blue_in_bgr[..., 0] = 255
    assert decode_picture(png(blue_in_bgr))[0, 0].tolist() == [0, 0, 255]


def test_alpha_lies_over_white_for_pictures_and_over_black_for_masks() -> None:
    bgra = np.zeros((1, 3, 4), np.uint8)
    bgra[0, :, 2] = 200
    bgra[0, :, 3] = [0, 128, 255]
    assert decode_picture(png(bgra))[0].tolist() == [[255, 255, 255], [227, 127, 127], [200, 0, 0]]
    white = np.full((1, 3, 4), 255, np.uint8)
    white[0, :, 3] = [0, 128, 255]
    assert decode_mask(png(white))[0].tolist() == [0, 128, 255]


def test_palette_and_its_transparency() -> None:
    assert decode_picture(palette_png())[0].tolist() == [[255, 0, 0], [127, 255, 127]]


@pytest.mark.parametrize(("dtype", "level"), [(np.uint8, 7), (np.uint16, 1799)])
def test_a_transparent_grey_level(dtype: type, level: int) -> None:
    encoded = png(np.array([[level, 0]], dtype))
    see_through = encoded[:33] + chunk(b"tRNS", struct.pack(">H", level)) + encoded[33:]
    assert decode_picture(see_through)[0].tolist() == [[255, 255, 255], [0, 0, 0]]
    assert decode_mask(see_through)[0].tolist() == [0, 0]


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    deep = np.array([[0, 257, 32768, 65535]], np.uint16)
    assert decode_mask(png(deep))[0].tolist() == [0, 1, 128, 255]
    assert decode_picture(png(deep))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_grey_becomes_three_channels() -> None:
    assert decode_picture(png(np.full((2, 3), 77, np.uint8))).shape == (2, 3, 3)


def test_mask_luminance() -> None:
    green_in_bgr = np.zeros((1, 1, 3), np.uint8)
    green_in_bgr[..., 1] = 255
    assert decode_mask(png(green_in_bgr))[0, 0] == 150


# Where the top left corner of an upright 2x3 picture lies in the stored one, by EXIF's table 6.
TURNED = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: p[::-1].transpose(1, 0, 2)[::-1, ::-1],
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: p.transpose(1, 0, 2)[::-1][::-1, ::-1],
}
"""How a camera that says so stores an upright picture."""


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :16] = 255
    upright[16:, 32:] = 120
    stored = np.ascontiguousarray(TURNED[orientation](upright))
    for block in (exif(orientation), exif(orientation, ">")):
        decoded = decode_picture(png_with_exif(encode_png(stored), block))
        assert np.array_equal(decoded, upright)
    jpeg = decode_picture(jpeg_with_exif(encode_jpeg(stored), orientation))
    assert np.abs(jpeg.astype(int) - upright).max() < 40


@pytest.mark.parametrize(
    "block", [b"", b"II*\0", b"II*\0\xff\xff\xff\xff", exif(0), exif(9), exif(6)[:-8], b"XX"]
)
def test_damaged_exif_is_passed_over(picture: npt.NDArray[np.uint8], block: bytes) -> None:
    assert np.array_equal(decode_picture(png_with_exif(encode_png(picture), block)), picture)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "neither a PNG nor a JPEG"),
        (b"GIF89a" + b"\0" * 50, "neither a PNG nor a JPEG"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "neither a PNG nor a JPEG"),
        (b"\x89PNG\r\n\x1a\n", "ends before its header"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "ends before its header"),
        (b"\xff\xd8\xff\xd8\xff\xd8" * 20, "JPEG"),
    ],
)
def test_what_is_no_picture_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        decode_picture(data, field="init_image")
    assert caught.value.field == "init_image"


def test_truncated_pictures_are_refused(picture: npt.NDArray[np.uint8]) -> None:
    for encoded in (encode_png(picture), encode_jpeg(picture)):
        with pytest.raises(InputError, match="that ends too early"):
            decode_picture(encoded[: len(encoded) // 2])


def test_what_follows_a_picture_is_left_alone(picture: npt.NDArray[np.uint8]) -> None:
    """Phones append whole films to their photographs."""
    for encoded in (encode_png(picture), encode_jpeg(picture)):
        assert np.array_equal(decode_picture(encoded + b"film" * 5000), decode_picture(encoded))


def test_damaged_data_is_refused(picture: npt.NDArray[np.uint8]) -> None:
    data = bytearray(encode_png(picture))
    data[60:200] = bytes(140)
    with pytest.raises(InputError, match="damaged"):
        decode_picture(bytes(data))


def test_a_bomb_is_refused_by_its_header() -> None:
    header = struct.pack(">IIBBBBB", LIMITS.max_side + 1, 10, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")
    with pytest.raises(InputError, match=rf"is {LIMITS.max_side + 1}x10 pixels; at most"):
        decode_picture(bomb)
    header = struct.pack(">IIBBBBB", 16000, 16000, 8, 2, 0, 0, 0)
    with pytest.raises(InputError, match="64000000 in all"):
        sniff(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b""))
