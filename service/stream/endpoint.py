"""The handshake of a stream: who may open one, and how many there may be."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from starlette.websockets import WebSocket

from service.auth import Keys
from service.decoding import PictureDecoder
from service.dispatch import Dispatcher
from service.errors import BUSY, ApiError
from service.inputs import PictureReader
from service.metrics import Metrics
from service.painter import PictureEngine
from service.responses import error_response
from service.settings import Settings
from service.stream.connection import STOPPING, Connection
from service.stream.edits import Studio


class Streams:
    """All realtime streams; made anew whenever the application starts.

    Args:
        settings: What the operator set.
        keys: Who may ask.
        engine: Makes the pictures.
        reader: Gets the pictures that come with messages.
        decoder: Makes pixels of them.
        dispatcher: Gives out the slots that work is done in.
        metrics: Told how many there are, and what becomes of edits.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        keys: Keys,
        engine: PictureEngine,
        reader: PictureReader,
        decoder: PictureDecoder,
        dispatcher: Dispatcher,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._studio = Studio(engine, reader, decoder)
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._open = 0
        self._strangers = 0  # open ones whose key has not come yet
        self._seats: Counter[str] = Counter()

    async def serve(self, socket: WebSocket) -> None:
        """One stream from handshake to end; see the package for what is said on it."""
        try:
            self._refuse_early(socket)
        except ApiError as exc:
            self._metrics.refused(exc.reason)
            await socket.send_denial_response(error_response(exc))
            return
        with self._place():
            await socket.accept()
            with contextlib.ExitStack() as stack:
                self._strangers += 1
                stack.callback(self._is_known)
                await self._connection(socket, stack).run()

    def _connection(self, socket: WebSocket, stranger: contextlib.ExitStack) -> Connection:
        @contextlib.contextmanager
        def admit(values: Mapping[str, Any]) -> Iterator[str]:
            try:
                key = self._keys.check(values, socket.headers)
                owner = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
                most = self._settings.streams_per_key
                if self._seats[owner] >= most:
                    sentence = f"Rate limit exceeded. Maximum {most} streams allowed."
                    raise ApiError(429, sentence, extra={"retry_after": 1})
            except ApiError as exc:
                self._metrics.refused(exc.reason)
                raise
            stranger.close()
            self._seats[owner] += 1
            try:
                yield owner
            finally:
                self._seats[owner] -= 1
                if not self._seats[owner]:
                    del self._seats[owner]

        return Connection(
            socket,
            studio=self._studio,
            dispatcher=self._dispatcher,
            metrics=self._metrics,
            admit=admit,
            root=self._settings.public_url or _root(socket),
            idle_seconds=self._settings.stream_idle_seconds,
        )

    def _refuse_early(self, socket: WebSocket) -> None:
        """What can be said before a message has come.

        Half of the streams are kept free of those that have shown no key yet, so that strangers
        cannot keep out everybody.

        Raises:
            ApiError: 401 for a wrong ``key`` header, 503 when there are too many streams, or the
                server stops.
        """
        if self._dispatcher.draining:
            raise ApiError(503, STOPPING, headers={"Retry-After": "10"}, reason="draining")
        self._keys.refuse_early(socket.headers)
        most = self._settings.streams
        if self._open >= most or self._strangers >= max(1, most // 2):
            raise ApiError(503, BUSY, headers={"Retry-After": "1"}, reason="queue_full_all")

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        self._open += 1
        try:
            with self._metrics.streaming():
                yield
        finally:
            self._open -= 1

    def _is_known(self) -> None:
        self._strangers -= 1


def _root(socket: WebSocket) -> str:
    """The address of this server as its HTTP links have it."""
    url = socket.base_url
    return str(url.replace(scheme="https" if url.scheme == "wss" else "http")).rstrip("/")
