"""How the C library keeps memory that the processes of the service have used.

Every request brings a few buffers of a megabyte. By default glibc maps such a buffer anew, gives it
back, and has the kernel fill the next one with zeros page by page; and every thread that allocates
gets an arena of its own, whose free memory no other thread can use. The first costs milliseconds a
request, the second lets a server with many threads grow for hours.
"""

from __future__ import annotations

import ctypes
from typing import Final

ARENAS: Final = 2
KEPT: Final = 32 << 20
"""Bytes of free memory that stay with the process."""

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8


def trim() -> None:
    """Give free memory back to the system, where this C library can (malloc_trim(3)): opening a
    network leaves more of it than requests will use again."""
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if give_back is not None:
        give_back(0)


def keep_buffers() -> bool:
    """Have malloc keep what is used again and again, in few arenas (mallopt(3)).

    To be called before a process starts its threads.

    Returns:
        Whether this C library can be told; glibc can.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    told = ((_M_ARENA_MAX, ARENAS), (_M_MMAP_THRESHOLD, KEPT), (_M_TRIM_THRESHOLD, KEPT))
    return all([mallopt(what, value) == 1 for what, value in told])
