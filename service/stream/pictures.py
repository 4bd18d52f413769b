"""The pictures that a stream keeps, and the small ones that its previews are made of."""

from __future__ import annotations

import asyncio
import hashlib
import math
from typing import Final, Literal, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from engine import Bundle, InpaintRequest
from engine import mask as masks
from engine.canvas import Geometry, plan_of, resize
from engine.image import encode_jpeg
from service.decoding import PictureDecoder
from service.errors import ApiError
from service.inputs import PictureReader, summary

Pixels: TypeAlias = npt.NDArray[np.uint8]
Field: TypeAlias = Literal["init_image", "mask_image"]
FIELDS: Final[tuple[Field, ...]] = ("init_image", "mask_image")

PREVIEW_SIDE: Final = 256
"""Longest side of a preview in pixels."""

PREVIEW_QUALITY: Final = 80


class Source:
    """A picture as it was sent. It is read once, and decoded once for a size: what is kept is the
    file, and pixels no larger than a result, whatever the picture's own size.

    Args:
        field: What it is for.
        sent: A URL, a data URI or base64; or the file's bytes.

    Attributes:
        summary: What answers show of it.
    """

    def __init__(self, field: Field, sent: str | bytes) -> None:
        self.field: Final = field
        self._sent = sent
        self._made: tuple[tuple[int, int], Pixels] | None = None
        if isinstance(sent, str):
            self.summary = summary(sent)
        else:
            self.summary = "sha256:" + hashlib.sha256(sent).hexdigest()[:16]

    async def pixels(
        self,
        size: tuple[int, int],
        *,
        reader: PictureReader,
        decoder: PictureDecoder,
        root: str,
        owner: str,
    ) -> Pixels:
        """The picture at (width, height), as the engine itself would bring it to that size.

        Raises:
            ApiError: 400 when it cannot be got.
            InputError: When it is no good PNG or JPEG within the limits.
        """
        if self._made is None or self._made[0] != size:
            if isinstance(self._sent, str):
                data = await reader.read(self.field, self._sent, root=root, owner=owner)
                self._sent = data
            else:
                data = self._sent
            if len(data) > decoder.limits.max_bytes:
                most = f"{decoder.limits.max_bytes / 1e6:g} MB"
                raise ApiError(400, f"The {self.field.replace('_', ' ')} is larger than {most}.")
            decode = decoder.picture if self.field == "init_image" else decoder.mask
            whole = await decode(data, field=self.field)
            self._made = size, await asyncio.to_thread(_sized, self.field, whole, size)
        return self._made[1]


def _sized(field: Field, whole: Pixels, size: tuple[int, int]) -> Pixels:
    width, height = size
    if field == "mask_image":
        return masks.binarise(whole, width=width, height=height) * np.uint8(255)
    return resize(whole, width=width, height=height)


class Sketch:
    """Makes previews of one request: its whole picture, small, with what the engine foresees in the
    hole.

    Args:
        request: Picture and mask at the size of the result.
        bundle: What it is made with.
    """

    def __init__(self, request: InpaintRequest, bundle: Bundle) -> None:
        height, width = request.image.shape[:2]
        binary = (request.mask >= masks.THRESHOLD).astype(np.uint8)
        self._geometry: Final = plan_of(request, binary, bundle.defaults)
        scale = min(1.0, PREVIEW_SIDE / max(width, height))
        self.width: Final = max(1, round(width * scale))
        self.height: Final = max(1, round(height * scale))
        size = (self.width, self.height)
        small = cv2.resize(request.image, size, interpolation=cv2.INTER_AREA)
        self._image: Final = np.asarray(small, np.uint8)
        hole = cv2.resize(binary * np.uint8(255), size, interpolation=cv2.INTER_AREA)
        self._hole = np.asarray(hole)[..., None].astype(np.uint16)
        self._box = _shrunk(self._geometry, scale, size)

    def jpeg(self, foreseen: Pixels) -> bytes:
        """A preview as JPEG.

        Args:
            foreseen: What ``Ticket.on_step`` gives: (h, w, 3), the region that is worked on.
        """
        x0, y0, x1, y1 = self._box
        cell = self._geometry.padded_height / foreseen.shape[0]
        inside = foreseen[
            : math.ceil(self._geometry.working_height / cell),
            : math.ceil(self._geometry.working_width / cell),
        ]
        picture = self._image.copy()
        grown = cv2.resize(inside, (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR)
        hole = self._hole[y0:y1, x0:x1]
        part = picture[y0:y1, x0:x1]
        part[...] = (np.asarray(grown) * hole + part * (255 - hole) + 127) // 255
        return encode_jpeg(picture, PREVIEW_QUALITY)


def _shrunk(geometry: Geometry, scale: float, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box that is worked on, in pixels of the preview; at least one of them."""
    x0, y0, x1, y1 = (round(edge * scale) for edge in geometry.box)
    x0, y0 = min(x0, size[0] - 1), min(y0, size[1] - 1)
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)
