"""The mask: threshold, resizing, and the way to the latent grid."""

from __future__ import annotations

import numpy as np
import pytest

from engine.mask import binarise, bounding_box, resize, to_latents, to_latents_nearest


def test_threshold_is_half() -> None:
    grey = np.array([[0, 127, 128, 255]], np.uint8)
    assert binarise(grey, width=4, height=1).tolist() == [[0, 0, 1, 1]]


def test_a_thin_stroke_survives_shrinking() -> None:
    grey = np.zeros((1024, 1024), np.uint8)
    grey[:, 501] = 255
    small = binarise(grey, width=128, height=128)
    assert small.any(axis=1).all()


@pytest.mark.parametrize("shape", [(300, 2000), (2000, 300), (400, 1600), (8000, 70), (513, 511)])
def test_a_thin_stroke_survives_every_change_of_shape(shape: tuple[int, int]) -> None:
    """A panorama's mask shrinks on one axis while it grows on the other."""
    for axis in (0, 1):
        for place in range(0, shape[axis], max(1, shape[axis] // 97)):
            binary = np.zeros(shape, np.uint8)
            np.moveaxis(binary, axis, 0)[place] = 1
            small = resize(binary, width=512, height=512)
            assert np.moveaxis(small, axis, 0).any(axis=0).all()
    single = np.zeros(shape, np.uint8)
    single[shape[0] // 3, shape[1] // 3] = 1
    assert resize(single, width=64, height=64).any()


def test_a_cell_counts_as_soon_as_it_is_touched() -> None:
    line = np.array([[0, 1, 0, 0, 0]], np.uint8)  # pixel 1 of 5 lies in cells 0 and 1 of 3
    assert resize(line, width=3, height=1).tolist() == [[1, 1, 0]]
    assert resize(line, width=10, height=1).tolist() == [[0, 0, 1, 1, 0, 0, 0, 0, 0, 0]]


def test_enlarging_keeps_the_shares() -> None:
    grey = np.zeros((8, 8), np.uint8)
    grey[2:6, 2:6] = 255
    assert binarise(grey, width=64, height=64).mean() == 0.25


def test_any_pixel_counts_for_its_latent_cell() -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[13, 22] = 1
    cells = to_latents(mask)
    assert cells.shape == (1, 1, 8, 8)
    assert cells.sum() == 1
    assert cells[0, 0, 1, 2] == 1
    assert to_latents_nearest(mask).sum() == 0  # what diffusers makes of it


def test_bounding_box() -> None:
    mask = np.zeros((40, 50), np.uint8)
    assert bounding_box(mask) is None
    mask[10:20, 30:45] = 1
    assert bounding_box(mask) == (30, 10, 45, 20)
