"""The mask: threshold, resizing, and the way to the latent grid."""

from __future__ import annotations

import numpy as np

from engine.mask import binarise, bounding_box, to_latents, to_latents_nearest


def test_threshold_is_half() -> None:
    grey = np.array([[0, 127, 128, 255]], np.uint8)
    assert binarise(grey, width=4, height=1).tolist() == [[0, 0, 1, 1]]


def test_a_thin_stroke_survives_shrinking() -> None:
    grey = np.zeros((1024, 1024), np.uint8)
    grey[:, 501] = 255
    small = binarise(grey, width=128, height=128)
    assert small.any(axis=1).all()


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
