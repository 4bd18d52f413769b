"""Where in the picture the work happens: the geometry of one request.

A ``Geometry`` is recorded once, used to bring picture and mask to the size the networks see, and
used again to bring the result back. The networks work on a box of the picture, resized to a
working size and padded to multiples of 8.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Final, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from engine.bundle import VAE_SCALE_FACTOR, Defaults
from engine.mask import Mask, bounding_box
from engine.mask import resize as resize_mask
from engine.request import InpaintRequest, Region
from engine.scratch import Scratch

Rgb = npt.NDArray[np.uint8]
Levels = npt.NDArray[np.float32]
Level = TypeVar("Level", np.uint8, np.float32)

_SMALL: Final = 3 << 20
"""Bytes of a picture of which a copy in float does not matter."""

_MIN_CONTEXT: Final = 16
"""At least that many pixels of context."""

_BUCKETS: Final = 8
"""A box that is seen at its own size has sides of whole eighths of the native size, so that few
shapes arise and requests share UNet calls."""

_WORTH_CROPPING: Final = 0.75
"""``auto`` works on the whole picture when the box would cover more than this share of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """How a request's picture maps to what the networks see.

    Attributes:
        width: Width of the result in pixels.
        height: Height of the result in pixels.
        box: (x0, y0, x1, y1) in the result, ends exclusive: the region that is worked on.
        working_width: Width in pixels the box is resized to.
        working_height: Height in pixels the box is resized to.
    """

    width: int
    height: int
    box: tuple[int, int, int, int]
    working_width: int
    working_height: int

    @property
    def padded_width(self) -> int:
        """The working width, rounded up to a multiple of 8."""
        return _round_up(self.working_width)

    @property
    def padded_height(self) -> int:
        """The working height, rounded up to a multiple of 8."""
        return _round_up(self.working_height)

    @property
    def latent_shape(self) -> tuple[int, int]:
        """(h, w) of the latents."""
        return self.padded_height // VAE_SCALE_FACTOR, self.padded_width // VAE_SCALE_FACTOR

    def image_in(self, image: Rgb, scratch: Scratch | None = None) -> Rgb:
        """Cut the box out of (height, width, 3), resize it and pad it by repeating its edge."""
        x0, y0, x1, y1 = self.box
        size = {"width": self.working_width, "height": self.working_height}
        cut = resize(image[y0:y1, x0:x1], **size, scratch=scratch)
        return _pad(cut, self.padded_width, self.padded_height, cv2.BORDER_REPLICATE)

    def mask_in(self, mask: Mask) -> Mask:
        """The same for the binary mask; the padding is kept, not repainted."""
        x0, y0, x1, y1 = self.box
        cut = resize_mask(mask[y0:y1, x0:x1], width=self.working_width, height=self.working_height)
        return _pad(cut, self.padded_width, self.padded_height, cv2.BORDER_CONSTANT)

    def image_out(self, levels: Levels, scratch: Scratch | None = None) -> Levels:
        """Undo ``image_in``: (padded_height, padded_width, 3) to the size of the box, with levels
        from 0 to 255. In float, as OpenCV's Lanczos of bytes takes four times as long."""
        x0, y0, x1, y1 = self.box
        cut = levels[: self.working_height, : self.working_width]
        out = resize(cut, width=x1 - x0, height=y1 - y0, scratch=scratch)
        return out if out is cut else np.clip(out, 0, 255, out=out)


def plan(
    mask: Mask,
    *,
    region: Region,
    defaults: Defaults,
    reference: bool = False,
    working_size: int | None = None,
) -> Geometry:
    """Choose the box and the working size for a binary mask at the size of the result.

    ``"full"`` works on the whole picture at its own size. ``"mask"`` works on the box round the
    mask with context, its longer side brought to at least ``defaults.size`` and at most
    ``defaults.max_size``, where the model is at its best; between the two it is seen at its own
    size, and widened to a whole eighth of ``defaults.size`` where the picture has room. ``"auto"``
    takes the cheaper of the two that the model is good at: the whole picture where it has such a
    size and is mostly mask. A ``working_size`` changes nothing in the choice of the box; its longer
    side is then brought to exactly that, and the shorter to a multiple of 8.
    """
    height, width = mask.shape
    whole = (0, 0, width, height)
    if reference or region == "full":
        return _geometry(width, height, whole, working_size)
    box = _with_context(bounding_box(mask) or whole, width, height, defaults)
    if region == "auto" and defaults.size <= max(width, height) <= defaults.max_size:
        share = (box[2] - box[0]) * (box[3] - box[1]) / (width * height)
        if share > _WORTH_CROPPING:
            return _geometry(width, height, whole, working_size)
    longer = max(box[2] - box[0], box[3] - box[1])
    native = min(max(longer, defaults.size), defaults.max_size)
    return _geometry(width, height, box, working_size or native)


