"""The picture, the hole and the request that everything here is measured with."""

from __future__ import annotations

import base64
from typing import Any, Final

import cv2
import numpy as np

from engine import InpaintRequest
from engine.image import Grey, Rgb, decode_mask, decode_picture, encode_jpeg, encode_png
from service.commands.inpaint import DEMO

PATH: Final = "/api/v6/realtime/inpaint"
SIDE: Final = 512
_FIXED: Final[dict[str, Any]] = {"prompt": "a red apple", "seed": 7, "strength": 0.7}


def pictures() -> tuple[Rgb, Grey]:
    """The demo's photograph (512, 512, 3) and its mask (512, 512)."""
    photo = decode_picture((DEMO / "photo.png").read_bytes())
    mask = decode_mask((DEMO / "mask.png").read_bytes())
    assert photo.shape == (SIDE, SIDE, 3)
    return photo, mask


def direct() -> InpaintRequest:
    """The request as the engine takes it, its pictures decoded."""
    photo, mask = pictures()
    return InpaintRequest(image=photo, mask=mask, width=SIDE, height=SIDE, **_FIXED)


def body(**changes: Any) -> dict[str, Any]:
    """The same request as a client sends it: PNGs in base64 (0.45 MB in all)."""
    photo, mask = pictures()
    return {
        "key": "bench",
        **_FIXED,
        "width": SIDE,
        "height": SIDE,
        "init_image": _base64(encode_png(photo)),
        "mask_image": _base64(encode_png(np.repeat(mask[..., None], 3, axis=2))),
    } | changes


def small_body(**changes: Any) -> dict[str, Any]:
    """A request of a few kilobytes: the same picture at 64x64, as a JPEG."""
    photo, mask = pictures()
    small = np.asarray(cv2.resize(photo, (64, 64), interpolation=cv2.INTER_AREA), np.uint8)
    hole = np.asarray(cv2.resize(mask, (64, 64), interpolation=cv2.INTER_NEAREST), np.uint8)
    return {
        "key": "bench",
        **_FIXED,
        "width": 64,
        "height": 64,
        "init_image": _base64(encode_jpeg(small)),
        "mask_image": _base64(encode_png(np.repeat(hole[..., None], 3, axis=2))),
    } | changes


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
