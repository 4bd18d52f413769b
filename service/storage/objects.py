"""Pictures as objects in a bucket, through the fsspec driver of the store.

Each picture is written by one PUT, which such stores carry out whole or not at all. Pictures are
sent to clients through this server, so that their links stay the same and buckets may be private.

S3 needs the permissions GetObject, PutObject, DeleteObject and ListBucket; without the last, a
picture that is not there yet looks like one that is forbidden.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from email.utils import formatdate
from pathlib import Path
from typing import Any, Final, TypeVar

import fsspec
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from starlette.responses import Response, StreamingResponse

from service.errors import StorageError
from service.storage.base import FULL, UNUSABLE, full
from service.storage.location import DRIVERS, Location
from service.storage.names import FIRST_LETTERS, content_type, require

logger = logging.getLogger(__name__)

T = TypeVar("T")

MARKER: Final = ".edgefill"
"""The object that is written at the start and looked at to see whether the store answers."""

PIECE: Final = 2**20
"""Bytes that are got from the store at a time while a client reads."""

PROBE_EVERY: Final = 5.0
"""Seconds for which the store is trusted to be as it was."""

PROBE_SECONDS: Final = 3.0
START_SECONDS: Final = 20.0
WRITE_SECONDS: Final = 20.0
READ_SECONDS: Final = 10.0
LIST_SECONDS: Final = 60.0
PAUSES: Final = (0.5, 2.0)
"""Seconds before a failed write is tried again."""

OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "s3": {
        "config_kwargs": {
            "connect_timeout": 3,
            "read_timeout": 15,
            "retries": {"total_max_attempts": 2, "mode": "standard"},
        }
    }
}
"""What each driver is told: to give up in time, since failed writes are tried again here."""

_DELETES: Final = 50
_LARGEST: Final = 2**28
_MODIFIED: Final = ("LastModified", "last_modified", "mtime", "updated", "created")


class ObjectStore:
    """The storage in a bucket.

    Args:
        location: The bucket, and the prefix that all names get. Other objects are left alone.
        disks: Folders of this machine whose disks must have room.
        clock: Seconds, for how old the last look at the store is.
    """

    def __init__(
        self,
        location: Location,
        *,
        disks: Sequence[Path] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._location = location
        self._disks = disks
        self._clock = clock
        self._fs: Any = None
        self._session: Any = None
        self._letters = FIRST_LETTERS
        self._trouble: str | None = None
        self._looked = clock()
        self._looking: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Load the driver, connect, and write the marker."""
        scheme = self._location.scheme
        try:
            driver = await asyncio.to_thread(fsspec.get_filesystem_class, scheme)
        except ImportError as exc:
            raise StorageError(
                f"the driver of {scheme}:// is not installed: {DRIVERS[scheme]}", reason=UNUSABLE
            ) from exc
        if driver.async_impl:
            self._fs = driver(
                asynchronous=True,
                skip_instance_cache=True,
                use_listings_cache=False,
                **OPTIONS.get(scheme, {}),
            )
        else:
            self._fs = AsyncFileSystemWrapper(driver(), asynchronous=True)
            self._letters = ""  # such a driver cannot list by a first letter
        if scheme == "memory":
            logger.warning("pictures are kept in memory, and are gone when the server stops")
        try:
            if hasattr(self._fs, "set_session"):
                self._session = await self._ask(self._fs.set_session(), START_SECONDS)
            await self._mark(START_SECONDS)
        except BaseException:
            await self.close()
            raise
        self._seen(None)
        logger.info("pictures: %s", self._location)

    async def close(self) -> None:
        """End the connections."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def trouble(self) -> str | None:
        """What the last look said, or the last write; the store is asked again by one HEAD after
        some seconds, and nobody waits for that while it is known to be in trouble."""
        if await asyncio.to_thread(full, self._disks):
            return FULL
        if self._looking is None and self._clock() - self._looked >= PROBE_EVERY:
            self._looking = asyncio.create_task(self._look())
        if self._looking is not None and self._trouble is None:
            await asyncio.shield(self._looking)
        return self._trouble

    async def keep(self, files: Mapping[str, bytes]) -> None:
        """One PUT each, all at once; what fails for the moment is tried again."""
        paths = {self._path(require(name)): data for name, data in files.items()}
        done = await asyncio.gather(
            *(self._put(path, data) for path, data in paths.items()), return_exceptions=True
        )
        for outcome in done:
            if isinstance(outcome, StorageError):
                self._seen(outcome.reason)
            if outcome is not None:
                raise outcome
        self._seen(None)

    async def read(self, name: str) -> bytes | None:
        """The bytes of an object."""
        if content_type(name) is None:
            return None
        try:
            return await self._piece(self._path(name), 0, _LARGEST)
        except FileNotFoundError:
            return None

    async def response(
        self, name: str, *, headers: Mapping[str, str], body: bool
    ) -> Response | None:
        """A response that gets the object piece by piece as the client takes it."""
        media_type = content_type(name)
        if media_type is None:
            return None
        path = self._path(name)
        try:
            info = await self._ask(self._fs._info(path), READ_SECONDS)
            if info["type"] != "file":
                return None
            size = int(info["size"])
            first = await self._piece(path, 0, min(size, PIECE)) if body else b""
        except FileNotFoundError:
            return None
        shown = {**headers, **_validators(info), "Content-Length": str(size)}
        if not body or size <= PIECE:
            return Response(first, media_type=media_type, headers=shown)
        pieces = self._pieces(path, first, size)
        return StreamingResponse(pieces, media_type=media_type, headers=shown)

    async def remove(self, names: Iterable[str]) -> None:
        """One DELETE each, some at a time."""
        paths = [self._path(name) for name in names if content_type(name)]
        for start in range(0, len(paths), _DELETES):
            await asyncio.gather(*map(self._delete, paths[start : start + _DELETES]))

    async def sweep(self, before: float) -> int:
        """List the objects by the first letter of their names, so that only a 64th of the list is
        in memory at a time: a look through the whole store is 64 LIST requests, and one more for
        every thousand pictures."""
        removed = 0
        for letter in self._letters or ("",):
            only = {"prefix": letter} if letter else {}
            listing = self._fs._find(self._location.root, detail=True, **only)
            try:
                found = await self._ask(listing, LIST_SECONDS)
            except FileNotFoundError:
                continue
            old = [info for info in found.values() if (_modified(info) or before) < before]
            names = [info["name"].lstrip("/").rpartition("/") for info in old]
            ours = [name for root, _, name in names if root == self._location.root]
            ours = [name for name in ours if content_type(name)]
            await self.remove(ours)
            removed += len(ours)
        return removed

    async def _put(self, path: str, data: bytes) -> None:
        for pause in (*PAUSES, None):
            try:
                await self._ask(self._fs._pipe_file(path, data), WRITE_SECONDS)
                return
            except FileNotFoundError as exc:
                raise StorageError(f"{self._location}: {exc}", reason=UNUSABLE) from exc
            except StorageError as exc:
                if pause is None or isinstance(exc.__cause__, PermissionError):
                    raise
                logger.warning("a picture could not be kept, and is tried again: %s", exc)
                await asyncio.sleep(pause)

    async def _delete(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            await self._ask(self._fs._rm_file(path), READ_SECONDS)

    async def _piece(self, path: str, start: int, end: int) -> bytes:
        data = await self._ask(self._fs._cat_file(path, start=start, end=end), READ_SECONDS)
        return bytes(data)

    async def _pieces(self, path: str, first: bytes, size: int) -> AsyncIterator[bytes]:
        yield first
        for start in range(PIECE, size, PIECE):
            yield await self._piece(path, start, min(size, start + PIECE))

    async def _look(self) -> None:
        """See whether the store answers. A marker that is gone, for example by a rule of the bucket
        that removes what is old, is written anew; it is written, too, while there is trouble, which
        may be one with writing only."""
        try:
            try:
                if self._trouble is not None:
                    await self._mark(PROBE_SECONDS)
                await self._ask(self._fs._info(self._path(MARKER)), PROBE_SECONDS)
            except FileNotFoundError:
                await self._mark(PROBE_SECONDS)
        except StorageError as exc:
            if self._trouble is None:
                logger.error("the storage does not work: %s", exc)
            self._seen(exc.reason)
        else:
            if self._trouble is not None:
                logger.info("the storage works again")
            self._seen(None)
        finally:
            self._looking = None

    async def _mark(self, seconds: float) -> None:
        try:
            text = b"Edgefill keeps pictures here.\n"
            await self._ask(self._fs._pipe_file(self._path(MARKER), text), seconds)
        except FileNotFoundError as exc:
            raise StorageError(f"{self._location}: {exc}", reason=UNUSABLE) from exc

    async def _ask(self, work: Awaitable[T], seconds: float) -> T:
        """Wait for the driver, whose errors are of any kind.

        Raises:
            FileNotFoundError: When there is no such object or bucket.
            StorageError: For everything else.
        """
        try:
            async with asyncio.timeout(seconds):
                return await work
        except FileNotFoundError:
            raise
        except TimeoutError as exc:
            detail = f"{self._location}: no answer within {seconds:g} s"
            raise StorageError(detail, reason=UNUSABLE) from exc
        except Exception as exc:
            detail = f"{self._location}: {type(exc).__name__}: {exc}"
            raise StorageError(detail, reason=UNUSABLE) from exc

    def _seen(self, trouble: str | None) -> None:
        self._trouble, self._looked = trouble, self._clock()

    def _path(self, name: str) -> str:
        return f"{self._location.root}/{name}"


def _modified(info: Mapping[str, Any]) -> float | None:
    """When an object was written in seconds since 1970, by whatever name its driver has for it."""
    for key in _MODIFIED:
        value = info.get(key)
        if isinstance(value, str) and value:
            value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return None


def _validators(info: Mapping[str, Any]) -> dict[str, str]:
    """The headers by which a client knows whether it has a picture already."""
    modified = _modified(info)
    tag = str(info.get("ETag") or "")
    if not tag.startswith('"'):
        digest = hashlib.md5(f"{modified}-{info['size']}".encode(), usedforsecurity=False)
        tag = f'"{digest.hexdigest()}"'
    found = {"ETag": tag}
    if modified is not None:
        found["Last-Modified"] = formatdate(modified, usegmt=True)
    return found
