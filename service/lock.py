"""One server at a time on a data folder: a second one would take the first one's running jobs for
those of a crash."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

NAME: Final = "server.lock"


class InUseError(Exception):
    """Another process serves from the folder; the message names it."""


@contextlib.contextmanager
def sole_server(folder: Path) -> Iterator[None]:
    """Hold the folder until the context, or the process however it ends, ends.

    Args:
        folder: The data folder, which must be there.

    Raises:
        InUseError: When another server holds it.
        OSError: When it cannot be written.
    """
    with (folder / NAME).open("a+", encoding="ascii") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            owner = stream.read(20).strip() or "unknown"
            raise InUseError(f"{folder} is in use by the server with process id {owner}") from None
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        yield
