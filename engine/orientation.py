"""The EXIF orientation of a picture: found in its EXIF block, and undone (EXIF 2.32, table 6)."""

from __future__ import annotations

import struct
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_TAG: Final = 0x0112
_SHORT: Final = 3


def read_orientation(block: bytes) -> int:
    """The orientation in the first directory of a TIFF block; 1 where there is none or the block is
    damaged. Links to further directories are not followed."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, start)
        for i in range(count):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", block, start + 2 + 12 * i)
            if (tag, kind) == (_TAG, _SHORT):
                return value if 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1


def upright(pixels: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Undo an orientation: mirror, then turn clockwise. (H, W, ...) or (W, H, ...)."""
    if orientation in (2, 4, 5, 7):
        pixels = pixels[:, ::-1]
    turns = {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}[orientation]
    turned: npt.NDArray[Any] = np.rot90(pixels, turns)
    return np.ascontiguousarray(turned)
