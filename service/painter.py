"""The work of one job, from its checked body to the answer's body.

Nothing here holds up the event loop: pictures are decoded in processes of their own and encoded in
threads, the storage keeps them, and the engine's ticket wakes the waiting task from its own thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import pybase64

from engine import (
    Bundle,
    DeadlineMissed,
    EngineError,
    InpaintRequest,
    InpaintResult,
    InputError,
    RequestCancelled,
)
from engine.costs import Estimate
from engine.image import encode_jpeg, encode_png
from engine.request import MIN_DEADLINE
from engine.ticket import OnStep
from service.choices import choices_of
from service.decoding import PictureDecoder
from service.errors import FAILED, ApiError, refused_value
from service.inputs import PictureReader
from service.jobs import Job
from service.metrics import Metrics
from service.responses import success
from service.safety import blacken, install
from service.schema import Body
from service.storage import CONTENT_TYPES, FOLDER, Storage, file_name

logger = logging.getLogger(__name__)

Pixels: TypeAlias = npt.NDArray[np.uint8]
T = TypeVar("T")

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

    @property
    def bundle(self) -> Bundle:
        """What it makes them with; says what is done where a request does not."""
        ...

    def submit(self, request: InpaintRequest, /, *, on_step: OnStep | None = None) -> PictureTicket:
        """Take a request without waiting for its picture; see ``Engine.submit``."""
        ...

    def close(self) -> None:
        """Cancel what is running and let go of the device."""
        ...


class Painter:
    """Does the work of one job.

    Args:
        engine: Makes the pictures.
        reader: Gets the pictures that came with the request.
        decoder: Makes pixels of them.
        outputs: Keeps the pictures that were made.
        base64_mode: What ``base64: true`` answers with: the bare text (``"inline"``), a link to a
            file that holds it (``"link"``, as the hosted API does), or a data URI.
        metrics: Told how long each stage took.

    Attributes:
        tail: What it takes from the engine's result to a kept answer; not left to the engine of a
            deadline.
    """

    def __init__(
        self,
        engine: PictureEngine,
        reader: PictureReader,
        decoder: PictureDecoder,
        outputs: Storage,
        *,
        base64_mode: Base64Mode = "inline",
        metrics: Metrics | None = None,
    ) -> None:
        self._engine = engine
        self._reader = reader
        self._decoder = decoder
        self._outputs = outputs
        self._base64_mode = base64_mode
        self._metrics = metrics or Metrics()
        self.tail = Estimate()

    async def prepare(self, body: Body, *, root: str, owner: str = "") -> InpaintRequest:
        """Get and decode the pictures that came with a request.

        Args:
            body: The checked request.
            root: The address that clients reach this server at.
            owner: For whom pictures are fetched; see ``PictureReader.read``.

        Returns:
            What the engine is to be asked.

        Raises:
            ApiError: With the answer that the client gets instead.
        """
        with self._metrics.stage("fetch"):
            pictures = await self._read(body, root=root, owner=owner)
        try:
            with self._metrics.stage("decode"):
                return request_of(body, await self._decode(pictures))
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
            DeadlineMissed: If the engine says that the picture cannot be made in time.
            StorageError: When the pictures could not be kept.
        """
        refuse_unchecked(body, safety_checker_of(self._engine))
        try:
            request = self._with_deadline(request, job)
            result = await _finished(await _submitted(self._engine, request))
        except InputError as exc:
            raise refused_value(exc) from exc
        except RequestCancelled as exc:
            raise ApiError(503, "The request was cancelled because the server stops.") from exc
        except DeadlineMissed:
            raise
        except EngineError as exc:
            logger.exception("job %d: the engine failed", job.id)
            raise ApiError(500, FAILED) from exc
        made_at = time.monotonic()
        if body.safety_checker and result.nsfw is None:
            logger.error("job %d: the engine did not check its pictures", job.id)
            raise ApiError(500, "The engine failed to check the picture.")
        if any(result.nsfw or ()):
            logger.info("job %d: flagged by the safety checker: %s", job.id, result.nsfw)
        self._metrics.engine_took(result.timings)
        with self._metrics.stage("store"):
            kept = await asyncio.to_thread(self._encoded, body, result, job.file_prefix, root)
            await self._outputs.keep(kept.files)
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
        return Painted(answer=answer, files=list(kept.files), webhook_answer=told, made_at=made_at)

    def _with_deadline(self, request: InpaintRequest, job: Job) -> InpaintRequest:
        """The request with the seconds that the engine may take."""
        if job.deadline is None:
            return request
        left = job.deadline - time.time() - (self.tail.seconds or 0.0)
        if left < MIN_DEADLINE:
            raise DeadlineMissed("the request was not begun before its deadline")
        return dataclasses.replace(request, deadline=left)

    async def _read(self, body: Body, *, root: str, owner: str) -> dict[str, bytes]:
        """All pictures at once; of two errors, the first field's is the one that is told."""
        read = partial(self._reader.read, root=root, owner=owner)
        return await _all({field: read(field, value) for field, value in body.pictures.items()})

    async def _decode(self, pictures: Mapping[str, bytes]) -> dict[str, Pixels]:
        """All pictures at once, as ``_read`` reads them."""
        how = {"init_image": self._decoder.picture, "mask_image": self._decoder.mask}
        return await _all({k: how[k](data, field=k) for k, data in pictures.items()})

    def _encoded(self, body: Body, result: InpaintResult, prefix: str, root: str) -> _Kept:
        """The pictures as they are answered, and the files for what is linked to."""
        encode = encode_jpeg if body.output_format == "jpg" else encode_png
        pictures = [encode(image) for image in blacken(result.images, result.nsfw)]
        inline = body.base64 and self._base64_mode != "link"
        texts = [pybase64.b64encode(picture) for picture in pictures] if body.base64 else []
        names = output_names(body, prefix, inline=inline)
        if inline and body.webhook is None:
            names = []
        data = pictures if inline or not texts else texts
        files = dict(zip(names, data, strict=False))
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
        made_at: ``time.monotonic()`` when the engine was done.
    """

    answer: dict[str, Any]
    files: list[str]
    webhook_answer: dict[str, Any] | None
    made_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """The pictures as the answer shows them, as links, and their files by name."""

    output: list[str]
    links: list[str]
    files: dict[str, bytes]


def output_names(body: Body, prefix: str, *, inline: bool) -> list[str]:
    """The names of a job's files, known before they are made: pictures, or their base64 text
    where that is to be linked to."""
    extension = "base64" if body.base64 and not inline else body.output_format
    return [file_name(prefix, i, extension) for i in range(body.samples)]


def safety_checker_of(engine: PictureEngine) -> str | None:
    """The name of an engine's safety checker; an engine that cannot say has none."""
    name: str | None = getattr(engine, "safety_checker", None)
    return name


def refuse_unchecked(body: Body, safety_checker: str | None) -> None:
    """Say so when a check is asked for that cannot be made.

    Raises:
        ApiError: 503 with what would mend it.
    """
    if body.safety_checker and safety_checker is None:
        raise ApiError(
            503,
            f"The safety checker is not available on this server; `{install()}` and a restart "
            "mend that.",
        )


async def _all(work: Mapping[str, Awaitable[T]]) -> dict[str, T]:
    """Do the work for all fields at once; of two errors, the first field's is the one raised."""
    outcomes = await asyncio.gather(*work.values(), return_exceptions=True)
    done = {}
    for field, outcome in zip(work, outcomes, strict=True):
        if isinstance(outcome, BaseException):
            raise outcome
        done[field] = outcome
    return done


def request_of(body: Body, pictures: Mapping[str, Pixels]) -> InpaintRequest:
    """What the engine is asked: without a mask everything is painted, without a picture on grey."""
    image, mask = pictures.get("init_image"), pictures.get("mask_image")
    if image is None:
        image = np.full((body.height, body.width, 3), 128, np.uint8)
    if mask is None:
        mask = np.full((body.height, body.width), 255, np.uint8)
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
        safety_checker=body.safety_checker,
        **choices_of(body),
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
