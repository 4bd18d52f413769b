"""Memory that is used again: never anybody else's result."""

from __future__ import annotations

import gc
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from engine import Engine, scratch
from engine.bundle import Defaults
from engine.canvas import plan
from engine.composite import paste
from engine.models import to_levels
from engine.scratch import Scratch


def dirty(*uses: str) -> Scratch:
    """Scratch memory that holds what would spoil every picture."""
    spoilt = Scratch()
    for use in uses:
        spoilt.floats(use, (256, 256, 3)).fill(np.nan)
    return spoilt


def test_memory_is_used_again_where_it_is_large_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "KEPT_BYTES", 1000)
    some = Scratch()
    large = some.floats("a", (10, 20))
    assert large.shape == (10, 20)
    assert large.dtype == np.float32
    small = some.levels("a", (3, 5))
    assert small.dtype == np.uint8
    assert small.flags.c_contiguous
    assert np.shares_memory(large, small)
    assert not np.shares_memory(small, some.levels("b", (3, 5)))
    grown = some.floats("a", (10, 25))
    assert not np.shares_memory(grown, large)
    assert np.shares_memory(grown, some.levels("a", (1,)))
    assert not np.shares_memory(some.floats("a", (251,)), some.floats("a", (251,)))


@pytest.mark.parametrize("size", [(128, 96), (70, 52), (61, 43), (200, 170)])
@pytest.mark.parametrize("region", ["full", "mask"])
def test_what_lay_there_before_does_not_matter(size: tuple[int, int], region: Any) -> None:
    rng = np.random.default_rng(5)
    width, height = size
    picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = np.zeros((height, width), np.uint8)
    cv2.rectangle(mask, (width // 3, height // 3), (width // 2, height - 4), 1, -1)
    defaults = Defaults(
        num_inference_steps=4,
        guidance_scale=1.0,
        size=64,
        max_size=64,
        context=0.2,
        scheduler="ddim",
    )
    geometry = plan(mask, region=region, defaults=defaults)
    planes = rng.normal(0, 0.7, (3, geometry.padded_height, geometry.padded_width))
    made = []
    uses = ("to shrink", "planes", "levels", "grown", "known", "lacking", "error", "filled")
    for memory in (None, dirty(*uses), None):
        seen = geometry.image_in(picture, memory)
        target = picture.copy()
        levels = to_levels(planes.astype(np.float32), memory)
        paste(target, geometry.image_out(levels, memory), mask, geometry.box, memory)
        made.append((seen.tobytes(), target.tobytes()))
        assert (target != picture).any()
    assert made[0] == made[1] == made[2]


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("changes", [{}, {"region": "full"}, {"reference": True}])
def test_a_result_owns_its_memory(
    manual: Engine, ask: Any, samples: int, changes: dict[str, Any]
) -> None:
    asked = ask(samples=samples, **changes)
    image, mask = asked.image.copy(), asked.mask.copy()
    asked.image.flags.writeable = asked.mask.flags.writeable = False
    first = manual.inpaint(asked)
    kept: npt.NDArray[np.uint8] = first.images.copy()
    for array in (asked.image, asked.mask):
        assert not np.shares_memory(first.images, array)
    again, other = manual.inpaint(asked), manual.inpaint(ask(samples=samples, seed=99, **changes))
    gc.collect()
    assert np.array_equal(first.images, kept)
    assert np.array_equal(again.images, kept)
    assert not np.array_equal(other.images, kept)
    assert np.array_equal(asked.image, image)
    assert np.array_equal(asked.mask, mask)
    first.images[:] = 0  # it is the caller's to change
    assert np.array_equal(again.images, kept)
