"""Which web pages may use the API from a visitor's browser.

A server without keys does what anybody on this machine asks, and a browser on this machine runs
pages of strangers: whatever such a page sends carries its ``Origin`` (RFC 6454, Fetch standard), a
request that needs no preflight included. Without keys, therefore, only pages that this machine or
the server itself serves are taken. Programs send no ``Origin`` and are never refused.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import httpx
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ApiError
from service.responses import error_response

EVERYBODY: Final = "*"
REFUSED: Final = (
    "Web pages of this origin may not use the server (EDGEFILL_ORIGINS, EDGEFILL_API_KEYS)."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginPolicy:
    """Whose pages may use the API.

    Attributes:
        everybody: All pages may.
        loopback: Pages that this machine serves may.
        named: Further origins, such as ``https://app.example``.
    """

    everybody: bool = False
    loopback: bool = False
    named: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, entries: Iterable[str], *, keys: bool, public_url: str | None) -> OriginPolicy:
        """Read origins; without any, everybody's where keys are asked for, else this machine's.

        Args:
            entries: Origins, or ``*``.
            keys: Whether clients need a key.
            public_url: Where clients reach the server, whose own pages may use it.

        Raises:
            ValueError: With the entry that is no origin.
        """
        entries = tuple(entries)
        own = {origin_of(public_url)} if public_url else set()
        if EVERYBODY in entries or (not entries and keys):
            return cls(everybody=True)
        return cls(loopback=True, named=frozenset({*map(origin_of, entries), *own}))

    def permits(self, origin: str) -> bool:
        """Whether a page with this value of ``Origin`` may use the API."""
        if self.everybody:
            return True
        try:
            origin = origin_of(origin)
        except ValueError:  # "null": a file, or a frame that must not say where it is from
            return False
        return origin in self.named or (self.loopback and _is_loopback(httpx.URL(origin).host))


class OriginGuard:
    """ASGI middleware that answers 403 to pages of other origins.

    Args:
        app: What is guarded.
        policy: Whose pages may use it.
        guarded: Start of the paths that are. What lies elsewhere is for every page: pictures whose
            names cannot be guessed, and what does no work.
    """

    def __init__(self, app: ASGIApp, *, policy: OriginPolicy, guarded: str) -> None:
        self._app = app
        self._policy = policy
        self._guarded = guarded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; a WebSocket's handshake is one too."""
        if scope["type"] in ("http", "websocket") and scope["path"].startswith(self._guarded):
            origin = Headers(scope=scope).get("origin")
            if origin is not None and not self._policy.permits(origin):
                await error_response(ApiError(403, REFUSED))(scope, receive, send)
                return
        await self._app(scope, receive, send)


def origin_of(text: str) -> str:
    """Scheme, host and port of a URL, the port only where it is not the scheme's own.

    Raises:
        ValueError: When it is no http or https URL.
    """
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as exc:
        raise ValueError(f"{text!r} is not an origin such as https://app.example") from exc
    if url.scheme not in ("http", "https") or not url.host or url.userinfo:
        raise ValueError(f"{text!r} is not an origin such as https://app.example")
    return f"{url.scheme}://{url.netloc.decode('ascii').lower()}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
