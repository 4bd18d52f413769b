"""WebSockets under uvicorn: its own protocol, with an end that is orderly and does come."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from service.settings import Settings

RESTART: Final = 1012
LINGER_SECONDS: Final = 10.0
"""How long a client may take to read the rest once a stream is over; then its socket is dropped."""


class StreamProtocol(WebSocketsSansIOProtocol):
    """uvicorn's protocol on the ``websockets`` package.

    It tells the application that the server stops and leaves the closing to it, so that every edit
    gets its answer; uvicorn itself would close first. It drops a socket whose client does not
    read: a transport with something left to write is otherwise kept as long as the client likes.
    And it knows that who was refused was answered.
    """

    async def send(self, message: Any) -> None:
        """Send what the application says. A refusal completes the handshake: uvicorn logs an error
        where nothing did, and anybody can be refused as often as he likes."""
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True

    def shutdown(self) -> None:
        """The server stops."""
        if self.handshake_complete and not self.close_sent:
            self.queue.put_nowait({"type": "websocket.disconnect", "code": RESTART, "reason": ""})
        else:
            super().shutdown()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        """The application is done with the connection."""
        super().on_task_complete(task)
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)


def options(settings: Settings) -> dict[str, Any]:
    """What ``uvicorn.Config`` has to know. Pictures are compressed already: no deflate, and none of
    its memory per connection."""
    return {
        "ws": StreamProtocol,
        "ws_max_size": settings.body_limit,
        "ws_per_message_deflate": False,
    }
