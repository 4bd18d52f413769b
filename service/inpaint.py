"""One inpainting request from its checked body to the answer's body.

Nothing here holds up the event loop: pictures are decoded, encoded and stored in threads, and the
engine's ticket wakes the waiting task from the engine's own thread.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from engine import EngineError, InpaintRequest, InpaintResult, InputError, RequestCancelled
from engine.image import decode_mask, decode_picture, encode_jpeg, encode_png
from service.errors import ApiError, refused_value
from service.inputs import PictureReader
from service.responses import new_id, success
from service.schema import Body
from service.storage import OutputFolder, file_name, new_prefix

logger = logging.getLogger(__name__)


class PictureTicket(Protocol):
    """A request that the engine has taken."""

    def result(self, timeout: float | None = None) -> InpaintResult:
        """The pictures; raises what went wrong."""
        ...

    def cancel(self) -> bool:
        """Stop working on it."""
        ...

    def add_done_callback(self, callback: Callable[[Any], None], /) -> None:
        """Call ``callback`` with the ticket once it is done, from any thread."""
        ...


class PictureEngine(Protocol):
    """What makes the pictures: ``engine.Engine`` here, or one in a process of its own."""

    def submit(self, request: InpaintRequest, /) -> PictureTicket:
        """Take a request without waiting for its picture."""
        ...

    def close(self) -> None:
        """Cancel what is running and let go of the device."""
        ...


class Inpainter:
    """Does the work behind ``POST /api/v6/realtime/inpaint``."""

    def __init__(self, engine: PictureEngine, reader: PictureReader, outputs: OutputFolder) -> None:
        self._engine = engine
        self._reader = reader
        self._outputs = outputs

    async def make(self, body: Body, *, link: Callable[[str], str]) -> dict[str, Any]:
        """Make the pictures of a request. When the task is cancelled, so is the engine's work.

        Args:
            body: The checked request.
            link: From the name of an output to the address that clients find it at.

        Returns:
            The body of the success answer.

        Raises:
            ApiError: With the answer that the client gets instead.
        """
        refuse_unserved(body)
        pictures = await self._read(body)
        identity, prefix = new_id(), new_prefix()
        try:
            request = await asyncio.to_thread(_request, body, pictures)
            result = await _finished(await _submitted(self._engine, request))
        except InputError as exc:
            raise refused_value(exc) from exc
        except RequestCancelled as exc:
            raise ApiError(503, "The request was cancelled because the server stops.") from exc
        except EngineError as exc:
            logger.exception("request %d: the engine failed", identity)
            raise ApiError(500, "The engine failed to make the picture.") from exc
        output = await asyncio.to_thread(self._keep, body, result, prefix)
        if not body.base64:
            output = [link(name) for name in output]
        answer = success(body, result, identity=identity, prefix=prefix, output=output)
        logger.info(
            "request %d: %d picture(s) of %dx%d in %.3f s",
            identity,
            body.samples,
            body.width,
            body.height,
            answer["generationTime"],
        )
        return answer

    async def _read(self, body: Body) -> dict[str, bytes]:
        """All pictures at once; of two errors, the first field's is the one that is told."""
        fields = body.pictures
        read = await asyncio.gather(
            *(self._reader.read(field, value) for field, value in fields.items()),
            return_exceptions=True,
        )
        pictures = {}
        for field, picture in zip(fields, read, strict=True):
            if isinstance(picture, BaseException):
                raise picture
            pictures[field] = picture
        return pictures

    def _keep(self, body: Body, result: InpaintResult, prefix: str) -> list[str]:
        """Encode the pictures; base64 texts, or the names of the files that they were kept in."""
        encode = encode_jpeg if body.output_format == "jpg" else encode_png
        pictures = [encode(image) for image in result.images]
        if body.base64:
            return [base64.b64encode(picture).decode("ascii") for picture in pictures]
        names = [file_name(prefix, i, body.output_format) for i in range(len(pictures))]
        for name, picture in zip(names, pictures, strict=True):
            self._outputs.write(name, picture)
        return names


def refuse_unserved(body: Body) -> None:
    """Say so when a request needs what this version does not do, instead of leaving it out.

    Raises:
        ApiError: 400, or 503 for the safety checker.
    """
    if body.safety_checker:
        raise ApiError(503, "The safety checker is not available on this server.")
    if body.instant_response:
        raise ApiError(400, "The instant response is not supported by this version.")
    if body.webhook is not None:
        raise ApiError(400, "The webhook is not supported by this version.")


def _request(body: Body, pictures: Mapping[str, bytes]) -> InpaintRequest:
    """What the engine is asked: without a mask everything is painted, without a picture on grey."""
    image = np.full((body.height, body.width, 3), 128, np.uint8)
    mask = np.full((body.height, body.width), 255, np.uint8)
    if "init_image" in pictures:
        image = decode_picture(pictures["init_image"], field="init_image")
    if "mask_image" in pictures:
        mask = decode_mask(pictures["mask_image"], field="mask_image")
    return InpaintRequest(
        image=image,
        mask=mask,
        prompt=body.prompt,
        negative_prompt=body.negative_prompt,
        width=body.width,
        height=body.height,
        samples=body.samples,
        seed=body.seed,
        strength=body.how_strong,
        num_inference_steps=body.num_inference_steps,
        guidance_scale=body.guidance_scale,
        scheduler=body.scheduler,
        region=body.where,
    )


async def _submitted(engine: PictureEngine, request: InpaintRequest) -> PictureTicket:
    """Hand in a request from a thread, since its pictures are copied; a ticket that comes when
    nobody waits for it any longer is cancelled."""
    handing_in = asyncio.ensure_future(asyncio.to_thread(engine.submit, request))

    def drop(done: asyncio.Future[PictureTicket]) -> None:
        if not done.cancelled() and done.exception() is None:
            done.result().cancel()

    try:
        return await asyncio.shield(handing_in)
    except asyncio.CancelledError:
        handing_in.add_done_callback(drop)
        raise


async def _finished(ticket: PictureTicket) -> InpaintResult:
    """Wait for a ticket without a thread; cancel it when the waiting task is cancelled."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def wake(_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop may have been closed meanwhile
            loop.call_soon_threadsafe(done.set)

    ticket.add_done_callback(wake)
    try:
        await done.wait()
    except asyncio.CancelledError:
        ticket.cancel()
        raise
    return ticket.result(timeout=0)
