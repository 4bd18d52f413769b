"""One connection: what comes is read at once, worked on one at a time, told in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

from starlette.websockets import WebSocket, WebSocketDisconnect

from service.bodies import BODY_SECONDS
from service.dispatch import Dispatcher
from service.errors import ApiError
from service.metrics import Metrics
from service.stream.edits import Edit, Studio, refusal
from service.stream.messages import Assembler, Message, Wishes
from service.stream.outbox import Outbox, Told, cancelled
from service.stream.protocol import RESTART

logger = logging.getLogger(__name__)

SEND_SECONDS: Final = 30.0
"""How long a client may take to read one message."""

END_SECONDS: Final = 5.0
"""How long a client may take to read what is left when the stream ends."""

BURST: Final = 50
RATE: Final = 200
"""Messages that are read at once, and messages a second that are read in the long run: more has to
wait, and cannot hold up anybody else."""

GONE: Final = (OSError, WebSocketDisconnect, RuntimeError)
"""What sending raises when the client has gone, or the connection is closed."""

STOPPING: Final = "The server is stopping."


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """Why a stream ends.

    Attributes:
        code: Of the closing frame.
        reason: Of the closing frame.
    """

    code: int
    reason: str = ""


Admit = Callable[[Mapping[str, Any]], AbstractContextManager[str]]
"""Checks the key of a first message, takes a seat for it until the context ends, and says for whom
it is; raises ApiError."""


class Connection:
    """A stream whose handshake is done.

    Args:
        socket: Accepted.
        studio: Does the work.
        dispatcher: Gives out the slots that work is done in.
        metrics: Told what becomes of edits.
        admit: See ``Admit``.
        root: The address that clients reach this server at.
        idle_seconds: How long nothing may be asked for.
    """

    def __init__(
        self,
        socket: WebSocket,
        *,
        studio: Studio,
        dispatcher: Dispatcher,
        metrics: Metrics,
        admit: Admit,
        root: str,
        idle_seconds: float,
    ) -> None:
        self._socket = socket
        self._studio = studio
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._admit = admit
        self._root = root
        self._idle_seconds = idle_seconds
        self._outbox = Outbox()
        self._wishes = Wishes(studio.safety_checker, studio.bundle)
        self._seat = contextlib.ExitStack()
        self._owner: str | None = None  # whom the key is of, once it was checked
        self._pending: Edit | None = None
        self._asked = asyncio.Event()
        self._running: tuple[int, asyncio.Task[Told]] | None = None

    async def run(self) -> None:
        """Serve until either side ends it."""
        reading = asyncio.create_task(self._read())
        working = asyncio.create_task(self._work())
        writing = asyncio.create_task(self._write())
        tasks = (reading, working, writing)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            end = next(_end_of(task) for task in tasks if task.done())
            reading.cancel()
            working.cancel()  # it ends once the engine has stopped: meanwhile its place is taken
            await self._stop_running()
            for _ in await self._outbox.close():
                self._metrics.edited("cancelled")
            await asyncio.wait({writing}, timeout=END_SECONDS)
            with contextlib.suppress(*GONE, TimeoutError):
                async with asyncio.timeout(END_SECONDS):
                    await self._socket.close(end.code, end.reason)
        finally:
            for task in tasks:
                _cancel_once(task)
            await asyncio.gather(*tasks, return_exceptions=True)
            self._seat.close()

    async def _read(self) -> End:
        """Take messages until the stream ends."""
        assembler = Assembler()
        pace = _Pace()
        while True:
            await self._outbox.room()
            try:
                frame = await self._next_frame()
            except TimeoutError:
                if self._outbox.open:
                    continue
                if self._owner is None:
                    return End(code=1008, reason="no request came")
                return End(code=1000, reason="idle")
            if isinstance(frame, End):
                return frame
            for message in await assembler.add(frame):
                end = await self._take(message)
                if end is not None:
                    return end
                await pace.keep()

    async def _next_frame(self) -> str | bytes | End:
        seconds = BODY_SECONDS if self._owner is None else self._idle_seconds
        async with asyncio.timeout(seconds):
            event = await self._socket.receive()
        if event["type"] == "websocket.disconnect":
            restart = event.get("code") == RESTART
            return End(code=RESTART, reason="the server stops") if restart else End(code=1000)
        text = event.get("text")
        data: str | bytes = event["bytes"] if text is None else text
        return data

    async def _take(self, message: Message) -> End | None:
        """Begin the edit that a message is; where there is a newer one, the older ends here."""
        number = self._outbox.begin()
        try:
            if self._owner is None:
                if message.refusal is not None:
                    raise message.refusal
                self._owner = self._seat.enter_context(self._admit(message.values))
            if self._dispatcher.draining:
                raise ApiError(503, STOPPING, reason="draining")
            wish = self._wishes.change(message)
        except ApiError as exc:
            await self._end(number, refusal(number, exc))
            if self._owner is not None:
                return None
            return End(code=1013 if exc.status == 429 else 1008, reason=exc.message)
        if self._pending is not None:
            await self._end(self._pending.number, cancelled(self._pending.number))
        due = None
        if wish.body.deadline_ms is not None:
            due = asyncio.get_running_loop().time() + wish.body.deadline_ms / 1000
        self._pending = Edit(number=number, wish=wish, due=due)
        self._asked.set()
        await self._stop_running()
        return None

    async def _stop_running(self) -> None:
        if self._running is not None:
            number, task = self._running
            _cancel_once(task)
            await self._end(number, cancelled(number))

    async def _end(self, number: int, told: Told) -> bool:
        """An edit has ended; False where it had ended before."""
        ended = await self._outbox.end(number, told)
        if ended:
            self._metrics.edited(told.outcome)
        return ended

    async def _work(self) -> End:
        """Make the newest picture, again and again."""
        while True:
            await self._asked.wait()
            async with self._dispatcher.places.place():
                edit, self._pending = self._pending, None
                self._asked.clear()
                assert edit is not None
                made = await self._made(edit)
            if self._pending is None:  # else a newer message has changed what is asked for
                if made.outcome == "done":
                    self._wishes.made()
                elif made.outcome == "refused":
                    self._wishes.go_back()
            if await self._end(edit.number, made):
                # what is made must be read before more is made: results are never left out
                await self._outbox.told(edit.number)

    async def _made(self, edit: Edit) -> Told:
        """Work on an edit in a task of its own, which a newer one cancels."""
        assert self._owner is not None
        task = asyncio.create_task(
            self._studio.make(edit, root=self._root, owner=self._owner, show=self._outbox.preview)
        )
        self._running = edit.number, task
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            _cancel_once(task)
            await asyncio.wait({task})
            raise
        finally:
            self._running = None
        return cancelled(edit.number) if task.cancelled() else task.result()

    async def _write(self) -> End:
        """Tell what there is to tell, as fast as it is read."""
        while (told := await self._outbox.take()) is not None:
            try:
                async with asyncio.timeout(SEND_SECONDS):
                    await self._socket.send_text(told.text())
                    for picture in told.pictures:
                        await self._socket.send_bytes(picture)
            except TimeoutError:
                return End(code=1008, reason="the client does not read")
            except GONE:
                return End(code=1000)
            await self._outbox.done(told)
        return End(code=1000)


class _Pace:
    """Lets ``BURST`` messages through at once, and ``RATE`` a second."""

    def __init__(self) -> None:
        self._due = 0.0

    async def keep(self) -> None:
        """A message was taken: wait before the next one where they come too fast."""
        now = asyncio.get_running_loop().time()
        self._due = max(self._due, now - BURST / RATE) + 1 / RATE
        if self._due > now:
            await asyncio.sleep(self._due - now)


def _cancel_once(task: asyncio.Task[Any]) -> None:
    """Cancel a task that may take its time to end; a second time would not let it."""
    if not task.cancelling():
        task.cancel()


def _end_of(task: asyncio.Task[End]) -> End:
    error = task.exception()
    if error is None:
        return task.result()
    logger.error("a stream failed", exc_info=error)
    return End(code=1011)
