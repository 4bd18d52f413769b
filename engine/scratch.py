"""Large arrays that are used again for one picture after another.

Memory that is new to a process costs more than most of what is done with it here: the kernel clears
it page by page as it is touched, and takes it back as soon as it is let go.
"""

from __future__ import annotations

import math
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

KEPT_BYTES: Final = 16 << 20
"""What is larger is made anew each time."""

Kind = TypeVar("Kind", bound=np.generic)


class Scratch:
    """Hands out arrays by what they are for; of each only the last one handed out is good.

    For one thread at a time.
    """

    def __init__(self) -> None:
        self._kept: dict[str, npt.NDArray[np.uint8]] = {}

    def floats(self, use: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """A C-contiguous float32 array whose values mean nothing."""
        return self._array(use, shape, np.dtype(np.float32))

    def levels(self, use: str, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """The same of uint8."""
        return self._array(use, shape, np.dtype(np.uint8))

    def _array(self, use: str, shape: tuple[int, ...], dtype: np.dtype[Kind]) -> npt.NDArray[Kind]:
        size = math.prod(shape) * dtype.itemsize
        kept: npt.NDArray[Any] | None = self._kept.get(use)
        if kept is None or len(kept) < size:
            kept = np.empty(size, np.uint8)
            if size <= KEPT_BYTES:
                self._kept[use] = kept
        return kept[:size].view(dtype).reshape(shape)
