"""The work of one job, from its checked body to the answer's body.

Nothing here holds up the event loop: pictures are decoded, encoded and stored in threads, and the
engine's ticket wakes the waiting task from the engine's own thread.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from engine import EngineError, InpaintRequest, InpaintResult, InputError, RequestCancelled
from engine.image import decode_mask, decode_picture, encode_jpeg, encode_png
from service.errors import ApiError, FetchError, refused_value
from service.inputs import PictureReader
from service.jobs import Job
from service.responses import success
from service.schema import Body
from service.storage import CONTENT_TYPES, FOLDER, OutputFolder, file_name
from service.urls import Target

logger = logging.getLogger(__name__)

Base64Mode: TypeAlias = Literal["inline", "link", "data_uri"]


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


class Painter:
    """Does the work of one job.

    Args:
        engine: Makes the pictures.
        reader: Gets the pictures that came with the request.
        outputs: Keeps the pictures that were made.
        base64_mode: What ``base64: true`` answers with: the bare text (``"inline"``), a link to a
            file that holds it (``"link"``, as the hosted API does), or a data URI.
    """

    def __init__(
        self,
        engine: PictureEngine,
        reader: PictureReader,
        outputs: OutputFolder,
        *,
        base64_mode: Base64Mode = "inline",
    ) -> None:
        self._engine = engine
        self._reader = reader
        self._outputs = outputs
        self._base64_mode = base64_mode

    async def prepare(self, body: Body, *, root: str) -> InpaintRequest:
        """Get and decode the pictures that came with a request.

        Args:
            body: The checked request.
            root: The address that clients reach this server at.

        Returns:
            What the engine is to be asked.

        Raises:
            ApiError: With the answer that the client gets instead.
        """
        pictures = await self._read(body, root=root)
        try:
            return await asyncio.to_thread(_request, body, pictures)
        except InputError as exc:
            raise refused_value(exc) from exc

    async def paint(self, job: Job, body: Body, request: InpaintRequest, *, root: str) -> Painted:
        """Make the pictures of a job. When the task is cancelled, so is the engine's work.

        Args:
            job: Whose id and file names are used.
            body: The checked request.
            request: What ``prepare`` made of it.
            root: The address that clients reach this server at.

        Returns:
            The answer, and the files it speaks of.

        Raises:
            ApiError: With the answer that the client gets instead.
        """
        try:
            result = await _finished(await _submitted(self._engine, request))
        except InputError as exc:
            raise refused_value(exc) from exc
        except RequestCancelled as exc:
            raise ApiError(503, "The request was cancelled because the server stops.") from exc
        except EngineError as exc:
            logger.exception("job %d: the engine failed", job.id)
            raise ApiError(500, "The engine failed to make the picture.") from exc
        kept = await asyncio.to_thread(self._keep, body, result, job.file_prefix, root)
        answer = success(body, result, identity=job.id, prefix=job.file_prefix, output=kept.output)
        logger.info(
            "job %d: %d picture(s) of %dx%d in %.3f s",
            job.id,
            body.samples,
            body.width,
            body.height,
            answer["generationTime"],
        )
        told = None if kept.links == kept.output else {**answer, "output": kept.links}
        return Painted(answer=answer, files=kept.files, webhook_answer=told)

    async def _read(self, body: Body, *, root: str) -> dict[str, bytes]:
        """All pictures at once; of two errors, the first field's is the one that is told."""
        fields = body.pictures
        read = await asyncio.gather(
            *(self._reader.read(field, value, root=root) for field, value in fields.items()),
            return_exceptions=True,
        )
        pictures = {}
        for field, picture in zip(fields, read, strict=True):
            if isinstance(picture, BaseException):
                raise picture
            pictures[field] = picture
        return pictures

    def _keep(self, body: Body, result: InpaintResult, prefix: str, root: str) -> _Kept:
        """Encode the pictures, and keep what is linked to."""
        encode = encode_jpeg if body.output_format == "jpg" else encode_png
        pictures = [encode(image) for image in result.images]
        inline = body.base64 and self._base64_mode != "link"
        texts = [base64.b64encode(picture) for picture in pictures] if body.base64 else []
        files = output_names(body, prefix, inline=inline)
        if inline and body.webhook is None:
            files = []
        for name, data in zip(files, pictures if inline or not texts else texts, strict=False):
            self._outputs.write(name, data)
        links = [f"{root}/{FOLDER}/{name}" for name in files]
        if not inline:
            return _Kept(output=links, links=links, files=files)
        head = ""
        if self._base64_mode == "data_uri":
            head = f"data:{CONTENT_TYPES[body.output_format]};base64,"
        output = [head + text.decode("ascii") for text in texts]
        return _Kept(output=output, links=links or output, files=files)


@dataclass(frozen=True, slots=True, kw_only=True)
class Painted:
    """What came of a job.

    Attributes:
        answer: The body of the success answer.
        files: The names of the files that were kept for it.
        webhook_answer: What the webhook says instead: links where the answer holds the pictures
            themselves, which would be megabytes. None where it says the same.
    """

    answer: dict[str, Any]
    files: list[str]
    webhook_answer: dict[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """The pictures as the answer shows them, as links, and the names of their files."""

    output: list[str]
    links: list[str]
    files: list[str]


def output_names(body: Body, prefix: str, *, inline: bool) -> list[str]:
    """The names of a job's files, known before they are made: pictures, or their base64 text
    where that is to be linked to."""
    extension = "base64" if body.base64 and not inline else body.output_format
    return [file_name(prefix, i, extension) for i in range(body.samples)]


def refuse_unserved(body: Body) -> None:
    """Say so when a request needs what this server cannot do, instead of leaving it out.

    Raises:
        ApiError: 503 for the safety checker, 400 for a webhook that is no URL.
    """
    if body.webhook is not None:
        try:
            Target.parse(body.webhook)
        except FetchError as exc:
            raise ApiError(400, "The webhook must be an http or https URL.") from exc
    if body.safety_checker:
        raise ApiError(503, "The safety checker is not available on this server.")


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
