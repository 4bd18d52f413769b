"""The resampling is Pillow's own, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from engine.resample import BICUBIC, BILINEAR, Filter, resample

image = pytest.importorskip("PIL.Image")

SIZES = [(64, 64), (512, 512), (333, 777), (1024, 65), (100, 1300), (224, 224), (7, 5), (1, 1)]


@pytest.mark.parametrize(("kind", "code"), [(BILINEAR, 2), (BICUBIC, 3)])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("wanted", [(256, 256), (224, 391), (640, 224)])
def test_equals_pillow(
    kind: Filter, code: int, size: tuple[int, int], wanted: tuple[int, int]
) -> None:
    height, width = size
    picture = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    whole = np.asarray(image.fromarray(picture).resize(wanted, code))
    found = resample(picture, kind, width=wanted[0], height=wanted[1], box=(0, 0, *wanted))
    np.testing.assert_array_equal(found, whole)
    box = (3, 20, wanted[0] - 9, wanted[1] - 1)
    part = resample(picture, kind, width=wanted[0], height=wanted[1], box=box)
    np.testing.assert_array_equal(part, whole[box[1] : box[3], box[0] : box[2]])


def test_the_picture_may_lie_anyhow_in_memory() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (90, 80, 3), dtype=np.uint8)
    mirrored = picture[::-1, ::-1, ::-1]
    box = (0, 0, 40, 30)
    found = resample(mirrored, BICUBIC, width=40, height=30, box=box)
    wanted = resample(np.ascontiguousarray(mirrored), BICUBIC, width=40, height=30, box=box)
    np.testing.assert_array_equal(found, wanted)
