"""What the process asks the kernel for, seen from outside of the code under test.

The interpreter reports every ``connect`` of every socket to audit hooks, whichever library makes
it. A hook cannot be taken away again, so there is one for all tests.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import sys
from collections.abc import Iterator
from typing import Any

_records: list[list[tuple[str, int]]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "socket.connect" or not _records:
        return
    sock, address = arguments
    if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM:
        for record in _records:
            record.append(address[:2])


@functools.cache
def _install() -> None:
    sys.addaudithook(_hook)


@contextlib.contextmanager
def connects() -> Iterator[list[tuple[str, int]]]:
    """The host and port of every TCP connection that is asked for meanwhile, granted or not."""
    _install()
    record: list[tuple[str, int]] = []
    _records.append(record)
    try:
        yield record
    finally:
        _records[:] = [each for each in _records if each is not record]
