"""What becomes of hostile and odd pictures, in the process that the service decodes them in."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest

from engine import InputError
from engine.image import encode_jpeg, encode_png
from service.decoding import PictureDecoder
from tests.service.decoding.hostile import (
    CASES,
    JPEG,
    PNG,
    SMOOTH,
    Case,
    by_pillow,
    cut_data,
    small_animation,
)

ENDS = (b"", b"\xff\xd9", b"\0\0\0\0IEND\xaeB`\x82")


def decode(decoder: PictureDecoder, data: bytes) -> npt.NDArray[np.uint8] | str:
    """The pixels, or the sentence of the refusal."""
    try:
        return asyncio.run(decoder.picture(data, field="init_image"))
    except InputError as exc:
        return exc.message if exc.field == "init_image" else f"wrong field: {exc}"


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_each_comes_to_its_end(
    decoder: PictureDecoder, case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    """Either exactly these pixels or this refusal; no process is lost over it."""
    with caplog.at_level(logging.ERROR, "service.decoding"):
        outcome = decode(decoder, case.data)
    assert caplog.records == []
    if isinstance(case.outcome, str):
        assert isinstance(outcome, str), outcome.shape
        assert case.outcome in outcome
        assert "\n" not in outcome
        assert len(outcome) < 200
    else:
        assert not isinstance(outcome, str), outcome
        assert outcome.shape == case.outcome.shape
        off = np.abs(outcome.astype(int) - case.outcome).max()
        assert off <= (1 if case.name in ("CMYK", "YCCK") else 0)


def test_there_are_enough() -> None:
    assert len(CASES) >= 80
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("whole", [PNG, JPEG], ids=["png", "jpeg"])
def test_no_pixel_of_the_picture_before(decoder: PictureDecoder, whole: bytes) -> None:
    """A decoder of 2024 filled the missing rows of a cut JPEG with the picture before it: here
    half a picture is refused, or holds nothing of it where its end marker was put back."""
    before = np.full((40, 60, 3), (13, 211, 77), np.uint8)
    halves = [whole[: len(whole) * part // 8] + end for part in range(3, 8) for end in ENDS]
    for half in halves:
        for canary in (encode_png(before), encode_jpeg(before, 100)):
            assert not isinstance(decode(decoder, canary), str)
            outcome = decode(decoder, half)
            if not isinstance(outcome, str):
                like_it = np.abs(outcome.astype(int) - before[0, 0]).max(axis=2) < 12
                assert not like_it.any()


def test_the_pixels_cross_whole(decoder: PictureDecoder) -> None:
    assert np.array_equal(decode(decoder, PNG), SMOOTH)
    assert np.array_equal(decode(decoder, JPEG), by_pillow(JPEG))
    assert decode(decoder, cut_data()) == "is a damaged or incomplete PNG picture"


def test_opencv_itself_survives_what_ended_older_ones() -> None:
    """The least version that is asked for: no crash on a small animation, no pixels of the picture
    before in half a JPEG."""
    code = """import sys, cv2, numpy as np
before, half, animation = (bytes.fromhex(line) for line in sys.stdin)
read = lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
first, second, third = read(before), read(half), read(animation)
assert first is not None and (second is None or not (second == first[0, 0]).all(axis=2).any())
print("alive", flush=True)
"""
    before = encode_jpeg(np.full((40, 60, 3), 77, np.uint8))
    lines = "\n".join(data.hex() for data in (before, JPEG[: len(JPEG) // 2], small_animation()))
    done = subprocess.run([sys.executable, "-c", code], input=lines, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
