"""Where pictures that were made are kept until clients have fetched them."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import tempfile
from pathlib import Path
from typing import Final

FOLDER: Final = "outputs"
CONTENT_TYPES: Final = {"png": "image/png", "jpg": "image/jpeg", "base64": "text/plain"}
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{24}-[0-9]{1,2}\.(png|jpg|base64)")


def new_prefix() -> str:
    """A name that cannot be guessed: 144 random bits as 24 characters."""
    return secrets.token_urlsafe(18)


def file_name(prefix: str, index: int, extension: str) -> str:
    """The name of picture ``index`` of a request, known before the picture is made."""
    return f"{prefix}-{index}.{extension}"


class OutputFolder:
    """Pictures as plain files in ``<data directory>/outputs``."""

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir / FOLDER

    def open(self) -> None:
        """Make the folder, and see that it can be written.

        Raises:
            OSError: When it cannot.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self._folder):
            pass

    def writable(self) -> bool:
        """Whether a picture could be written now."""
        return self._folder.is_dir() and os.access(self._folder, os.W_OK | os.X_OK)

    def write(self, name: str, data: bytes) -> None:
        """Keep a picture: it is whole and on the disk, or not there.

        Raises:
            OSError: When it could not be written.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of an output")
        temporary = self._folder / f".{name}.tmp"
        try:
            with temporary.open("wb") as stream:  # one may lie there that a crash cut short
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(self._folder / name)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        directory = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def remove(self, name: str) -> None:
        """Forget a picture; nothing happens where it is not there."""
        if _NAME.fullmatch(name):
            (self._folder / name).unlink(missing_ok=True)

    def sweep(self, before: float) -> int:
        """Remove every file last written before a time (seconds since 1970).

        Returns:
            How many there were, leftovers of interrupted writes among them.
        """
        removed = 0
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    if entry.stat(follow_symlinks=False).st_mtime < before:
                        os.unlink(entry.path)
                        removed += 1
        return removed

    def find(self, name: str) -> tuple[Path, str] | None:
        """The file and content type of a picture, or None where there is no such picture."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        path = self._folder / name
        return (path, CONTENT_TYPES[match.group(1)]) if path.is_file() else None
