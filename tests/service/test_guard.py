"""Below HTTP: this machine's own addresses, TLS names, and what comes besides a body."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from service import fetch as fetch_module
from service import guard
from service.addresses import Address, AddressPolicy
from service.errors import FetchError
from service.fetch import HttpFetcher
from service.guard import BESIDES, PIECE, Meter, is_own
from tests.service.live import Origin
from tests.service.wire import connects


class Everywhere(AddressPolicy):
    """Permits every address, as the public internet's are."""

    def permits(self, host: str, address: Address) -> bool:
        return True


async def to_loopback(host: str, port: int) -> list[str]:
    return ["127.0.0.1"]


def get(url: str, policy: AddressPolicy) -> bytes:
    async def run() -> bytes:
        fetcher = HttpFetcher(policy, max_bytes=1000, seconds=10, resolve=to_loopback)
        return await fetcher.fetch(url)

    return asyncio.run(run())


def test_own_addresses_are_known() -> None:
    for own in ("127.0.0.1", "127.0.0.2", "::ffff:127.0.0.1"):
        assert is_own(ip_address(own))
    for other in ("192.0.2.1", "8.8.8.8", "2001:db8::1", "fe80::1%77"):
        assert not is_own(ip_address(other))


def test_own_addresses_cannot_be_told_where_all_can_be_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guard, "_binds", lambda address: True)
    assert not is_own(ip_address("127.0.0.1"))


def test_this_machine_is_not_reached_from_outside_names(
    pictures: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "PUBLIC_PORTS", (pictures.port,))
    url = pictures.body("/a", b"picture").replace("127.0.0.1", "public.example")
    with connects() as seen, pytest.raises(FetchError, match="not permitted"):
        get(url, Everywhere())
    assert seen == []
    assert get(url, Everywhere.parse(["public.example"])) == b"picture"
    assert get(url, Everywhere.parse(["127.0.0.0/8"])) == b"picture"


def test_the_meter() -> None:
    meter = Meter()
    meter.wire(BESIDES)
    meter.body(8_000)
    meter.wire(9_000 - PIECE)
    with pytest.raises(FetchError, match="besides the body"):
        meter.wire(1)


@pytest.mark.parametrize(("size", "fits"), [(16_384, True), (256, True), (16, False)])
def test_pieces_of_the_body_may_not_be_tiny(size: int, fits: bool) -> None:
    meter = Meter()
    taken = 0
    with contextlib.suppress(FetchError):
        while taken < 20_000_000:
            meter.wire(size + 7)
            meter.body(size)
            taken += size
    assert (taken >= 20_000_000) == fits
    assert fits or taken < 64 * BESIDES


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate of ``pictures.example`` that nobody has signed but itself."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    name = "pictures.example"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "30", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}",
         "-keyout", str(path), "-out", str(path.with_suffix(".crt"))],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_text(path.read_text() + path.with_suffix(".crt").read_text())
    return path


@contextlib.contextmanager
def tls_server(certificate: Path) -> Iterator[tuple[int, list[str | None], list[bytes]]]:
    """Its port, the names that clients asked for in TLS, and the requests that came inside."""
    asked: list[str | None] = []
    requests: list[bytes] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.sni_callback = lambda sock, name, context: asked.append(name)

    def serve() -> None:
        while True:
            connection, _ = listening.accept()
            with connection:
                if done.is_set():
                    return
                with (
                    contextlib.suppress(OSError),
                    context.wrap_socket(connection, server_side=True) as inside,
                ):
                    requests.append(inside.recv(4096))
                    inside.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\npicture")

    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1], asked, requests
        finally:
            done.set()
            socket.create_connection(listening.getsockname()).close()
            thread.join(10)


@pytest.fixture
def trusting(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def trust() -> None:
        context = ssl.create_default_context(cafile=certificate)
        monkeypatch.setattr(fetch_module, "_tls", lambda: context)

    return trust


def test_tls_verifies_the_name_of_the_url(certificate: Path, trusting: Callable[[], None]) -> None:
    policy = AddressPolicy.parse(["pictures.example", "other.example", "127.0.0.1"])
    with tls_server(certificate) as (port, asked, requests):
        with pytest.raises(FetchError, match="CERTIFICATE_VERIFY_FAILED"):
            get(f"https://pictures.example:{port}/", policy)
        trusting()
        for host in ("other.example", "127.0.0.1"):
            with pytest.raises(FetchError, match="CERTIFICATE_VERIFY_FAILED"):
                get(f"https://{host}:{port}/", policy)
        assert requests == []
        assert get(f"https://pictures.example:{port}/", policy) == b"picture"
    assert asked == ["pictures.example", "other.example", None, "pictures.example"]
    assert len(requests) == 1
