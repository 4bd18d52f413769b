"""Clients' pictures decoded out of the server's own process.

A decoder is the likeliest place for a hostile picture to take hold of a server. Here it runs in two
small processes that hold nothing worth having: no keys, no sockets, no database, no files, no
environment; they may not open any, and their memory is bounded. A picture that crashes one, fills
its memory or takes too long is refused, and the process is replaced before the next picture comes.

    pool.py      PictureDecoder: open, picture, mask, close
    worker.py    one process as its parent sees it: start, ask, kill
    child.py     what runs in the process: decode, answer, nothing else
    confine.py   what the process gives up before it sees the first picture
    syscalls.py  the system calls that it has left

May import ``engine``, numpy, OpenCV, ``service.errors``, and the wire of
``service.engine_process``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.decoding.pool import PictureDecoder

__all__ = ["PictureDecoder"]


if not TYPE_CHECKING:  # a type checker would take every name for one that is there

    def __getattr__(name: str) -> object:
        """Import the parent's side when it is asked for: the processes have no need of it."""
        if name in __all__:
            return getattr(import_module("service.decoding.pool"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
