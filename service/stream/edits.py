"""One edit of a stream, from its request to its outcome."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import pybase64

from engine import (
    DeadlineMissed,
    EngineError,
    InpaintRequest,
    InpaintResult,
    InputError,
    RequestCancelled,
)
from engine.image import encode_jpeg, encode_png
from engine.request import MIN_DEADLINE
from engine.ticket import MakePreview
from service.decoding import PictureDecoder
from service.errors import FAILED, ApiError, refused_value
from service.inputs import PictureReader
from service.painter import (
    PictureEngine,
    PictureTicket,
    request_of,
    safety_checker_of,
)
from service.responses import success
from service.runner import LATE, late
from service.safety import blacken
from service.schema import InpaintBody
from service.stream.messages import Wish
from service.stream.outbox import Told, cancelled
from service.stream.pictures import Sketch

logger = logging.getLogger(__name__)

ShowPreview: TypeAlias = Callable[[int, Callable[[], Told]], Awaitable[None]]

TAIL_SECONDS: Final = 0.02
"""Kept free before a deadline, to bring a picture from the engine and to encode it."""

_NOT_TOLD: Final = ("status", "id", "output", "proxy_links")
"""Of the HTTP answer: what it says of files and of a job, of which there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """What a client wants now.

    Attributes:
        number: Of the message, from 1.
        wish: What is asked for.
        due: When the picture must be there, in the event loop's time; None for no such time.
    """

    number: int
    wish: Wish
    due: float | None


class Studio:
    """Does the work of edits.

    Args:
        engine: Makes the pictures.
        reader: Gets the pictures that came with a message.
        decoder: Makes pixels of them.

    Attributes:
        safety_checker: The name of the engine's safety checker, if it has one.
        bundle: What the engine works with.
    """

    def __init__(
        self, engine: PictureEngine, reader: PictureReader, decoder: PictureDecoder
    ) -> None:
        self.safety_checker: Final = safety_checker_of(engine)
        self.bundle: Final = engine.bundle
        self._engine = engine
        self._reader = reader
        self._decoder = decoder

    async def make(self, edit: Edit, *, root: str, owner: str, show: ShowPreview) -> Told:
        """The picture of an edit, or why there is none.

        When the task is cancelled the engine is told to stop, and this returns once it has: no edit
        leaves work behind that nobody counts.
        """
        deadline = asyncio.timeout_at(edit.due)
        try:
            async with deadline:
                return await self._made(edit, deadline, root=root, owner=owner, show=show)
        except (TimeoutError, DeadlineMissed):
            return refusal(edit.number, late(LATE))
        except InputError as exc:
            return refusal(edit.number, refused_value(exc))
        except ApiError as exc:
            return refusal(edit.number, exc)
        except (RequestCancelled, asyncio.CancelledError):
            return cancelled(edit.number)
        except Exception:
            logger.exception("an edit of a stream failed")
            return refusal(edit.number, ApiError(500, FAILED))

    async def _made(
        self, edit: Edit, deadline: asyncio.Timeout, *, root: str, owner: str, show: ShowPreview
    ) -> Told:
        body = edit.wish.body
        size = (body.width, body.height)
        pictures = {
            field: await source.pixels(
                size, reader=self._reader, decoder=self._decoder, root=root, owner=owner
            )
            for field, source in edit.wish.sources.items()
        }
        request = request_of(body, pictures)
        if edit.due is not None:
            left = edit.due - asyncio.get_running_loop().time() - TAIL_SECONDS
            if left < MIN_DEADLINE:
                raise DeadlineMissed(LATE)
            request = dataclasses.replace(request, deadline=left)
        result = await self._engine_result(edit.number, request, show, deadline)
        if body.safety_checker and result.nsfw is None:
            logger.error("the engine did not check the picture of an edit")
            raise ApiError(500, "The engine failed to check the picture.")
        return await asyncio.to_thread(_told, edit, result)

    async def _engine_result(
        self,
        number: int,
        request: InpaintRequest,
        show: ShowPreview,
        deadline: asyncio.Timeout,
    ) -> InpaintResult:
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        shown: set[asyncio.Future[None]] = set()

        def soon(act: Callable[..., None], *arguments: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop may have been closed meanwhile
                loop.call_soon_threadsafe(act, *arguments)

        def step(step: int, steps: int, preview: MakePreview) -> None:
            def make() -> Told:
                values = {"type": "preview", "edit": number, "step": step, "steps": steps}
                size = {"width": sketch.width, "height": sketch.height}
                return Told(values=values | size, pictures=[sketch.jpeg(preview())])

            task = asyncio.ensure_future(show(number, make))
            shown.add(task)
            task.add_done_callback(shown.discard)

        def submit() -> PictureTicket:  # in a thread: pictures are copied
            checked = request.safety_checker  # only what is finished is checked
            on_step = None if checked else (lambda *seen: soon(step, *seen))
            return self._engine.submit(request, on_step=on_step)

        sketch = await asyncio.to_thread(Sketch, request, self._engine.bundle)
        submitting = asyncio.ensure_future(asyncio.to_thread(submit))
        ticket: PictureTicket | None = None
        try:
            ticket = await asyncio.shield(submitting)
            ticket.add_done_callback(lambda _: soon(done.set))
            await done.wait()
        except asyncio.CancelledError:
            if not deadline.expired():  # it must not break off the wait below
                deadline.reschedule(None)
            if ticket is None:
                ticket = await submitting
                ticket.add_done_callback(lambda _: soon(done.set))
            ticket.cancel()
            await done.wait()
            raise
        try:
            return ticket.result(timeout=0)
        except (InputError, RequestCancelled, DeadlineMissed):
            raise
        except EngineError as exc:
            logger.error("the engine failed on an edit of a stream: %s", exc)
            raise ApiError(500, FAILED) from exc


def refusal(number: int, error: ApiError) -> Told:
    """The end of an edit of which there is no picture."""
    values = {"type": "error", "edit": number, "status": error.status, "message": error.message}
    outcome = "cancelled" if error.message == LATE else "refused"
    if error.status >= 500 and error.message != LATE:
        outcome = "failed"
    return Told(values=values | error.extra, outcome=outcome)


def _told(edit: Edit, result: InpaintResult) -> Told:
    """The end of an edit whose pictures are made. In a thread: it encodes them."""
    body: InpaintBody = edit.wish.body
    encode = encode_jpeg if body.output_format == "jpg" else encode_png
    pictures = [encode(image) for image in blacken(result.images, result.nsfw)]
    answer = success(body, result, identity=0, prefix="", output=())
    for name in _NOT_TOLD:
        answer.pop(name, None)
    answer["meta"] |= {field: source.summary for field, source in edit.wish.sources.items()}
    values = {"type": "result", "edit": edit.number, **answer}
    if body.base64:
        values["output"] = [pybase64.b64encode(picture).decode("ascii") for picture in pictures]
        pictures = []
    return Told(values=values, pictures=pictures, outcome="done")
