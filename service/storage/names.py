"""The names of pictures: they cannot be guessed, and no other name is read, written or removed."""

from __future__ import annotations

import re
import secrets
import string
from typing import Final

FOLDER: Final = "outputs"
CONTENT_TYPES: Final = {"png": "image/png", "jpg": "image/jpeg", "base64": "text/plain"}
FIRST_LETTERS: Final = string.ascii_letters + string.digits + "_-"
"""What a name may begin with."""

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{24}-[0-9]{1,2}\.(png|jpg|base64)")


def new_prefix() -> str:
    """A name that cannot be guessed: 144 random bits as 24 characters."""
    return secrets.token_urlsafe(18)


def file_name(prefix: str, index: int, extension: str) -> str:
    """The name of picture ``index`` of a request, known before the picture is made."""
    return f"{prefix}-{index}.{extension}"


def content_type(name: str) -> str | None:
    """The content type of what a name stands for, or None where it is no picture's name."""
    match = _NAME.fullmatch(name)
    return CONTENT_TYPES[match.group(1)] if match else None


def require(name: str) -> str:
    """The name itself.

    Raises:
        ValueError: When it is no picture's name.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of an output")
    return name
