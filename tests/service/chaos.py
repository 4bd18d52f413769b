"""An origin that answers as badly as it can: one path per way to do so."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

OK: Final = b"HTTP/1.1 200 OK\r\n"
CHUNKED: Final = OK + b"Transfer-Encoding: chunked\r\n\r\n"
BOMB: Final = gzip.compress(bytes(1_000_000), 9) * 50
PAUSE: Final = 0.02
MOST: Final = 64_000_000
"""Bytes after which even an endless answer ends: who takes them all has no limit."""

Pieces = Iterator[bytes]


def slowly(text: bytes) -> Pieces:
    for byte in text:
        time.sleep(PAUSE)
        yield bytes([byte])


def silence() -> Pieces:
    time.sleep(2)
    yield OK


def slow_headers() -> Pieces:
    yield from slowly(OK + b"X: " + b"x" * 1000)


def slow_body() -> Pieces:
    yield OK + b"Content-Length: 1000\r\n\r\n"
    yield from slowly(b"x" * 1000)


def slow_chunks() -> Pieces:
    yield CHUNKED
    for _ in range(1000):
        time.sleep(PAUSE)
        yield b"1\r\nx\r\n"


def stops_in_the_body() -> Pieces:
    yield OK + b"Content-Length: 1000\r\n\r\n" + b"x" * 500
    time.sleep(2)


def declares_more() -> Pieces:
    yield OK + b"Content-Length: 1000\r\n\r\n" + b"x" * 500


def declares_too_much() -> Pieces:
    yield OK + b"Content-Length: 99999999999999999999999\r\n\r\n"


def two_lengths() -> Pieces:
    yield OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx"


def negative_length() -> Pieces:
    yield OK + b"Content-Length: -1\r\n\r\nxx"


def endless_body() -> Pieces:
    yield OK + b"\r\n"
    yield from itertools.repeat(bytes(65536))


def endless_chunks() -> Pieces:
    yield CHUNKED
    yield from itertools.repeat(b"ffff\r\n" + bytes(65535) + b"\r\n")


def tiny_chunks() -> Pieces:
    yield CHUNKED
    yield from itertools.repeat(b"1\r\nx\r\n" * 10_000)


def chunk_extensions() -> Pieces:
    yield CHUNKED
    yield from itertools.repeat(b"1;" + b"x" * 4000 + b"\r\nx\r\n")


def endless_chunk_size() -> Pieces:
    yield CHUNKED
    yield from itertools.repeat(b"0" * 65536)


def wrong_chunks() -> Pieces:
    yield CHUNKED + b"zz\r\nxx\r\n"


def endless_trailers() -> Pieces:
    yield CHUNKED + b"1\r\nx\r\n0\r\n"
    yield from itertools.repeat(b"X-Trailer: x\r\n" * 4000)


def gzip_bomb() -> Pieces:
    yield OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(BOMB) + BOMB


def gzip_in_transfer() -> Pieces:
    yield OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"


def redirect_loop() -> Pieces:
    yield b"HTTP/1.1 302 Found\r\nLocation: /redirect_loop\r\nContent-Length: 0\r\n\r\n"


def redirect_with_endless_body() -> Pieces:
    yield b"HTTP/1.1 302 Found\r\nLocation: /redirect_with_endless_body\r\n\r\n"
    yield from itertools.repeat(bytes(65536))


def header_flood() -> Pieces:
    yield OK
    yield from itertools.repeat(b"X-Flood: x\r\n" * 5000)


def endless_header() -> Pieces:
    yield OK + b"X-Endless: "
    yield from itertools.repeat(b"x" * 65536)


def too_many_headers() -> Pieces:
    lines = b"".join(b"X-%d: x\r\n" % number for number in range(64))
    yield OK + b"Content-Length: 1\r\n" + lines + b"\r\nx"


def too_long_headers() -> Pieces:
    yield OK + b"Content-Length: 1\r\nX: " + b"x" * 33_000 + b"\r\n\r\nx"


def interim_answers() -> Pieces:
    yield from itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n" * 2000)


def other_protocol() -> Pieces:
    yield b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nxx"


def http_0_9() -> Pieces:
    yield b"\x89PNG\r\n\x1a\nno headers at all"


def closes_at_once() -> Pieces:
    yield b""


def closes_in_the_headers() -> Pieces:
    yield OK + b"Content-Le"


def reset() -> Pieces:
    yield OK + b"Content-Length: 1000\r\n\r\n" + b"x" * 500


def declares_less() -> Pieces:
    yield OK + b"Content-Length: 7\r\n\r\npicture" + b"HTTP/1.1 200 OK\r\n\r\n" * 100


MODES: Final[dict[str, Callable[[], Pieces]]] = {
    mode.__name__: mode
    for mode in (
        silence, slow_headers, slow_body, slow_chunks, stops_in_the_body, declares_more,
        declares_too_much, two_lengths, negative_length, endless_body, endless_chunks,
        tiny_chunks, chunk_extensions, endless_chunk_size, wrong_chunks, endless_trailers,
        gzip_bomb, gzip_in_transfer, redirect_loop, redirect_with_endless_body, header_flood,
        endless_header, too_many_headers, too_long_headers, interim_answers, other_protocol,
        http_0_9, closes_at_once, closes_in_the_headers, reset, declares_less,
    )
}  # fmt: skip


@dataclass
class Chaos:
    """Where it listens, how much it could send, and which clients have closed their end."""

    port: int
    sent: int = 0
    opened: int = 0
    closed: int = 0
    threads: list[threading.Thread] = field(default_factory=list)

    def url(self, mode: str) -> str:
        return f"http://127.0.0.1:{self.port}/{mode}"

    def joined(self) -> None:
        """Wait for the end of every connection so far."""
        for thread in self.threads:
            thread.join(20)

    def serve(self, sock: socket.socket) -> None:
        sock.settimeout(10)
        with sock:
            head = b""
            while b"\r\n\r\n" not in head:
                head += sock.recv(4096) or b"\r\n\r\n"
            if not head.strip():
                return
            self.opened += 1
            mode = head.split()[1].decode().strip("/")
            try:
                for piece in MODES[mode]():
                    sock.sendall(piece)
                    self.sent += len(piece)
                    if self.sent > MOST:
                        break
                if mode == "reset":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(4096):
                    pass
                self.closed += 1
            except TimeoutError:  # it neither reads nor closes
                pass
            except OSError:
                self.closed += 1


@contextlib.contextmanager
def chaos() -> Iterator[Chaos]:
    """Listen on a free port of loopback."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        state = Chaos(port=listening.getsockname()[1])
        stop = threading.Event()

        def accept() -> None:
            while True:
                sock, _ = listening.accept()
                if stop.is_set():
                    sock.close()
                    return
                thread = threading.Thread(target=state.serve, args=(sock,))
                state.threads.append(thread)
                thread.start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield state
        finally:
            stop.set()
            socket.create_connection(("127.0.0.1", state.port)).close()
            accepting.join(10)
            state.joined()
