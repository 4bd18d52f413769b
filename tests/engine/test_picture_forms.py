"""Every form of PNG and JPEG, pixel by pixel against what was written and against Pillow."""

from __future__ import annotations

import io

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageOps

from bench import picture_forms as forms
from engine.image import decode_mask, decode_picture

Floats = npt.NDArray[np.float64]
SHAPE = (21, 27)


def written(colour: int, depth: int, clear: str) -> tuple[forms.Samples, list[bytes], Floats]:
    """Samples, the chunks that go with them, and what they mean: (H, W, 4) RGBA in 0 to 1."""
    random = np.random.RandomState(depth * 10 + colour)
    channels = forms.CHANNELS[colour]
    samples = random.randint(0, 1 << depth, (*SHAPE, channels)).astype(np.uint16)
    samples[0, :8] = [[0] * channels, [(1 << depth) - 1] * channels] * 4
    alpha = np.ones(SHAPE)
    if colour == forms.PALETTE:
        palette = random.randint(0, 256, (1 << depth, 3)).astype(np.uint8)
        opacity = random.randint(0, 256, max(1, 1 << (depth - 1))).astype(np.uint8)
        extra = [forms.chunk(b"PLTE", palette.tobytes())]
        if clear:
            extra.append(forms.chunk(b"tRNS", opacity.tobytes()))
            full = np.concatenate([opacity, np.full(palette.shape[0] - opacity.size, 255)])
            alpha = full[samples[..., 0]] / 255
        return samples, extra, np.dstack([palette[samples[..., 0]] / 255, alpha])
    levels = samples / ((1 << depth) - 1)
    if colour in (forms.GREY_ALPHA, forms.RGBA):
        return (
            samples,
            [],
            np.dstack([np.broadcast_to(levels[..., :-1], (*SHAPE, 3)), levels[..., -1]]),
        )
    extra = []
    if clear:
        extra = [forms.chunk(b"tRNS", samples[3, 4].astype(">u2").tobytes())]
        alpha = 1.0 - (samples == samples[3, 4]).all(axis=2)
    return samples, extra, np.dstack([np.broadcast_to(levels, (*SHAPE, 3)), alpha])


def to_8_bits(values: Floats) -> Floats:
    return np.rint(values * 255)


def over(rgba: Floats, background: int) -> Floats:
    """RGBA of 255 over a level, to the nearest."""
    return np.rint((rgba[..., :3] * rgba[..., 3:] + background * (255 - rgba[..., 3:])) / 255)


def luminance(rgb: Floats) -> Floats:
    return np.asarray(rgb @ [0.299, 0.587, 0.114])


PNGS = [
    pytest.param(colour, depth, interlaced, clear, id=f"{colour}-{depth}{interlaced}{clear}")
    for colour, depths in forms.DEPTHS.items()
    for depth in depths
    for interlaced in ("", "-adam7")
    for clear in ("", "-clear")
    if not (clear and colour in (forms.GREY_ALPHA, forms.RGBA))
]


@pytest.mark.parametrize(("colour", "depth", "interlaced", "clear"), PNGS)
def test_png(colour: int, depth: int, interlaced: str, clear: str) -> None:
    samples, extra, meant = written(colour, depth, clear)
    encoded = forms.png(
        samples, depth=depth, colour=colour, interlaced=bool(interlaced), extra=extra, pieces=3
    )
    rgba = to_8_bits(meant)
    assert np.array_equal(decode_picture(encoded), over(rgba, 255))
    assert np.abs(decode_mask(encoded) - luminance(over(rgba, 0))).max() < 0.51
    other = Image.open(io.BytesIO(encoded))
    if other.mode == "I;16":
        assert np.array_equal(np.asarray(other), samples[..., 0])
    elif colour == forms.GREY and depth in (2, 4):  # Pillow does not scale a transparent level
        assert np.array_equal(np.asarray(other.convert("RGB")), rgba[..., :3])
    elif depth < 16:
        assert np.array_equal(np.asarray(other.convert("RGBA")), rgba)


