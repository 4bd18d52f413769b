"""The noise is PyTorch's: goldens recorded from torch 2.13, and torch itself where installed.

Recorded with ``torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))``.
"""

from __future__ import annotations

import numpy as np
import pytest

from engine.noise import Generator

TOLERANCE = 1e-6
"""Rounding of float32 logarithms and trigonometric functions; the largest seen is 5e-7."""

GOLDENS = [
    (0, (1, 4, 8, 8), [-1.1258398, -1.1523602, -0.2505786], [0.1447429, 1.9028565, 0.3903958]),
    (1, (1, 4, 64, 64), [-1.5255959, -0.7502318, -0.6539809], [0.4128481, 0.54039, 1.7959211]),
    (42, (1, 4, 9, 9), [1.9269153, 1.4872841, 0.9007172], [-0.9697952, 1.8931538, 0.4446887]),
    (7, (3,), [-0.1467951, 0.7861413, 0.9468216], [-0.1467951, 0.7861413, 0.9468216]),
    (123456789, (17,), [0.2642554, -0.705566, 1.47007], [0.7800277, -1.8619113, 0.9574975]),
]


@pytest.mark.parametrize(("seed", "shape", "first", "last"), GOLDENS)
def test_goldens(seed: int, shape: tuple[int, ...], first: list[float], last: list[float]) -> None:
    drawn = Generator(seed).normal(shape)
    assert drawn.shape == shape
    assert drawn.dtype == np.float32
    np.testing.assert_allclose(drawn.ravel()[:3], first, atol=TOLERANCE)
    np.testing.assert_allclose(drawn.ravel()[-3:], last, atol=TOLERANCE)


@pytest.mark.export
def test_the_stream_goes_on_as_torch_does() -> None:
    torch = pytest.importorskip("torch")
    for seed in (0, 7, 2**32 + 5, 2**53 - 1):
        reference = torch.Generator("cpu").manual_seed(seed)
        generator = Generator(seed)
        # sizes below 16, multiples of 16, and those with a tail take three different ways
        for shape in ((1, 4, 64, 64), (1, 4, 9, 9), (3,), (5,), (16,), (17,), (1, 4, 9, 13)):
            expected = torch.randn(shape, generator=reference).numpy()
            np.testing.assert_allclose(generator.normal(shape), expected, atol=TOLERANCE)


def test_two_seeds_differ_and_one_repeats() -> None:
    shape = (1, 4, 8, 8)
    assert np.array_equal(Generator(3).normal(shape), Generator(3).normal(shape))
    assert not np.array_equal(Generator(3).normal(shape), Generator(4).normal(shape))
