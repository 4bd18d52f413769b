"""What a storage does, whatever lies behind it, and when a disk counts as full."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Protocol

from starlette.responses import Response

RESERVE: Final = 64 * 2**20
"""Free space in bytes below which no new requests are taken, so that those already taken can be
recorded to their end."""

RESERVED_FILES: Final = 64

FULL: Final = "The server's disk is full."
UNUSABLE: Final = "The storage for pictures cannot be used now."


class Storage(Protocol):
    """Keeps pictures. All methods but ``open`` and ``close`` may run at the same time."""

    async def open(self) -> None:
        """See that pictures can be kept.

        Raises:
            StorageError: When they cannot, with the reason for the operator.
        """
        ...

    async def close(self) -> None:
        """Let go of connections; without ``open`` nothing happens."""
        ...

    async def trouble(self) -> str | None:
        """Why no new request should be taken now, as a sentence, or None; cheap enough to ask
        before every request."""
        ...

    async def keep(self, files: Mapping[str, bytes]) -> None:
        """Keep the pictures of a request by their names: each is whole and safe, or not there.

        Raises:
            StorageError: When one could not be kept; then none is of use.
            ValueError: When a name is not one of a picture.
        """
        ...

    async def read(self, name: str) -> bytes | None:
        """A picture, or None where there is none of this name.

        Raises:
            StorageError: When the storage does not answer.
        """
        ...

    async def response(
        self, name: str, *, headers: Mapping[str, str], body: bool
    ) -> Response | None:
        """The answer to GET (with ``body``) and HEAD, or None where there is no such picture.

        Raises:
            StorageError: When the storage does not answer.
        """
        ...

    async def remove(self, names: Iterable[str]) -> None:
        """Forget pictures; nothing happens for those that are not there.

        Raises:
            StorageError: When the storage does not answer.
        """
        ...

    async def sweep(self, before: float) -> int:
        """Remove every picture last written before a time (seconds since 1970).

        Returns:
            How many there were, leftovers of interrupted writes among them.

        Raises:
            StorageError: When the storage does not answer.
        """
        ...


def full(folders: Iterable[Path]) -> bool:
    """Whether one of these folders, as far as they exist, lies on a disk that has no room."""
    for folder in folders:
        try:
            disk = os.statvfs(folder)
        except OSError:
            continue
        no_names = disk.f_files > 0 and disk.f_favail < RESERVED_FILES
        if disk.f_bavail * disk.f_frsize < RESERVE or no_names:
            return True
    return False
