"""The endpoints: from an HTTP request to a job and back to an answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from engine.bundle import Bundle
from engine.errors import InputError
from engine.image import sniff
from service.auth import Keys
from service.bodies import BodyReader
from service.choices import refuse_unfit
from service.decoding import PictureDecoder
from service.dispatch import Dispatcher
from service.errors import FAILED, ApiError, refused_value, unkept
from service.inputs import PictureReader, is_link
from service.jobs import Job, JobStore, State, StoreError
from service.logs import bind_job
from service.metrics import Metrics
from service.painter import output_names, refuse_unchecked
from service.responses import ALLOW_EVERY_ORIGIN, processing
from service.runner import late
from service.schema import KINDS, PARSED_AT_ONCE, Body, is_absent, parse_json
from service.settings import Settings
from service.storage import FOLDER, Storage, file_name, new_prefix

logger = logging.getLogger(__name__)

OUTPUT_HEADERS: Final = {
    **ALLOW_EVERY_ORIGIN,
    "Cache-Control": "public, max-age=86400, immutable",
    "Content-Security-Policy": "default-src 'none'",
    "Cross-Origin-Resource-Policy": "cross-origin",
    "X-Content-Type-Options": "nosniff",
}
UPLOAD_LIMIT: Final = 5_000_000
"""Largest picture of base64_to_url in bytes."""

NOT_READY: Final = "The server is not ready."
DEADLINE_SECONDS: Final = 5.0
"""How long a job may take to stop once its deadline has passed."""


class Endpoints:
    """What each route does; made anew whenever the application starts.

    Args:
        settings: What the operator set.
        keys: Who may ask.
        store: Where jobs are kept.
        dispatcher: Who works on them.
        outputs: Where pictures are kept.
        reader: Gets at what clients upload.
        decoder: Makes sure that it is a picture.
        metrics: Told how long clients wait.
        bundle: What the engine works with: its networks, and what it takes where a request does
            not say.
        safety_checker: The name of the engine's safety checker, if it has one.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        keys: Keys,
        store: JobStore,
        dispatcher: Dispatcher,
        outputs: Storage,
        reader: PictureReader,
        decoder: PictureDecoder,
        metrics: Metrics,
        bundle: Bundle,
        safety_checker: str | None = None,
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._store = store
        self._dispatcher = dispatcher
        self._outputs = outputs
        self._reader = reader
        self._decoder = decoder
        self._metrics = metrics
        self._bundle = bundle
        self._bodies = BodyReader(settings.body_limit)
        self._safety_checker = safety_checker
        self._parsing = asyncio.Semaphore(2)

    async def paint(self, kind: str, request: Request) -> Response:
        """``POST`` of inpaint, img2img and text2img: accept, wait a while, answer."""
        self._dispatcher.refuse_if_full()
        values, key = await self._asked(request)
        self._dispatcher.refuse_if_full(key)
        body = KINDS[kind].parse(values)
        refuse_unchecked(body, self._safety_checker)
        refuse_unfit(body, self._bundle)
        if body.instant_response:
            await self._refuse_unreadable(body)
        root = self._root(request)
        job = await self._dispatcher.accept(
            body, kind=kind, key=key, root=root, prefix=new_prefix()
        )
        del values
        body = body.without_pictures()
        request.state.job_id = job.id
        bind_job(job.id)
        try:
            if not body.instant_response:
                with self._metrics.waiting():
                    gone = await self._wait(request, job, body)
                if gone:
                    return Response(status_code=499)
                made = self._dispatcher.waiters.answer_of(job.id)
                if made is not None:
                    return JSONResponse(made)
                await self._keep_deadline(job)
            return JSONResponse(await self._answer(job.id, key, root, request_failed=True))
        finally:
            self._dispatcher.waiters.forget(job.id)

    async def fetch(self, request: Request) -> Response:
        """``POST`` and ``GET /fetch/{id}``: the answer as far as it is there."""
        _, key = await self._asked(request, empty=True)
        text = request.path_params["id"]
        if not text.isascii() or not text.isdecimal() or len(text) > 10:
            raise _not_found()
        answer = await self._answer(int(text), key, self._root(request), request_failed=False)
        return JSONResponse(answer)

    async def upload(self, request: Request) -> Response:
        """``POST /api/v6/base64_to_url``: keep a picture and give a link to it.

        It must decode as a picture of a request must; what follows the picture is cut off.
        """
        values, _ = await self._asked(request)
        value = values.get("base64_string")
        if is_absent(value) or not isinstance(value, str):
            raise ApiError(400, "The base64 string field is required.")
        if value.lstrip()[:5].lower().startswith("http"):
            raise ApiError(400, "The base64 string must be a data URI or base64.")
        picture = await self._reader.read("base64_string", value)
        if len(picture) > UPLOAD_LIMIT:
            raise ApiError(400, f"The base64 string is larger than {UPLOAD_LIMIT / 1e6:g} MB.")
        try:
            await self._decoder.picture(picture, field="base64_string")
        except InputError as exc:
            raise refused_value(exc) from exc
        header = await asyncio.to_thread(sniff, picture)
        name = file_name(new_prefix(), 0, "png" if header.format == "png" else "jpg")
        trouble = await self._outputs.trouble()
        if trouble is not None:
            raise unkept(trouble)
        await self._outputs.keep({name: picture[: header.length]})
        link = f"{self._root(request)}/{FOLDER}/{name}"
        return JSONResponse({"status": "success", "output": [link]})

    async def output(self, request: Request) -> Response:
        """``GET`` and ``HEAD /outputs/{name}``: no key, since names cannot be guessed."""
        # a part of a picture is of no use, and a bad Range would be answered in another shape
        request.scope["headers"] = [(n, v) for n, v in request.scope["headers"] if n != b"range"]
        response = await self._outputs.response(
            request.path_params["name"], headers=OUTPUT_HEADERS, body=request.method != "HEAD"
        )
        if response is None:
            raise ApiError(404, "There is no such picture.")
        return response

    async def _refuse_unreadable(self, body: Body) -> None:
        """Look at the pictures that came with a request nobody waits for: now is the last time
        that it can be answered with a status code. Their pixels are left for later.

        Raises:
            ApiError: 400 for what is no PNG or JPEG within the limits.
        """
        for field, value in body.pictures.items():
            if is_link(value):
                continue
            picture = await self._reader.read(field, value)
            try:
                await asyncio.to_thread(sniff, picture, field=field, limits=self._decoder.limits)
            except InputError as exc:
                raise refused_value(exc) from exc

    async def _asked(self, request: Request, *, empty: bool = False) -> tuple[dict[str, Any], str]:
        """The body's values and the key that came with them.

        A large body is parsed in a thread, a few at a time: it must not hold up anybody else.
        """
        self._keys.refuse_early(request.headers)
        async with self._bodies.read(request) as raw:
            if empty and not raw.strip():
                raw = b"{}"
            if len(raw) <= PARSED_AT_ONCE:
                values = dict(parse_json(raw))
            else:
                async with self._parsing:
                    values = dict(await asyncio.to_thread(parse_json, raw))
        return values, self._keys.check(values, request.headers)

    async def _wait(self, request: Request, job: Job, body: Body) -> bool:
        """Wait for a job within the budget; True when the client has gone meanwhile."""
        seconds = self._settings.wait_seconds
        if body.deadline_ms is not None:
            seconds = min(seconds, body.deadline_ms / 1000)
        ended = asyncio.create_task(self._dispatcher.waiters.ended(job.id))
        gone = asyncio.create_task(_disconnected(request.receive))
        try:
            await asyncio.wait({ended, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if ended.done() or not gone.done():
                return False
            logger.info("job %d: its client has gone", job.id)
            if body.webhook is None:
                await self._dispatcher.abandon(job.id)
            return True
        finally:
            for task in (ended, gone):
                task.cancel()
            await asyncio.gather(ended, gone, return_exceptions=True)

    async def _keep_deadline(self, job: Job) -> None:
        """A picture that comes after its deadline is of no use: nobody waits for it any longer, and
        what works on it stops."""
        if job.deadline is None or time.time() < job.deadline:
            return
        with contextlib.suppress(StoreError):
            await self._dispatcher.fail_overdue()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DEADLINE_SECONDS):
                await self._dispatcher.waiters.ended(job.id)

    async def _answer(
        self, job_id: int, key: str, root: str, *, request_failed: bool
    ) -> dict[str, Any]:
        """What there is to say of a job now.

        Args:
            job_id: Which one.
            key: Whose it must be.
            root: The address that clients reach this server at.
            request_failed: Answer a failed job with its status code, as its own request does,
                instead of 200.

        Raises:
            ApiError: 404 for an unknown id or another key's.
        """
        job = await asyncio.to_thread(self._store.get, job_id, key)
        if job is None:
            raise _not_found()
        if job.state is State.DONE and job.answer is not None:
            return dict(job.answer)
        if job.state in (State.FAILED, State.CANCELLED):
            refusal = self._dispatcher.waiters.refusal_of(job_id)
            message = job.message or FAILED
            if request_failed:
                raise refusal or (late(message) if job.deadline else ApiError(500, message))
            return {"status": "error", "message": message, "id": job.id}
        assert job.request is not None
        body, _ = await asyncio.to_thread(KINDS[job.kind].from_document, job.request)
        inline = body.base64 and self._settings.base64_mode != "link"
        names = output_names(body, job.file_prefix, inline=inline)
        links = [f"{root}/{FOLDER}/{name}" for name in names]
        return processing(
            body,
            self._bundle.defaults,
            identity=job.id,
            prefix=job.file_prefix,
            eta=await self._dispatcher.eta(job.id),
            fetch_result=f"{root}/api/v6/realtime/fetch/{job.id}",
            links=[] if inline else links,
        )

    def _root(self, request: Request) -> str:
        return self._settings.public_url or str(request.base_url).rstrip("/")


async def expiry(store: JobStore, outputs: Storage, *, retention: float) -> int:
    """Remove answers and pictures older than ``retention`` seconds; returns how many pictures
    there were that no answer spoke of."""
    before = time.time() - retention
    await outputs.remove(await asyncio.to_thread(store.expire, before))
    return await outputs.sweep(before)


def _not_found() -> ApiError:
    return ApiError(404, "Request not found")


async def _disconnected(receive: Callable[[], Any]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
