"""What kind of failure a fetch met, out of a fixed few: for counting, never for a client."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Final

import httpcore

from service.errors import FetchError

KINDS: Final = (
    "bad_url",
    "refused_address",
    "dns",
    "connect",
    "tls",
    "timeout",
    "protocol",
    "redirect",
    "status",
    "too_large",
    "other",
)

_BY_CAUSE: Final = (
    (ssl.SSLError, "tls"),
    (TimeoutError, "timeout"),
    (httpcore.TimeoutException, "timeout"),
    (httpcore.NetworkError, "connect"),
    (httpcore.ProtocolError, "protocol"),
    (httpcore.UnsupportedProtocol, "protocol"),
    (OSError, "connect"),
)
"""The first that is among the causes decides: TLS fails inside a connection error."""


def kind_of(error: FetchError) -> str:
    """One of ``KINDS``: what the error says of itself, else what its causes are."""
    if error.kind in KINDS:
        return error.kind
    causes = list(_causes(error))
    for cause, kind in _BY_CAUSE:
        if any(isinstance(found, cause) for found in causes):
            return kind
    return "other"


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen = {id(error)}
    cause = error.__cause__ or error.__context__
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
