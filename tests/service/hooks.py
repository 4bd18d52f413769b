"""Receivers of webhooks on loopback, each on an address of its own: down, slow or in a bad mood."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

Mood = Callable[[http.server.BaseHTTPRequestHandler], None]


def answers(status: int, **headers: str) -> Mood:
    """Answer with a status and headers, whose names have an underscore for the hyphen."""

    def mood(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return mood


def hangs_up(handler: http.server.BaseHTTPRequestHandler) -> None:
    """Close without an answer."""
    handler.connection.shutdown(socket.SHUT_RDWR)


@dataclass
class Hook:
    """One receiver.

    Attributes:
        mood: What it does with a webhook.
        came: Headers and body of every attempt.
        taken: Ids of the jobs whose webhooks were answered with 2xx.
    """

    host: str
    port: int
    mood: Mood
    came: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)
    stop: Callable[[], None] = lambda: None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}/hook"

    def start(self) -> None:
        """Listen on the port, the same as before if it listened before."""
        hook = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                hook.came.append((headers, self.body))
                with contextlib.suppress(OSError):
                    hook.mood(self)

            def send_response(self, code: int, message: str | None = None) -> None:
                if 200 <= code < 300:
                    hook.taken.append(json.loads(self.body)["id"])
                super().send_response(code, message)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer((self.host, self.port), Handler)
        server.daemon_threads = True
        self.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()

        def stop() -> None:
            server.shutdown()
            thread.join(10)
            server.server_close()
            self.stop = lambda: None

        self.stop = stop


@contextlib.contextmanager
def hook(host: str, mood: Mood, *, up: bool = True) -> Iterator[Hook]:
    """A receiver on an address of loopback; one that is not up has a port that refuses."""
    receiver = Hook(host=host, port=0, mood=mood)
    receiver.start()
    if not up:
        receiver.stop()
    try:
        yield receiver
    finally:
        receiver.stop()
