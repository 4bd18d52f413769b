"""The URL of a storage, taken apart once; it never holds a secret."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from service.errors import SettingsError

DRIVERS: Final = {
    "s3": "pip install 'edgefill[s3]'",
    "gs": "pip install gcsfs",
    "az": "pip install adlfs",
    "memory": "pip install fsspec",
}
"""What brings the driver of each object store. Only stores that write an object in one piece are
here: a picture must never be seen half written. Tests speak to S3 and memory; gs and az are used
by the same calls."""

_LOCATION: Final = re.compile(r"([a-z0-9]+)://(.*)", re.DOTALL)
_PATH: Final = re.compile(r"[A-Za-z0-9._=+-]+(/[A-Za-z0-9._=+-]+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """Where pictures are kept.

    Attributes:
        scheme: ``"file"``, or that of an object store.
        root: The path of a folder, or bucket and prefix, without a slash at the end.
    """

    scheme: str
    root: str

    @classmethod
    def parse(cls, url: str) -> Location:
        """Read a URL such as ``s3://bucket/prefix`` or ``file:///folder``.

        Raises:
            SettingsError: When it is not one, or holds credentials. The sentence never shows the
                URL, which may be a secret by mistake.
        """
        match = _LOCATION.fullmatch(url)
        if match is None or match[1] not in ("file", *DRIVERS):
            allowed = ", ".join(f"{scheme}://" for scheme in ("file", *DRIVERS))
            raise SettingsError(f"must start with one of {allowed}")
        scheme, rest = match.groups()
        if "@" in rest or "?" in rest or "#" in rest:
            raise SettingsError(
                "must not hold credentials or options; they belong in the environment of the "
                "driver, such as AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL_S3"
            )
        if scheme == "file":
            folder = unquote(rest)
            if not folder.startswith("/") or "\0" in folder:
                raise SettingsError("must be file:///, with an absolute path")
            return cls(scheme=scheme, root=folder)
        root = rest.rstrip("/")
        if not _PATH.fullmatch(root) or any(part in (".", "..") for part in root.split("/")):
            raise SettingsError(
                f"must be {scheme}://bucket or {scheme}://bucket/prefix, of letters, digits and "
                "any of . _ = + -"
            )
        return cls(scheme=scheme, root=root)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.root}"
