"""Geometry: chosen once, applied, and undone from the record."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import canvas
from engine.bundle import Defaults
from engine.canvas import Geometry, plan
from engine.mask import Mask


def good_at(size: int, max_size: int) -> Defaults:
    return Defaults(
        num_inference_steps=4,
        guidance_scale=1.0,
        size=size,
        max_size=max_size,
        context=0.5,
        scheduler="ddim",
    )


def mask_with_box(width: int, height: int, box: tuple[int, int, int, int]) -> Mask:
    mask = np.zeros((height, width), np.uint8)
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = 1
    return mask


def test_full_keeps_the_size_and_pads_to_eight() -> None:
    mask = mask_with_box(130, 100, (10, 10, 20, 20))
    geometry = plan(mask, region="full", defaults=good_at(64, 64))
    assert geometry.box == (0, 0, 130, 100)
    assert (geometry.working_width, geometry.working_height) == (130, 100)
    assert (geometry.padded_width, geometry.padded_height) == (136, 104)
    assert geometry.latent_shape == (13, 17)


def test_mask_region_is_brought_to_the_native_size() -> None:
    mask = mask_with_box(2000, 1500, (900, 700, 1100, 800))
    geometry = plan(mask, region="mask", defaults=good_at(512, 768))
    assert geometry.box == (800, 550, 1200, 950)
    assert (geometry.padded_width, geometry.padded_height) == (512, 512)


def test_a_large_hole_is_brought_down_to_the_largest_good_size() -> None:
    mask = mask_with_box(4000, 3000, (500, 500, 3500, 2500))
    geometry = plan(mask, region="auto", defaults=good_at(512, 768))
    assert geometry.padded_width == 768
    assert geometry.padded_height == 576
    assert geometry.box == (0, 0, 4000, 3000)


@pytest.mark.parametrize(
    ("size", "box", "whole"),
    [
        ((512, 512), (0, 0, 512, 512), True),  # all of it
        ((512, 512), (100, 100, 400, 400), True),  # most of it
        ((512, 512), (200, 200, 280, 280), False),  # a small hole
        ((256, 256), (20, 20, 236, 236), True),  # small: enlarged to what the model is good at
        ((2000, 2000), (0, 0, 2000, 2000), True),  # all of it, scaled down
    ],
)
def test_auto(size: tuple[int, int], box: tuple[int, int, int, int], whole: bool) -> None:
    geometry = plan(mask_with_box(*size, box), region="auto", defaults=good_at(512, 768))
    assert (geometry.box == (0, 0, *size)) is whole
    assert 512 <= max(geometry.padded_width, geometry.padded_height) <= 768


def test_an_empty_mask_works_on_the_whole() -> None:
    mask = np.zeros((100, 100), np.uint8)
    assert plan(mask, region="mask", defaults=good_at(64, 96)).box == (0, 0, 100, 100)


def test_nothing_is_lost_where_no_scaling_is_needed() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (100, 130, 3), dtype=np.uint8)
    geometry = Geometry(
        width=130, height=100, box=(3, 5, 103, 95), working_width=100, working_height=90
    )
    padded = geometry.image_in(picture)
    assert padded.shape == (96, 104, 3)
    assert np.array_equal(padded[95], padded[89])  # the edge is repeated
    assert np.array_equal(geometry.image_out(padded), picture[5:95, 3:103])


def test_padding_is_kept_not_repainted() -> None:
    mask = np.ones((100, 130), np.uint8)
    geometry = plan(mask, region="full", defaults=good_at(64, 200))
    padded = geometry.mask_in(mask)
    assert padded.shape == (104, 136)
    assert padded.sum() == 100 * 130


@settings(max_examples=300, deadline=None)
@given(
    width=st.integers(64, 1200),
    height=st.integers(64, 1200),
    corner=st.tuples(st.integers(0, 1100), st.integers(0, 1100)),
    extent=st.tuples(st.integers(1, 1200), st.integers(1, 1200)),
    region=st.sampled_from(["auto", "full", "mask"]),
)
def test_every_hole_lies_in_its_box(
    width: int, height: int, corner: tuple[int, int], extent: tuple[int, int], region: str
) -> None:
    x0, y0 = min(corner[0], width - 1), min(corner[1], height - 1)
    x1, y1 = min(x0 + extent[0], width), min(y0 + extent[1], height)
    mask = mask_with_box(width, height, (x0, y0, x1, y1))
    geometry = plan(mask, region=region, defaults=good_at(128, 192))  # type: ignore[arg-type]
    left, top, right, bottom = geometry.box
    assert 0 <= left <= x0 < x1 <= right <= width
    assert 0 <= top <= y0 < y1 <= bottom <= height
    assert geometry.mask_in(mask).any()
    shape = geometry.image_in(np.zeros((height, width, 3), np.uint8)).shape
    assert shape == (geometry.padded_height, geometry.padded_width, 3)
    assert shape[0] % 8 == shape[1] % 8 == 0
    if region == "mask":
        assert max(shape) <= 192
    out = geometry.image_out(np.zeros(shape, np.uint8))
    assert out.shape == (bottom - top, right - left, 3)


def test_a_picture_shrinks_to_the_same_bytes_by_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for width, height in rng.integers(64, 700, (40, 2)):
        picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        for size in ((64, 64), (width // 2, height // 2), (width - 1, height), (width, 64)):
            monkeypatch.undo()
            quick = canvas.resize(picture, width=size[0], height=size[1])
            monkeypatch.setattr(canvas, "_SMALL", 0)
            assert np.array_equal(quick, canvas.resize(picture, width=size[0], height=size[1]))
