"""Pasting back: exact outside, without a seam inside."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from engine import composite


def paste(
    original: npt.NDArray[np.uint8],
    generated: npt.NDArray[np.uint8],
    mask: npt.NDArray[np.uint8],
    box: tuple[int, int, int, int],
) -> npt.NDArray[np.uint8]:
    target = original.copy()
    composite.paste(target, generated.astype(np.float32), mask, box)
    return target


def test_outside_the_mask_nothing_changes(
    picture: npt.NDArray[np.uint8], hole: npt.NDArray[np.uint8]
) -> None:
    mask = (hole > 0).astype(np.uint8)
    generated = np.random.default_rng(1).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    result = paste(picture, generated, mask, (30, 10, 110, 74))
    assert np.array_equal(result[mask == 0], picture[mask == 0])
    assert (result[mask == 1] != picture[mask == 1]).mean() > 0.9


def test_a_colour_shift_of_the_networks_leaves_no_seam(
    picture: npt.NDArray[np.uint8], hole: npt.NDArray[np.uint8]
) -> None:
    """The networks repeat the picture, but 20 levels too dark: at the border that must vanish."""
    mask = (hole > 0).astype(np.uint8)
    dark = np.clip(picture.astype(int) - 20, 0, 255).astype(np.uint8)
    result = paste(picture, dark, mask, (0, 0, 128, 96))
    error = result.astype(int) - picture
    assert np.abs(error[30, 52:88]).mean() < 4  # the hole's first row
    assert np.abs(error[46, 65:75]).mean() < 12  # its middle: faded, not overdone
    assert np.abs(error).max() <= 21


def test_what_is_right_stays_right(
    picture: npt.NDArray[np.uint8], hole: npt.NDArray[np.uint8]
) -> None:
    mask = (hole > 0).astype(np.uint8)
    assert np.array_equal(paste(picture, picture, mask, (0, 0, 128, 96)), picture)


def test_a_mask_over_everything(picture: npt.NDArray[np.uint8]) -> None:
    generated = 255 - picture
    result = paste(picture, generated, np.ones((96, 128), np.uint8), (0, 0, 128, 96))
    assert np.array_equal(result, generated)


@pytest.mark.parametrize(("left", "worst"), [(200, 0), (203, 2)])
def test_what_lies_far_from_the_hole_is_not_looked_at(
    monkeypatch: pytest.MonkeyPatch, left: int, worst: int
) -> None:
    """The same bytes as by the error of the whole picture, where the coarse grids agree."""
    rng = np.random.default_rng(2)
    original = rng.integers(0, 256, (400, 512, 3), dtype=np.uint8)
    generated = rng.integers(0, 256, (400, 512, 3), dtype=np.uint8)
    mask = np.zeros((400, 512), np.uint8)
    mask[160:240, left : left + 80] = 1
    near = paste(original, generated, mask, (0, 0, 512, 400))
    monkeypatch.setattr(composite, "_REACH", 1000)
    whole = paste(original, generated, mask, (0, 0, 512, 400))
    assert np.abs(near.astype(int) - whole).max() <= worst
    assert (near[mask == 1] != generated[mask == 1]).any()
