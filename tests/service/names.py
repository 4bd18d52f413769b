"""A real name server on loopback whose answers a test sets, and a small client that asks it.

The format is that of RFC 1035: one question, answers of type A and AAAA, no compression but the
pointer to the question's name.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import secrets
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

A, AAAA = 1, 28
HEADER = struct.Struct("!6H")
RECORD = struct.Struct("!3HIH")

Answers = Callable[[str, int], list[str]]
"""From a name and how often its A was asked before to all of its addresses."""


@dataclass
class NameServer:
    """Where it listens, what it answers, and how often each name's A was asked."""

    where: tuple[str, int]
    answers: Answers = lambda name, asked: []
    asked: dict[str, int] = field(default_factory=dict)
    said: dict[str, list[str]] = field(default_factory=dict)

    def reply(self, query: bytes) -> bytes:
        """The answer to a query."""
        name, kind = read_question(query)
        if kind == A:
            times = self.asked.get(name, 0)
            self.said[name] = self.answers(name, times)
            self.asked[name] = times + 1
        addresses = [ipaddress.ip_address(each) for each in self.said.get(name, [])]
        chosen = [each.packed for each in addresses if (each.version == 4) == (kind == A)]
        records = b"".join(
            RECORD.pack(0xC00C, kind, 1, 0, len(packed)) + packed for packed in chosen
        )
        head = HEADER.pack(int.from_bytes(query[:2]), 0x8180, 1, len(chosen), 0, 0)
        return head + query[HEADER.size :] + records

    async def resolve(self, host: str, port: int) -> list[str]:
        """Ask for both kinds of addresses; a ``Resolver``."""
        found = [await asyncio.to_thread(ask, self.where, host, kind) for kind in (A, AAAA)]
        return [address for addresses in found for address in addresses]


def read_question(query: bytes) -> tuple[str, int]:
    """The name and the type that a query asks for."""
    labels, at = [], HEADER.size
    while size := query[at]:
        labels.append(query[at + 1 : at + 1 + size].decode("ascii"))
        at += 1 + size
    return ".".join(labels), int.from_bytes(query[at + 1 : at + 3])


def ask(server: tuple[str, int], name: str, kind: int) -> list[str]:
    """The addresses of one kind that a server gives for a name."""
    labels = b"".join(bytes([len(each)]) + each.encode("ascii") for each in name.split("."))
    question = labels + b"\0" + struct.pack("!2H", kind, 1)
    head = HEADER.pack(secrets.randbits(16), 0x0100, 1, 0, 0, 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.sendto(head + question, server)
        reply = sock.recv(65535)
    assert reply[:2] == head[:2]
    at, found = HEADER.size + len(question), []
    for _ in range(HEADER.unpack_from(reply)[3]):
        size = RECORD.unpack_from(reply, at)[4]
        at += RECORD.size + size
        found.append(str(ipaddress.ip_address(reply[at - size : at])))
    return found


@contextlib.contextmanager
def name_server() -> Iterator[NameServer]:
    """Answer on a free UDP port of loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        server = NameServer(where=sock.getsockname())

        def serve() -> None:
            while True:
                query, client = sock.recvfrom(4096)
                if not query:
                    return
                sock.sendto(server.reply(query), client)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server
        finally:
            sock.sendto(b"", server.where)
            thread.join(10)