def test_all_16_bit_levels_are_rounded_to_the_nearest() -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    encoded = forms.png(levels, depth=16, colour=forms.GREY)
    assert np.array_equal(decode_mask(encoded), np.rint(levels[..., 0] / 257))
    assert np.array_equal(decode_picture(encoded)[..., 1], np.rint(levels[..., 0] / 257))


def test_half_is_where_a_mask_begins() -> None:
    """128 of 255 and 32768 of 65535 are the lowest levels above one half."""
    eight = np.array([[[127], [128]]], np.uint16)
    assert decode_mask(forms.png(eight, depth=8, colour=forms.GREY)).tolist() == [[127, 128]]
    deep = np.array([[[32767], [32768]]], np.uint16)
    assert decode_mask(forms.png(deep, depth=16, colour=forms.GREY)).tolist() == [[127, 128]]
    half_clear = np.array([[[255, 127], [255, 128]]], np.uint16)
    masked = forms.png(half_clear, depth=8, colour=forms.GREY_ALPHA)
    assert decode_mask(masked).tolist() == [[127, 128]]


def photograph() -> npt.NDArray[np.uint8]:
    random = np.random.RandomState(3)
    return cv2.GaussianBlur(random.randint(0, 256, (45, 53, 3)).astype(np.uint8), (0, 0), 3)


def by_pillow(encoded: bytes) -> npt.NDArray[np.int64]:
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")))
    return np.asarray(upright.convert("RGB")).astype(int)


JPEGS = list(forms.jpeg_forms(np.random.RandomState(5)))


@pytest.mark.parametrize("encoded", [data for _, data in JPEGS], ids=[name for name, _ in JPEGS])
def test_jpeg(encoded: bytes) -> None:
    assert np.array_equal(decode_picture(encoded), by_pillow(encoded))
    assert np.abs(decode_mask(encoded) - luminance(by_pillow(encoded))).max() < 0.51


@pytest.mark.parametrize("ycck", [False, True])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30}])
def test_jpeg_for_print(ycck: bool, options: dict[str, int]) -> None:
    """OpenCV cuts off where Pillow rounds: at most 1 of 255."""
    random = np.random.RandomState(7)
    inks = cv2.GaussianBlur(random.randint(0, 256, (45, 53, 4)).astype(np.uint8), (0, 0), 3)
    encoded = forms.print_jpeg(inks, ycck=ycck, **options)
    assert np.abs(decode_picture(encoded) - by_pillow(encoded)).max() <= 1


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation: int, order: str) -> None:
    stored, block = photograph(), forms.exif(orientation, order)
    samples = stored.astype(np.uint16)
    as_png = forms.png(samples, depth=8, colour=forms.RGB, extra=[forms.chunk(b"eXIf", block)])
    as_jpeg = forms.with_segment(forms.jpeg(stored), 0xE1, b"Exif\0\0" + block)
    for encoded in (as_png, as_jpeg):
        assert np.array_equal(decode_picture(encoded), by_pillow(encoded))
        assert np.abs(decode_mask(encoded) - luminance(by_pillow(encoded))).max() < 0.51


def test_a_colour_profile_changes_nothing() -> None:
    """Pixels are taken as they are, with or without the profile, gamma or background."""
    stored = photograph()
    plain = forms.png(stored.astype(np.uint16), depth=8, colour=forms.RGB)
    extra = [
        forms.chunk(b"gAMA", (10000).to_bytes(4, "big")),
        forms.chunk(b"bKGD", bytes(6)),
        forms.chunk(b"sBIT", b"\x01\x01\x01"),
    ]
    tagged = forms.png(stored.astype(np.uint16), depth=8, colour=forms.RGB, extra=extra)
    assert np.array_equal(decode_picture(tagged), decode_picture(plain))
    profiled = forms.with_segment(forms.jpeg(stored), 0xE2, b"ICC_PROFILE\0\x01\x01" + bytes(500))
    assert np.array_equal(decode_picture(profiled), decode_picture(forms.jpeg(stored)))
