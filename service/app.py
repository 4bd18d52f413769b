"""The ASGI application: routes, limits, and the waited answer."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from engine import Engine
from service.auth import Keys
from service.errors import ApiError
from service.fetch import HttpFetcher
from service.inpaint import Inpainter, PictureEngine
from service.inputs import PictureReader
from service.responses import ALLOW_EVERY_ORIGIN, error_response
from service.schema import Body, Img2ImgBody, InpaintBody, Text2ImgBody, parse_json
from service.settings import Settings
from service.storage import FOLDER, OutputFolder

logger = logging.getLogger(__name__)

ROOTS: Final = ("/api/v6/realtime", "/api/v1/enterprise/realtime")
KINDS: Final[Mapping[str, type[Body]]] = {
    "inpaint": InpaintBody,
    "img2img": Img2ImgBody,
    "text2img": Text2ImgBody,
}
OUTPUT_HEADERS: Final = {
    **ALLOW_EVERY_ORIGIN,
    "Cache-Control": "public, max-age=86400, immutable",
    "Content-Security-Policy": "default-src 'none'",
    "Cross-Origin-Resource-Policy": "cross-origin",
    "X-Content-Type-Options": "nosniff",
}
_SENTENCES: Final = {
    404: "There is nothing at this address.",
    405: "The method is not allowed at this address.",
}


def create_app(settings: Settings, engine: PictureEngine | None = None) -> Starlette:
    """The service as an ASGI application.

    Args:
        settings: What the operator set.
        engine: What makes the pictures, closed by whoever opened it; where None, the engine is
            opened when the application starts, on the bundle and device of the settings, and
            closed when it stops.
    """
    service = _Service(settings, engine)
    app = Starlette(
        routes=[
            *(
                Route(
                    f"{root}/{name}{slash}",
                    functools.partial(service.paint, kind),
                    methods=["POST"],
                )
                for root in ROOTS
                for name, kind in KINDS.items()
                for slash in ("", "/")
            ),
            Route(f"/{FOLDER}/{{name}}", service.output, methods=["GET"]),
            Route("/livez", service.live, methods=["GET"]),
            Route("/readyz", service.ready, methods=["GET"]),
        ],
        middleware=[
            Middleware(
                CORSMiddleware,
                allow_origins=["*"],
                allow_methods=["*"],
                allow_headers=["*"],
            )
        ],
        exception_handlers={
            ApiError: _answer_api_error,
            HTTPException: _answer_http_exception,
            Exception: _answer_exception,
        },
        lifespan=service.lifespan,
    )
    app.router.redirect_slashes = False  # a redirect would drop the body
    return app


class _Service:
    """The endpoints, and what they share."""

    def __init__(self, settings: Settings, engine: PictureEngine | None) -> None:
        self._settings = settings
        self._given = engine
        self._keys = Keys(key.get_secret_value() for key in settings.api_keys)
        self._outputs = OutputFolder(settings.data_dir)
        self._inpainter: Inpainter | None = None

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Open what is shared before the first request; close it after the last."""
        settings = self._settings
        async with contextlib.AsyncExitStack() as stack:
            await asyncio.to_thread(self._outputs.open)
            engine = self._given
            if engine is None:
                opened = await asyncio.to_thread(
                    Engine.open, settings.bundle, device=settings.device
                )
                stack.push_async_callback(asyncio.to_thread, opened.close)
                engine = opened
            fetcher = HttpFetcher(
                settings.address_policy,
                max_bytes=settings.picture_limit,
                seconds=settings.fetch_seconds,
            )
            stack.push_async_callback(fetcher.aclose)
            reader = PictureReader(fetcher, max_bytes=settings.picture_limit)
            self._inpainter = Inpainter(engine, reader, self._outputs)
            try:
                yield
            finally:
                self._inpainter = None

    async def paint(self, kind: type[Body], request: Request) -> Response:
        """``POST`` of inpaint, img2img and text2img."""
        try:
            values = parse_json(await _read_body(request, self._settings.body_limit))
        except ClientDisconnect:
            return Response(status_code=400)
        self._keys.check(values, request.headers)
        body = kind.parse(values)
        if self._inpainter is None:
            raise ApiError(503, "The server is not ready.", headers={"Retry-After": "5"})
        seconds = self._settings.wait_seconds
        if body.deadline_ms is not None:
            seconds = min(seconds, body.deadline_ms / 1000)
        root = self._settings.public_url or str(request.base_url).rstrip("/")
        work = self._inpainter.make(body, link=lambda name: f"{root}/{FOLDER}/{name}")
        answer = await _while_wanted(request, work, seconds)
        return Response(status_code=499) if answer is None else JSONResponse(answer)

    async def output(self, request: Request) -> Response:
        """``GET`` and ``HEAD /outputs/{name}``: no key, since names cannot be guessed."""
        found = self._outputs.find(request.path_params["name"])
        if found is None:
            raise ApiError(404, "There is no such picture.")
        path, content_type = found
        return FileResponse(path, media_type=content_type, headers=OUTPUT_HEADERS)

    async def live(self, request: Request) -> Response:
        """``GET /livez``: the process answers."""
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """``GET /readyz``: a request would be served."""
        if self._inpainter is None:
            raise ApiError(503, "The server is not ready.", headers={"Retry-After": "5"})
        if not self._outputs.writable():
            raise ApiError(503, "The data directory cannot be written.")
        return JSONResponse({"status": "ok"})


async def _read_body(request: Request, limit: int) -> bytes:
    too_large = ApiError(413, f"The request body is larger than {limit / 1e6:g} MB.")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limit:
        raise too_large
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise too_large
    return bytes(body)


async def _while_wanted(
    request: Request, work: Awaitable[dict[str, Any]], seconds: float
) -> dict[str, Any] | None:
    """The result of ``work``, which is cancelled when nobody waits for it any longer.

    Returns:
        The result, or None when the client has gone.

    Raises:
        ApiError: 503 when ``seconds`` were not enough.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.create_task(_disconnected(request.receive))
    try:
        await asyncio.wait({working, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if gone.done():
            logger.info("client has gone; its request was cancelled")
            return None
        raise ApiError(
            503,
            f"The picture was not done within {seconds:g} seconds and was cancelled.",
            headers={"Retry-After": str(max(1, round(seconds)))},
        )
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _disconnected(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _answer_api_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, ApiError)
    return error_response(exc)


async def _answer_http_exception(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    sentence = _SENTENCES.get(exc.status_code, "The request cannot be served.")
    return error_response(ApiError(exc.status_code, sentence, headers=exc.headers))


async def _answer_exception(request: Request, exc: Exception) -> Response:
    return error_response(ApiError(500, "Internal server error. Please try again."))
