"""The guard below HTTP and TLS: names become addresses once, and only here connections are opened.

``httpcore`` asks a backend for a TCP connection to a name. This one resolves the name, refuses the
whole answer when one address of it is not permitted, connects to a checked address and compares the
peer with it. What checks and what connects is the same code with the same value, so that a name
server that changes its answer (DNS rebinding) changes nothing, and TLS still verifies the name.

Beyond what the policy's table refuses, two things are refused unless the operator named the host or
the network: ports other than 80 and 443, and this machine's own addresses, where there may be
services that trust the machine they are on. A stream counts what comes over the wire, and not much
of it may be anything but body: no headers without end, interim answers, chunks of one byte.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import httpcore

from service.addresses import Address, AddressPolicy, canonical
from service.errors import FetchError

MAX_ANSWERS: Final = 16
RESOLVE_SECONDS: Final = 3.0
RESOLVE_THREADS: Final = 8
PUBLIC_PORTS: Final = (80, 443)

BESIDES: Final = 64 * 1024
"""Bytes that may come besides the body, and an eighth of the body's own size on top."""

PIECE: Final = 24
"""Bytes that a piece of the body counts for besides, since handling it takes time: pieces of 250
bytes may come without end, those of one byte two thousand times."""

_READ: Final = 16 * 1024
_NOBODYS: Final[dict[int, Address]] = {
    4: ipaddress.IPv4Address("192.0.2.1"),
    6: ipaddress.IPv6Address("2001:db8::1"),
}
"""Addresses for documentation, which no machine has."""

Resolver = Callable[[str, int], Awaitable[list[str]]]
"""From a host name and a port to the addresses of the name."""


class SystemResolver:
    """Names by the system's resolver, in a few threads of its own."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(RESOLVE_THREADS, thread_name_prefix="edgefill-resolve")

    async def __call__(self, host: str, port: int) -> list[str]:
        """The addresses of a name, each once."""
        loop = asyncio.get_running_loop()
        answers = await loop.run_in_executor(self._threads, _getaddrinfo, host, port)
        return list(dict.fromkeys(answers))

    def close(self) -> None:
        """Take no more names."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _getaddrinfo(host: str, port: int) -> list[str]:
    return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def is_own(address: Address) -> bool:
    """Whether an address is one of this machine's: only to those a socket can be bound.

    Where the kernel binds any address (``ip_nonlocal_bind``), this cannot tell, and says no.
    """
    meant = canonical(address)
    return _binds(meant) and not _binds(_NOBODYS[meant.version])


def _binds(address: Address) -> bool:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
            return True
    except OSError:  # not ours, or this machine has no such family
        return False


class Meter:
    """How much came over the wire for one answer, against how much of it was body."""

    def __init__(self) -> None:
        self._besides = BESIDES

    def wire(self, count: int) -> None:
        """Bytes came in.

        Raises:
            FetchError: When too many of them were not body.
        """
        self._besides -= count
        if self._besides < 0:
            raise FetchError(f"more than {BESIDES} bytes besides the body", kind="protocol")

    def body(self, count: int) -> None:
        """So many of the bytes were a piece of the body.

        Raises:
            FetchError: When the pieces are too small.
        """
        self._besides += count + count // 8
        self.wire(PIECE)


class MeteredStream(httpcore.AsyncNetworkStream):
    """A stream that tells a meter what it read."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, meter: Meter) -> None:
        self._stream = stream
        self._meter = meter

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Some bytes; few at a time, so that reading does not hold up the event loop."""
        data = await self._stream.read(min(max_bytes, _READ), timeout)
        self._meter.wire(len(data))
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send bytes."""
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """The stream inside TLS; the server's certificate must be that of ``server_hostname``."""
        inside = await self._stream.start_tls(ssl_context, server_hostname, timeout)
        return MeteredStream(inside, self._meter)

    def get_extra_info(self, info: str) -> Any:
        """What the stream knows of its socket."""
        return self._stream.get_extra_info(info)


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Opens TCP connections, and only to addresses that the policy permits.

    Args:
        policy: Where connections may go.
        resolve: Names to addresses.
        meter: Told what comes in over the connections.
    """

    def __init__(self, policy: AddressPolicy, resolve: Resolver, meter: Meter) -> None:
        self._policy = policy
        self._resolve = resolve
        self._meter = meter
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
                raise FetchError(
                    f"{host} port {port}: connected to {peer}, meant {address}",
                    kind="refused_address",
                )
            return MeteredStream(stream, self._meter)
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
        if not self._policy.permits(host, address):
            return False
        if self._policy.names(host, address):
            return True
        return port in PUBLIC_PORTS and not is_own(address)

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
        return addresses[:MAX_ANSWERS]
