"""Addresses that clients send: parsed once, and used from then on as parsed.

A second parser that reads a host differently is how address checks are walked round (GHSA
qwrf-gfpj-qvj6 and kin), so that the host which is resolved, connected to, named in TLS and in the
``Host`` header is the one string made here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

import httpx

from service.errors import FetchError

MAX_URL_CHARACTERS: Final = 2048
DEFAULT_PORTS: Final = {"http": 80, "https": 443}

WRONG_KIND: Final = "must be an http or https URL, a data URI, or base64"
_INVALID: Final = "has a URL that is not valid"
_FORBIDDEN: Final = re.compile(r"[\x00-\x20\x7f\\]")
_NAME: Final = re.compile(r"[a-z0-9._-]+")
_NUMERIC_LABEL: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where one request goes.

    Attributes:
        scheme: ``"http"`` or ``"https"``.
        host: Name in IDNA form and lower case, or canonical address without brackets.
        port: The port, also where the URL has none.
        authority: The value of the ``Host`` header.
        path: Path and query as sent on the wire.
        url: The whole URL.
    """

    scheme: str
    host: str
    port: int
    authority: str
    path: bytes
    url: str

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read an http or https URL.

        Raises:
            FetchError: When it is no such URL, or one that parsers disagree on.
        """
        if len(text) > MAX_URL_CHARACTERS or _FORBIDDEN.search(text):
            raise FetchError(
                f"forbidden characters or length {len(text)}", reason=_INVALID, kind="bad_url"
            )
        try:
            url = httpx.URL(text)
            host = url.raw_host.decode("ascii").lower().removesuffix(".")
        except (httpx.InvalidURL, UnicodeError, ValueError) as exc:
            raise FetchError(f"not a URL: {exc}", reason=_INVALID, kind="bad_url") from exc
        if url.scheme not in DEFAULT_PORTS:
            raise FetchError(
                f"scheme {url.scheme!r}",
                reason="must be an http or https URL, a data URI or base64",
                kind="bad_url",
            )
        if url.userinfo or not 1 <= (80 if url.port is None else url.port) <= 65535:
            raise FetchError("user information or impossible port", reason=_INVALID, kind="bad_url")
        address = _canonical_host(host)
        netloc = f"[{address}]" if ":" in address else address
        return cls(
            scheme=url.scheme,
            host=address,
            port=url.port or DEFAULT_PORTS[url.scheme],
            authority=netloc if url.port is None else f"{netloc}:{url.port}",
            path=url.raw_path,
            url=str(url),
        )

    def redirected(self, location: str) -> Target:
        """The target of a redirect that this target answered with.

        Raises:
            FetchError: When the location is not a URL, or leaves https for http.
        """
        try:
            joined = str(httpx.URL(self.url).join(location))
        except (httpx.InvalidURL, UnicodeError, ValueError) as exc:
            detail = f"{self.host}: redirect to something that is no URL"
            raise FetchError(detail, kind="redirect") from exc
        target = Target.parse(joined)
        if self.scheme == "https" and target.scheme == "http":
            detail = f"{self.host}: redirect from https to http on {target.host}"
            raise FetchError(detail, kind="redirect")
        return target


def _canonical_host(host: str) -> str:
    """Refuse spellings of addresses that C libraries read and address parsers do not."""
    try:
        if ":" in host:
            address = IPv6Address(host)
            if address.scope_id is not None:
                raise ValueError("zone identifier")
            return str(address)
        if _NUMERIC_LABEL.fullmatch(host.rpartition(".")[2]):
            return str(IPv4Address(host))
        if not _NAME.fullmatch(host):
            raise ValueError("neither a name nor an address")
    except ValueError as exc:
        raise FetchError(f"host {host!r}: {exc}", reason=_INVALID, kind="bad_url") from exc
    return host
