"""Pictures as plain files in a folder."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from stat import S_ISREG

from starlette.responses import FileResponse, Response

from service.errors import StorageError
from service.storage.base import FULL, UNUSABLE, full
from service.storage.names import content_type, require

logger = logging.getLogger(__name__)


class Folder:
    """The storage in a folder of this machine.

    Args:
        folder: Made by ``open`` where it is missing. Other files in it are left alone.
        disks: Further folders whose disks must have room.
    """

    def __init__(self, folder: Path, *, disks: Sequence[Path] = ()) -> None:
        self._folder = folder
        self._disks = (folder, *disks)
        self._said: str | None = None

    async def open(self) -> None:
        """Make the folder, and see that it can be written."""
        await asyncio.to_thread(self._open)

    async def close(self) -> None:
        """Nothing is held open."""

    async def trouble(self) -> str | None:
        """Whether the folder can be written and its disk has room."""
        reason = await asyncio.to_thread(self._trouble)
        if reason is not None and self._said is None:
            logger.error("pictures cannot be kept in %s: %s", self._folder, reason)
        if reason is None and self._said is not None:
            logger.info("pictures can be kept in %s again", self._folder)
        self._said = reason
        return reason

    async def keep(self, files: Mapping[str, bytes]) -> None:
        """Temporary file, fsync, rename, and an fsync of the folder for all of them."""
        await asyncio.to_thread(self._keep, files)

    async def read(self, name: str) -> bytes | None:
        """The bytes of a file."""
        return None if content_type(name) is None else await asyncio.to_thread(self._read, name)

    async def response(
        self, name: str, *, headers: Mapping[str, str], body: bool
    ) -> Response | None:
        """A response that sends the file itself; it leaves the body out of HEAD on its own."""
        media_type = content_type(name)
        if media_type is None:
            return None
        path = self._folder / name
        try:
            found = await asyncio.to_thread(os.stat, path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            raise _error(exc) from exc
        if not S_ISREG(found.st_mode):
            return None
        return FileResponse(path, media_type=media_type, headers=headers, stat_result=found)

    async def remove(self, names: Iterable[str]) -> None:
        """Unlink files."""
        await asyncio.to_thread(self._remove, list(names))

    async def sweep(self, before: float) -> int:
        """Look through the folder, and unlink what is ours and old."""
        return await asyncio.to_thread(self._sweep, before)

    def _open(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._folder):
                pass
        except OSError as exc:
            raise _error(exc) from exc

    def _trouble(self) -> str | None:
        if not self._folder.is_dir() or not os.access(self._folder, os.W_OK | os.X_OK):
            return UNUSABLE
        return FULL if full(self._disks) else None

    def _keep(self, files: Mapping[str, bytes]) -> None:
        kept: list[Path] = []
        try:
            for name, data in files.items():
                path = self._folder / require(name)
                _write(path, data)
                kept.append(path)
            if kept:
                _sync(self._folder)
        except OSError as exc:
            for path in kept:
                path.unlink(missing_ok=True)
            raise _error(exc) from exc

    def _read(self, name: str) -> bytes | None:
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise _error(exc) from exc

    def _remove(self, names: Iterable[str]) -> None:
        try:
            for name in names:
                if content_type(name) is not None:
                    (self._folder / name).unlink(missing_ok=True)
        except OSError as exc:
            raise _error(exc) from exc

    def _sweep(self, before: float) -> int:
        removed = 0
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    if content_type(_name_of(entry.name)) is None:
                        continue
                    with contextlib.suppress(FileNotFoundError):
                        if entry.stat(follow_symlinks=False).st_mtime < before:
                            os.unlink(entry.path)
                            removed += 1
        except OSError as exc:
            raise _error(exc) from exc
        return removed


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as stream:  # one may lie there that a crash cut short
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync(folder: Path) -> None:
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _name_of(file: str) -> str:
    """The picture's name of a file that may be an interrupted write of it."""
    if file.startswith(".") and file.endswith(".tmp"):
        return file[1:-4]
    return file


def _error(exc: OSError) -> StorageError:
    reason = FULL if exc.errno in (errno.ENOSPC, errno.EDQUOT) else UNUSABLE
    return StorageError((exc.strerror or str(exc)).lower(), reason=reason)
