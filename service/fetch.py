"""The one way out to the network: pictures that clients name by URL, and webhooks.

A URL is parsed once (``service.urls``), its host resolved once, every address of the answer checked
(``service.addresses``) and the connection made to a checked address (``service.guard``). Redirects
of pictures are followed by hand, each as a new target; a webhook's are not. Every request has a
connection of its own, which is closed with it. Limits: bytes of the body, of headers and of what
comes besides; seconds for connecting, for a silence and for the whole; a floor under the rate; how
many pictures are fetched at once, by whom and from where. No proxies, cookies or compressed bodies,
and no HTTP/2. What a client is told (``FetchError.reason``) names no address, status or time.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import ssl
from collections.abc import AsyncIterator, Mapping
from typing import Final, NamedTuple, Protocol

import httpcore
import httpx

from service.addresses import AddressPolicy
from service.errors import FetchError
from service.guard import GuardedBackend, Meter, Resolver, SystemResolver
from service.pace import FLOOR, collect
from service.turns import Turns
from service.urls import Target

logger = logging.getLogger(__name__)

MAX_REDIRECTS: Final = 3
MAX_FETCHES: Final = 8
MAX_PER_OWNER: Final = 4
MAX_PER_HOST: Final = 2
TURN_SECONDS: Final = 30.0
CONNECT_SECONDS: Final = 3.0
READ_SECONDS: Final = 5.0
GRACE_SECONDS: Final = 2.0
MAX_HEADERS: Final = 64
MAX_HEADER_BYTES: Final = 32 * 1024

_FAILURES: Final = (
    httpcore.NetworkError,
    httpcore.TimeoutException,
    httpcore.ProtocolError,
    httpcore.UnsupportedProtocol,
    OSError,
)


class Reply(NamedTuple):
    """What a receiver of a POST answered.

    Attributes:
        status: The HTTP status; redirects are not followed.
        retry_after: The value of its ``Retry-After`` header.
    """

    status: int
    retry_after: str | None = None


class Fetcher(Protocol):
    """What can turn a URL into bytes."""

    async def fetch(self, url: str, *, owner: str = "") -> bytes:
        """The body behind a URL, for an owner who has a share only; raises ``FetchError``."""
        ...


@functools.cache
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()


class HttpFetcher:
    """Fetches pictures and posts webhooks over HTTP/1.1 within limits.

    Args:
        policy: Where connections may go.
        max_bytes: Largest body in bytes.
        seconds: Longest time for one picture, redirects included and waiting for a turn not.
        resolve: Names to addresses; the system's resolver where None.
    """

    def __init__(
        self,
        policy: AddressPolicy,
        *,
        max_bytes: int,
        seconds: float,
        resolve: Resolver | None = None,
    ) -> None:
        self._policy = policy
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._system = SystemResolver()
        self._resolve = resolve or self._system
        self._all = asyncio.Semaphore(MAX_FETCHES)
        self._owners = Turns(MAX_PER_OWNER)
        self._hosts = Turns(MAX_PER_HOST)

    async def aclose(self) -> None:
        """Resolve no more names; connections end with the requests they were made for."""
        self._system.close()

    async def fetch(self, url: str, *, owner: str = "") -> bytes:
        """The body behind an http or https URL.

        Args:
            url: Where.
            owner: For whom; one owner has at most ``MAX_PER_OWNER`` fetches at once.

        Raises:
            FetchError: When it is not permitted, not there, too large or too slow.
        """
        target = Target.parse(url)
        clock = asyncio.get_running_loop().time
        left = self._seconds
        for _ in range(MAX_REDIRECTS + 1):
            async with self._turn(owner, target.host):
                begin = clock()
                answer = await self._get(target, left)
            if isinstance(answer, bytes):
                return answer
            left -= clock() - begin
            logger.debug("redirect: %s to %s", target.host, answer.host)
            target = answer
        raise FetchError(f"{target.host}: more than {MAX_REDIRECTS} redirects", kind="redirect")

    async def post(
        self, url: str, headers: Mapping[str, str], body: bytes, timeout: float
    ) -> Reply:
        """POST once, to permitted addresses only; no redirect is followed, no answer's body read.

        Args:
            url: An http or https URL.
            headers: What says something about the body.
            body: What is sent.
            timeout: Seconds for everything.

        Raises:
            FetchError: When the receiver is not permitted or did not answer in time.
        """
        target = Target.parse(url)
        sent = [*headers.items(), ("Content-Length", str(len(body)))]
        async with self._request("POST", target, sent, body, seconds=timeout) as (answer, _):
            later = _headers(target, answer).get(b"retry-after")
            return Reply(answer.status, later.decode("latin-1") if later else None)

    @contextlib.asynccontextmanager
    async def _turn(self, owner: str, host: str) -> AsyncIterator[None]:
        """Wait until this owner, this host and everybody together have less than their share.

        Hosts that the operator named are the operator's own: only the owner's share counts.
        """
        async with contextlib.AsyncExitStack() as held:
            try:
                async with asyncio.timeout(TURN_SECONDS):
                    await held.enter_async_context(self._owners.of(owner))
                    if not self._policy.names(host):
                        await held.enter_async_context(self._hosts.of(host))
                    await held.enter_async_context(self._all)
            except TimeoutError as exc:
                raise FetchError(
                    f"{host}: waited {TURN_SECONDS:g} s for a turn",
                    reason="could not be fetched now, since too many pictures are being fetched",
                    kind="timeout",
                ) from exc
            yield

    async def _get(self, target: Target, seconds: float) -> bytes | Target:
        """One request: the body, or where a redirect leads."""
        accept = [("Accept", "image/png, image/jpeg")]
        async with self._request("GET", target, accept, seconds=seconds) as (response, meter):
            headers = _headers(target, response)
            if response.status in (301, 302, 303, 307, 308) and b"location" in headers:
                return target.redirected(headers[b"location"].decode("utf-8", "replace"))
            if response.status != 200:
                detail = f"{target.host}: answered with status {response.status}"
                raise FetchError(detail, kind="status")
            encoding = headers.get(b"content-encoding", b"identity").strip().lower()
            if encoding not in (b"", b"identity"):
                detail = f"{target.host}: content encoding {encoding!r} was not asked for"
                raise FetchError(detail, kind="protocol")
            return await self._read(target, response, headers.get(b"content-length", b""), meter)

    @contextlib.asynccontextmanager
    async def _request(
        self,
        method: str,
        target: Target,
        headers: list[tuple[str, str]],
        body: bytes | None = None,
        *,
        seconds: float,
    ) -> AsyncIterator[tuple[httpcore.Response, Meter]]:
        """Ask over a connection of its own, within so many seconds to the end of the context."""
        meter = Meter()
        try:
            async with (
                asyncio.timeout(seconds),
                httpcore.AsyncConnectionPool(
                    ssl_context=_tls(),
                    max_connections=1,
                    max_keepalive_connections=0,
                    network_backend=GuardedBackend(self._policy, self._resolve, meter),
                ) as connection,
                connection.stream(
                    method,
                    httpcore.URL(
                        scheme=target.scheme.encode(),
                        host=target.host.encode(),
                        port=target.port,
                        target=target.path,
                    ),
                    headers=[
                        ("Host", target.authority),
                        ("User-Agent", "edgefill"),
                        ("Accept-Encoding", "identity"),
                        ("Connection", "close"),
                        *headers,
                    ],
                    content=body,
                    extensions={
                        "timeout": {
                            "connect": CONNECT_SECONDS,
                            "read": READ_SECONDS if body is None else seconds,
                            "write": READ_SECONDS,
                        }
                    },
                ) as response,
            ):
                yield response, meter
        except TimeoutError as exc:
            raise FetchError(f"{target.host}: took longer than allowed: {seconds:g} s") from exc
        except _FAILURES as exc:
            raise FetchError(f"{target.host}: {type(exc).__name__}: {exc}") from exc

    async def _read(
        self, target: Target, response: httpcore.Response, length: bytes, meter: Meter
    ) -> bytes:
        left = self._max_bytes

        def admit(count: int) -> None:
            nonlocal left
            left -= count
            if left < 0:
                raise FetchError(
                    f"{target.host}: more than {self._max_bytes} bytes",
                    reason=f"is larger than {self._max_bytes / 1e6:g} MB",
                    kind="too_large",
                )
            meter.body(count)

        if length.isdigit() and int(length[:20]) > self._max_bytes:
            admit(self._max_bytes + 1)
        try:
            return await collect(response.aiter_stream(), grace=GRACE_SECONDS, admit=admit)
        except TimeoutError as exc:
            detail = f"{target.host}: slower than {FLOOR} bytes per second"
            raise FetchError(detail, kind="timeout") from exc


def _headers(target: Target, response: httpcore.Response) -> dict[bytes, bytes]:
    """The headers of an answer by their names in lower case.

    Raises:
        FetchError: When they are too many or too long.
    """
    found = response.headers
    size = sum(len(name) + len(value) for name, value in found)
    if len(found) > MAX_HEADERS or size > MAX_HEADER_BYTES:
        detail = f"{target.host}: {len(found)} headers of {size} bytes"
        raise FetchError(detail, kind="protocol")
    return {name.lower(): value for name, value in found}
