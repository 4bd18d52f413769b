"""The one way out to the network: fetching the pictures that clients name by URL.

A URL is parsed once (``service.urls``), its host resolved once, and every address of the answer
checked (``service.addresses``); the connection goes to a checked address, below HTTP and TLS, so
that no second look-up can come between. Redirects are followed by hand, each as a new target.
Bytes and seconds are limited; proxies, cookies and compressed bodies are not used.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from typing import Final, NamedTuple, Protocol

import httpcore
import httpx

from service.addresses import Address, AddressPolicy
from service.errors import FetchError
from service.urls import Target

logger = logging.getLogger(__name__)

MAX_REDIRECTS: Final = 3
MAX_CONNECTIONS: Final = 8
MAX_ANSWERS: Final = 16
RESOLVE_SECONDS: Final = 3.0
CONNECT_SECONDS: Final = 3.0
READ_SECONDS: Final = 5.0
PUBLIC_PORTS: Final = (80, 443)

_FAILURES: Final = (
    httpcore.NetworkError,
    httpcore.TimeoutException,
    httpcore.ProtocolError,
    httpcore.UnsupportedProtocol,
    OSError,
)

Resolver = Callable[[str, int], Awaitable[list[str]]]
"""From a host name and a port to the addresses of the name."""


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

    async def fetch(self, url: str) -> bytes:
        """The body behind a URL; raises ``FetchError``."""
        ...


class SystemResolver:
    """Names by the system's resolver, in a few threads of its own."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(MAX_CONNECTIONS, thread_name_prefix="edgefill-resolve")

    async def __call__(self, host: str, port: int) -> list[str]:
        """The addresses of a name, at most ``MAX_ANSWERS`` and each once."""
        loop = asyncio.get_running_loop()
        answers = await loop.run_in_executor(self._threads, _getaddrinfo, host, port)
        return list(dict.fromkeys(answers))[:MAX_ANSWERS]

    def close(self) -> None:
        """Take no more names."""
        self._threads.shutdown(wait=False, cancel_futures=True)