def plan_of(request: InpaintRequest, mask: Mask, defaults: Defaults) -> Geometry:
    """``plan`` for a request and its binary mask at the size of the result."""
    return plan(
        mask,
        region=request.region,
        defaults=defaults,
        reference=request.reference,
        working_size=request.working_size,
    )


def shrunk(geometry: Geometry, share: float) -> Geometry:
    """The same box at a smaller working size: sides of about ``share``, multiples of 8."""
    width, height = (
        _round_up(math.ceil(side * share))
        for side in (geometry.working_width, geometry.working_height)
    )
    return dataclasses.replace(geometry, working_width=width, working_height=height)


def resize(
    image: npt.NDArray[Level], *, width: int, height: int, scratch: Scratch | None = None
) -> npt.NDArray[Level]:
    """Resize (H, W, 3): by area where it shrinks, by Lanczos where it grows, which overshoots in
    float. Where scratch memory is given, float levels that grew lie in it."""
    if image.shape[:2] == (height, width):
        return image
    smaller = min(width, image.shape[1]), min(height, image.shape[0])
    if smaller != (image.shape[1], image.shape[0]):
        image = _shrink(image, *smaller, scratch)
    if smaller != (width, height):
        kept = scratch is not None and image.dtype == np.float32
        room = scratch.floats("grown", (height, width, 3)) if scratch and kept else None
        grown = cv2.resize(image, (width, height), dst=room, interpolation=cv2.INTER_LANCZOS4)
        image = np.asarray(grown, image.dtype)
    return image


def _shrink(
    image: npt.NDArray[Level], width: int, height: int, scratch: Scratch | None
) -> npt.NDArray[Level]:
    """Resize by area. Bytes by way of float, which gives the same bytes in two thirds of the time,
    where the picture is small and the ratio uneven; OpenCV has a kernel of its own for even ones,
    with a rounding of its own."""
    even = image.shape[1] % width == 0 and image.shape[0] % height == 0
    if even or image.dtype != np.uint8 or image.size > _SMALL:
        return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))
    levels = (scratch or Scratch()).floats("to shrink", image.shape)
    np.copyto(levels, image)
    small = cv2.resize(levels, (width, height), interpolation=cv2.INTER_AREA)
    return np.rint(small).astype(image.dtype)


def _geometry(
    width: int, height: int, box: tuple[int, int, int, int], working_size: int | None
) -> Geometry:
    """A box whose longer side is brought to ``working_size``; None leaves it as it is."""
    x0, y0, x1, y1 = box
    scale = 1.0 if working_size is None else working_size / max(x1 - x0, y1 - y0)
    sides = [max(VAE_SCALE_FACTOR, round((b - a) * scale)) for a, b in ((x0, x1), (y0, y1))]
    if scale != 1.0:  # a free choice of size: take one that needs no padding
        sides = [_round_up(side) for side in sides]
    return Geometry(
        width=width, height=height, box=box, working_width=sides[0], working_height=sides[1]
    )


def _with_context(
    box: tuple[int, int, int, int], width: int, height: int, defaults: Defaults
) -> tuple[int, int, int, int]:
    """Widen a box towards a square with context, moved and cut so that it lies in the picture."""
    x0, y0, x1, y1 = box
    longer = max(x1 - x0, y1 - y0)
    side = longer + 2 * max(round(longer * defaults.context), _MIN_CONTEXT)
    if defaults.size < side < defaults.max_size:
        bucket = _round_up(-(-defaults.size // _BUCKETS))
        side = min(-(-side // bucket) * bucket, defaults.max_size)
    xs = _span((x0 + x1) / 2, side, width)
    ys = _span((y0 + y1) / 2, side, height)
    return xs[0], ys[0], xs[1], ys[1]


def _span(centre: float, side: int, limit: int) -> tuple[int, int]:
    side = min(side, limit)
    start = min(max(round(centre - side / 2), 0), limit - side)
    return start, start + side


def _round_up(value: int) -> int:
    return -(-value // VAE_SCALE_FACTOR) * VAE_SCALE_FACTOR


def _pad(
    array: npt.NDArray[np.uint8], width: int, height: int, border: int
) -> npt.NDArray[np.uint8]:
    bottom, right = height - array.shape[0], width - array.shape[1]
    if not bottom and not right:
        return array
    return np.asarray(cv2.copyMakeBorder(array, 0, bottom, 0, right, border, value=0), np.uint8)
