"""A bad request is refused when it is made, naming the field, the value and what is allowed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine import InpaintRequest, InputError

GOOD: dict[str, Any] = {
    "image": np.zeros((64, 64, 3), np.uint8),
    "mask": np.zeros((64, 64), np.uint8),
    "prompt": "a cat",
}


def test_a_good_request() -> None:
    request = InpaintRequest(**GOOD)
    assert request.samples == 1
    assert request.strength == 1.0


def test_numpy_numbers_become_plain() -> None:
    changes = {"seed": np.uint8(255), "strength": np.float32(0.5), "samples": np.int64(4)}
    request = InpaintRequest(**(GOOD | changes))
    assert type(request.seed) is int
    assert type(request.strength) is float
    assert request.seed + request.samples == 259


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("image", np.zeros((64, 64), np.uint8), r"uint8 array of shape \(H, W, 3\)"),
        ("image", np.zeros((64, 64, 4), np.uint8), "3 channels"),
        ("image", np.zeros((64, 64, 3), np.float32), "float32"),
        ("image", np.zeros((0, 64, 3), np.uint8), "64x0 pixels"),
        ("image", "photo.png", "got str"),
        ("mask", np.zeros((64, 64, 1), np.uint8), r"shape \(H, W\)"),
        ("mask", np.zeros((64, 64), bool), "bool"),
        ("prompt", None, "must be text, got NoneType"),
        ("prompt", "x" * 10_001, "10001 characters"),
        ("negative_prompt", 3, "must be text"),
        ("width", 63, "between 64 and 1024"),
        ("width", 1025, "between 64 and 1024"),
        ("height", 100.0, "must be an integer"),
        ("samples", 0, "between 1 and 4"),
        ("samples", 5, "between 1 and 4"),
        ("samples", True, "must be an integer"),
        ("seed", -1, "between 0 and"),
        ("seed", 2**53, "between 0 and"),
        ("strength", 1.01, "between 0 and 1"),
        ("strength", float("nan"), "between 0 and 1"),
        ("strength", "0.5", "must be a number"),
        ("num_inference_steps", 0, "between 1 and 200"),
        ("guidance_scale", -1.0, "between 0 and 50"),
        ("prompt", "\ud800", "is not valid Unicode"),
        ("scheduler", ["ddim"], "must be a name"),
        ("region", "left", "allowed: auto, full, mask"),
    ],
)
def test_a_bad_value(field: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        InpaintRequest(**(GOOD | {field: value}))
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")
