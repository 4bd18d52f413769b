"""Who may ask: the keys of the contract."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from typing import Any

from service.errors import ApiError
from service.schema import is_absent


class Keys:
    """The keys that clients may use. Without any, every non-empty key is taken.

    Digests are compared, all of them and in constant time, so that neither a key's content nor
    its length shows in the time an answer takes.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(_digest(key) for key in keys)

    def check(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> str:
        """Take the key from the body, else the ``key`` header, else ``Authorization: Bearer``.

        Returns:
            The key.

        Raises:
            ApiError: 401 when there is none, or not a right one.
        """
        candidates = (body.get("key"), _text(headers.get("key")), _text(_bearer(headers)))
        key = next((key for key in candidates if not is_absent(key)), None)
        if key is None:
            raise ApiError(401, "API key required")
        if not isinstance(key, str) or not self._knows(key):
            raise ApiError(401, "Invalid API key")
        return key.strip()

    def refuse_early(self, headers: Mapping[str, str]) -> None:
        """Refuse a request whose ``key`` header is wrong, before its body is read.

        Not so for ``Authorization``, which may be meant for a proxy in front of us.

        Raises:
            ApiError: 401.
        """
        key = _text(headers.get("key"))
        if not is_absent(key) and not self._knows(str(key)):
            raise ApiError(401, "Invalid API key")

    def _knows(self, key: str) -> bool:
        digest = _digest(key)
        found = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(found) or not found


def _text(header: str | None) -> str | None:
    """A header's value with its bytes read as UTF-8, as in a body, where they are that; the
    framework reads them as Latin-1."""
    if header is None:
        return None
    try:
        return header.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return header


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.strip().encode("utf-8", "surrogatepass")).digest()


def _bearer(headers: Mapping[str, str]) -> str | None:
    scheme, _, token = headers.get("authorization", "").strip().partition(" ")
    return token if scheme.lower() == "bearer" else None
