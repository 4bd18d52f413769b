"""Real sockets for tests: the service under uvicorn, and a server of pictures to fetch from."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import httpx
import uvicorn
from starlette.types import ASGIApp

from service.settings import Settings
from service.stream.protocol import options


@contextlib.contextmanager
def serving(app: ASGIApp, settings: Settings | None = None) -> Iterator[httpx.Client]:
    """Run an ASGI application on a free loopback port; yields a client of it."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        streams = options(settings or Settings())
        config = uvicorn.Config(app, log_config=None, lifespan="on", **streams)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        deadline = time.monotonic() + 30
        while not server.started and thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)
        try:
            assert server.started
            url = f"http://127.0.0.1:{sock.getsockname()[1]}"
            with httpx.Client(base_url=url, verify=False, trust_env=False, timeout=20) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join(30)


Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@dataclass
class Origin:
    """A loopback server whose answers a test sets, and which counts its connections."""

    port: int
    answers: dict[str, Answer] = field(default_factory=dict)
    connections: int = 0
    requests: list[dict[str, str]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def body(
        self, path: str, body: bytes, *, status: int = 200, headers: dict[str, str] | None = None
    ) -> str:
        """Answer a path with a body; returns the URL."""

        def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                handler.send_header(name, value)
            handler.end_headers()
            with contextlib.suppress(ConnectionError):
                handler.wfile.write(body)

        self.answers[path] = answer
        return self.url + path

    def redirect(self, path: str, location: str, *, status: int = 302) -> str:
        """Answer a path with a redirect; returns the URL."""
        return self.body(path, b"", status=status, headers={"Location": location})


@contextlib.contextmanager
def origin() -> Iterator[Origin]:
    """Serve pictures on loopback."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def setup(self) -> None:
            state.connections += 1
            super().setup()

        def do_GET(self) -> None:
            state.requests.append({name.lower(): value for name, value in self.headers.items()})
            answer = state.answers.get(self.path)
            if answer is None:
                self.send_error(404)
            else:
                answer(self)

        do_POST = do_GET

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        state = Origin(port=server.server_port)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join(10)