@functools.cache
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def _getaddrinfo(host: str, port: int) -> list[str]:
    return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Opens TCP connections, and only to addresses that the policy permits."""

    def __init__(self, policy: AddressPolicy, resolve: Resolver) -> None:
        self._policy = policy
        self._resolve = resolve
        self._tcp = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address of ``host`` that answers; all of them must be permitted."""
        addresses = await self._addresses(host, port)
        for address in addresses:
            if not self._permits(host, port, address):
                raise FetchError(
                    f"{host} port {port}: {address} is not permitted "
                    "(EDGEFILL_FETCH_ALLOW names hosts and networks beyond the public internet)",
                    kind="refused_address",
                )
        failure: Exception | None = None
        for address in addresses:
            try:
                stream = await self._tcp.connect_tcp(
                    str(address), port, timeout=timeout, socket_options=socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as exc:
                failure = exc
                continue
            peer = stream.get_extra_info("server_addr")
            if peer is None or ipaddress.ip_address(peer[0]) != address:
                await stream.aclose()
                detail = f"{host} port {port}: connected to {peer}, meant {address}"
                raise FetchError(detail, kind="refused_address")
            return stream
        kind = "timeout" if isinstance(failure, httpcore.ConnectTimeout) else "connect"
        raise FetchError(f"{host} port {port}: no connection", kind=kind) from failure

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Refused: pictures do not come from sockets of this machine."""
        raise FetchError("unix sockets are not permitted", kind="refused_address")

    async def sleep(self, seconds: float) -> None:
        """Wait, for httpcore's own retries."""
        await asyncio.sleep(seconds)

    def _permits(self, host: str, port: int, address: Address) -> bool:
        named = port in PUBLIC_PORTS or self._policy.names(host, address)
        return named and self._policy.permits(host, address)

    async def _addresses(self, host: str, port: int) -> list[Address]:
        try:
            return [ipaddress.ip_address(host)]
        except ValueError:
            pass
        try:
            async with asyncio.timeout(RESOLVE_SECONDS):
                answers = await self._resolve(host, port)
            addresses = [ipaddress.ip_address(answer) for answer in answers]
        except (OSError, ValueError) as exc:  # TimeoutError and UnicodeError are among these
            raise FetchError(f"{host}: name was not resolved: {exc}", kind="dns") from exc
        if not addresses:
            raise FetchError(f"{host}: name has no address", kind="dns")
        return addresses


class HttpFetcher:
    """Fetches pictures over HTTP/1.1 within limits.

    Args:
        policy: Where connections may go.
        max_bytes: Largest body in bytes.
        seconds: Longest time for one picture, redirects included.
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
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._system = SystemResolver()
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=_tls(),
            max_connections=MAX_CONNECTIONS,
            max_keepalive_connections=0,
            network_backend=GuardedBackend(policy, resolve or self._system),
        )

    async def aclose(self) -> None:
        """Close every connection."""
        await self._pool.aclose()
        self._system.close()

    async def fetch(self, url: str) -> bytes:
        """The body behind an http or https URL.

        Raises:
            FetchError: When it is not permitted, not there, too large or too slow.
        """
        target = Target.parse(url)
        try:
            async with asyncio.timeout(self._seconds):
                return await self._follow(target)
        except TimeoutError as exc:
            raise FetchError(f"{target.host}: took longer than {self._seconds:g} s") from exc
        except _FAILURES as exc:
            raise FetchError(f"{target.host}: {type(exc).__name__}: {exc}") from exc

    async def post(
        self, url: str, headers: Mapping[str, str], body: bytes, timeout: float
    ) -> Reply:
        """POST once, to permitted addresses only, without following redirects.

        Args:
            url: An http or https URL.
            headers: What says something about the body.
            body: What is sent.
            timeout: Seconds for everything.

        Raises:
            FetchError: When the receiver is not permitted or did not answer in time.
        """
        target = Target.parse(url)
        try:
            async with (
                asyncio.timeout(timeout),
                self._request("POST", target, [*headers.items()], body, seconds=timeout) as answer,
            ):
                names = {name.lower(): value for name, value in answer.headers}
                later = names.get(b"retry-after")
                return Reply(answer.status, later.decode("latin-1") if later else None)
        except TimeoutError as exc:
            raise FetchError(f"{target.host}: took longer than {timeout:g} s") from exc
        except _FAILURES as exc:
            raise FetchError(f"{target.host}: {type(exc).__name__}: {exc}") from exc

    async def _follow(self, target: Target) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            answer = await self._get(target)
            if isinstance(answer, bytes):
                return answer
            logger.debug("redirect: %s to %s", target.host, answer.host)
            target = answer
        raise FetchError(f"{target.host}: more than {MAX_REDIRECTS} redirects", kind="redirect")

    async def _get(self, target: Target) -> bytes | Target:
        """One request: the body, or where a redirect leads."""
        accept = [("Accept", "image/png, image/jpeg")]
        async with self._request("GET", target, accept, seconds=self._seconds) as response:
            headers = {name.lower(): value for name, value in response.headers}
            if response.status in (301, 302, 303, 307, 308) and b"location" in headers:
                return target.redirected(headers[b"location"].decode("utf-8", "replace"))
            if response.status != 200:
                detail = f"{target.host}: answered with status {response.status}"
                raise FetchError(detail, kind="status")
            encoding = headers.get(b"content-encoding", b"identity").strip().lower()
            if encoding not in (b"", b"identity"):
                detail = f"{target.host}: content encoding {encoding!r} was not asked for"
                raise FetchError(detail, kind="protocol")
            return await self._read(target, response, headers.get(b"content-length", b""))

    def _request(
        self,
        method: str,
        target: Target,
        headers: list[tuple[str, str]],
        body: bytes | None = None,
        *,
        seconds: float,
    ) -> AbstractAsyncContextManager[httpcore.Response]:
        return self._pool.stream(
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
                *headers,
                *([("Content-Length", str(len(body)))] if body is not None else []),
            ],
            content=body,
            extensions={
                "timeout": {
                    "connect": CONNECT_SECONDS,
                    "read": min(READ_SECONDS, seconds) if body is None else seconds,
                    "write": READ_SECONDS,
                    "pool": seconds,
                }
            },
        )

    async def _read(self, target: Target, response: httpcore.Response, length: bytes) -> bytes:
        megabytes = self._max_bytes / 1e6
        too_large = FetchError(
            f"{target.host}: more than {self._max_bytes} bytes",
            reason=f"is larger than {megabytes:g} MB",
            kind="too_large",
        )
        if length.isdigit() and int(length[:20]) > self._max_bytes:
            raise too_large
        body = bytearray()
        async for piece in response.aiter_stream():
            body += piece
            if len(body) > self._max_bytes:
                raise too_large
        return bytes(body)
