"""Pictures as clients send them: an http(s) URL, a data URI, or plain base64."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
from typing import Final
from urllib.parse import unquote

import pybase64

from service.errors import ApiError, FetchError, words
from service.fetch import Fetcher
from service.storage import FOLDER, Storage
from service.urls import MAX_URL_CHARACTERS, WRONG_KIND

logger = logging.getLogger(__name__)

AT_ONCE: Final = 1 << 20
"""Characters of base64 that are decoded on the event loop, which takes a tenth of a millisecond; a
thread would take longer to answer."""

_SCHEME: Final = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*):")


def scheme_of(value: str) -> str | None:
    """The URL scheme in lower case, or None for base64, whose alphabet has no colon."""
    match = _SCHEME.match(value)
    return match.group(1).lower() if match else None


def is_link(value: str) -> bool:
    """Whether a picture has to be fetched, since it did not come with the request itself."""
    return scheme_of(value) in ("http", "https")


def summary(value: str) -> str:
    """What an answer shows of a picture that was sent: its URL, or a short digest."""
    if is_link(value):
        return value.strip()[:MAX_URL_CHARACTERS]
    return "sha256:" + hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class PictureReader:
    """Turns what a client sent for a picture into the picture's bytes.

    Args:
        fetcher: Gets what stands behind URLs.
        max_bytes: Largest picture in bytes.
        outputs: Where our own pictures are.
    """

    def __init__(self, fetcher: Fetcher, *, max_bytes: int, outputs: Storage | None = None) -> None:
        self._fetcher = fetcher
        self._max_bytes = max_bytes
        self._outputs = outputs

    async def read(self, field: str, value: str, *, root: str = "", owner: str = "") -> bytes:
        """The bytes of the picture in a field of the request.

        Args:
            field: Of the request, for the error's sentence.
            value: A URL, a data URI or base64.
            root: The address clients reach this server at: links to its own outputs are read
                from its storage, since the server may well not be allowed to fetch from itself.
            owner: For whom: nobody may have all places to fetch at.

        Raises:
            ApiError: 400 with a sentence about the field.
            StorageError: When it is one of our own and the storage does not answer.
        """
        scheme = scheme_of(value)
        try:
            if is_link(value):
                own = await self._own(value.strip(), root)
                if own is not None:
                    return own
                return await self._fetcher.fetch(value.strip(), owner=owner)
            if scheme in ("data", None):
                decode = self._decode_uri if scheme == "data" else self._decode
                if len(value) <= AT_ONCE and "%" not in value:  # which is slow to take out
                    return decode(value)
                return await asyncio.to_thread(decode, value)
            raise FetchError(f"other scheme, {len(scheme)} characters", reason=WRONG_KIND)
        except FetchError as exc:
            logger.warning("%s: %s", field, exc)
            raise ApiError(400, f"The {words(field)} {exc.reason}.") from exc

    async def _own(self, url: str, root: str) -> bytes | None:
        """What is behind a link to one of our own outputs; None for any other link."""
        start = f"{root}/{FOLDER}/"
        if not root or self._outputs is None or not url.startswith(start):
            return None
        found = await self._outputs.read(url.removeprefix(start))
        if found is None:
            raise FetchError("no such output", reason="is no longer there")
        return found

    def _decode_uri(self, uri: str) -> bytes:
        return self._decode(_payload(uri))

    def _decode(self, text: str) -> bytes:
        """Base64 to bytes. Most comes without white space and with its padding: that is tried
        first, since looking for either costs more than decoding."""
        if len(text) // 4 * 3 <= self._max_bytes + 2:
            with contextlib.suppress(ValueError):
                return pybase64.b64decode(text, validate=True)
        compact = "".join(text.split())
        if len(compact) // 4 * 3 > self._max_bytes + 2:
            reason = f"is larger than {self._max_bytes / 1e6:g} MB"
            raise FetchError(f"{len(compact)} characters of base64", reason=reason)
        compact += "=" * (-len(compact) % 4)  # the padding may be left out
        try:
            return pybase64.b64decode(compact, validate=True)
        except ValueError as exc:
            raise FetchError(f"base64: {exc}", reason="is not valid base64") from exc


def _payload(uri: str) -> str:
    """The base64 text of a data URI."""
    head, comma, payload = uri.partition(",")
    if not comma or not head.lower().rstrip().endswith(";base64"):
        raise FetchError("data URI without ;base64,", reason="is a data URI without base64")
    return unquote(payload) if "%" in payload else payload
