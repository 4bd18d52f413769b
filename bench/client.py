"""A client that costs little: prepared requests, kept-open connections, nothing decoded."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class ClientError(Exception):
    """The server did not answer as HTTP/1.1 with a Content-Length, or not with a picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer: its status, its headers in lower case, and its body as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        """The body as a JSON object."""
        values: dict[str, Any] = json.loads(self.body)
        return values


def post(path: str, values: Mapping[str, Any]) -> bytes:
    """A POST request, ready to be sent."""
    body = json.dumps(values).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def get(path: str) -> bytes:
    """A GET request, ready to be sent."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


class Connection:
    """One kept-open connection to a loopback port; for one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int) -> Connection:
        """Connect to 127.0.0.1.

        Raises:
            OSError: When nobody listens.
        """
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        found = writer.get_extra_info("socket")
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return cls(reader, writer)

    async def ask(self, request: bytes) -> Reply:
        """Send a prepared request and read its answer.

        Raises:
            ClientError: When the answer is none, or is cut short.
            OSError: When the connection broke.
        """
        self._writer.write(request)
        await self._writer.drain()
        try:
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head[:-4].split("\r\n")
            headers = {}
            for line in lines:
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
            body = await self._reader.readexactly(int(headers["content-length"]))
        except (asyncio.IncompleteReadError, KeyError, ValueError) as exc:
            raise ClientError("an answer that is not whole, or has no Content-Length") from exc
        return Reply(status=int(first.split()[1]), headers=headers, body=body)

    async def picture(self, request: bytes) -> dict[str, Any]:
        """Ask for a picture and read the answer that it is made.

        Raises:
            ClientError: When it is not.
            OSError: When the connection broke.
        """
        reply = await self.ask(request)
        answer = reply.json()
        if reply.status != 200 or answer["status"] != "success":
            raise ClientError(f"HTTP {reply.status}: {answer.get('message', answer['status'])}")
        return answer

    def close(self) -> None:
        """Hang up."""
        self._writer.close()
