"""The ASGI application: routes, middleware, and what lives as long as the application does."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service import openapi
from service.auth import Keys
from service.dispatch import Dispatcher
from service.endpoints import NOT_READY, Endpoints, expiry, live
from service.engine_process import EngineProcess
from service.errors import ApiError
from service.fetch import HttpFetcher
from service.inputs import PictureReader
from service.jobs import JobStore, Limits, default_url, new_boot_id
from service.painter import Painter, PictureEngine
from service.responses import error_response
from service.schema import KINDS
from service.settings import Settings
from service.storage import FOLDER, OutputFolder
from service.webhooks import Deliverer, parse_secrets

logger = logging.getLogger(__name__)

ROOTS: Final = ("/api/v6/realtime", "/api/v1/enterprise/realtime")
DRAIN_SECONDS: Final = 30.0
SWEEP_SECONDS: Final = 600.0
_SENTENCES: Final = {
    404: "There is nothing at this address.",
    405: "The method is not allowed at this address.",
}

Handler = Callable[[Endpoints, Request], Awaitable[Response]]


def create_app(settings: Settings, engine: PictureEngine | None = None) -> Starlette:
    """The service as an ASGI application.

    Args:
        settings: What the operator set.
        engine: What makes the pictures, closed by whoever opened it; where None, the engine is
            opened when the application starts, on the bundle and device of the settings, and
            closed when it stops.
    """
    life = _Life(settings, engine)
    routes = [
        Route(f"{root}/{kind}{slash}", life.asks(_painting(kind)), methods=["POST"])
        for root in ROOTS
        for kind in KINDS
        for slash in ("", "/")
    ]
    routes += [
        Route(f"{root}/fetch/{{id}}{slash}", life.asks(Endpoints.fetch), methods=["GET", "POST"])
        for root in ROOTS
        for slash in ("", "/")
    ]
    routes += [
        Route(f"/api/v6/base64_to_url{slash}", life.asks(Endpoints.upload), methods=["POST"])
        for slash in ("", "/")
    ]
    routes += [
        Route(f"/{FOLDER}/{{name}}", life.asks(Endpoints.output), methods=["GET"]),
        Route("/livez", live, methods=["GET"]),
        Route("/readyz", life.asks(Endpoints.ready), methods=["GET"]),
        Route(openapi.PATH, _describing(settings.public_url), methods=["GET"]),
    ]
    everywhere = Middleware(
        CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"]
    )
    app = Starlette(
        routes=routes,
        middleware=[everywhere],
        exception_handlers={
            ApiError: _answer_api_error,
            HTTPException: _answer_http_exception,
            Exception: _answer_exception,
        },
        lifespan=life.lifespan,
    )
    app.router.redirect_slashes = False  # a redirect would drop the body
    return app


class _Life:
    """What is opened when the application starts and closed when it stops."""

    def __init__(self, settings: Settings, engine: PictureEngine | None) -> None:
        self._settings = settings
        self._given = engine
        self._keys = Keys(key.get_secret_value() for key in settings.api_keys)
        self._endpoints: Endpoints | None = None

    def asks(self, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        """An endpoint that answers 503 while the application is not running."""

        @functools.wraps(handler)
        async def endpoint(request: Request) -> Response:
            if self._endpoints is None:
                raise ApiError(503, NOT_READY, headers={"Retry-After": "5"})
            return await handler(self._endpoints, request)

        return endpoint

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Open what is shared before the first request; drain and close after the last."""
        settings = self._settings
        outputs = OutputFolder(settings.data_dir)
        async with contextlib.AsyncExitStack() as stack:
            await asyncio.to_thread(outputs.open)
            store = await asyncio.to_thread(
                JobStore.open,
                settings.database_url or default_url(settings.data_dir),
                boot_id=new_boot_id(),
                clock=time.time,
            )
            stack.push_async_callback(asyncio.to_thread, store.close)
            engine = self._given
            if engine is None:
                opened = await asyncio.to_thread(
                    EngineProcess.open, settings.bundle, device=settings.device
                )
                stack.push_async_callback(asyncio.to_thread, opened.close)
                engine = opened
            fetcher = HttpFetcher(
                settings.address_policy,
                max_bytes=settings.picture_limit,
                seconds=settings.fetch_seconds,
            )
            stack.push_async_callback(fetcher.aclose)
            reader = PictureReader(fetcher, max_bytes=settings.picture_limit, outputs=outputs)
            deliverer = Deliverer(
                store.outbox,
                fetcher.post,
                secrets=parse_secrets(settings.webhook_secret.get_secret_value()),
            )
            dispatcher = Dispatcher(
                store,
                Painter(engine, reader, outputs, base64_mode=settings.base64_mode),
                slots=settings.slots,
                limits=Limits(per_key=settings.queue_limit, total=settings.queue_total),
                on_end=deliverer.wake,
            )
            delivering = asyncio.create_task(deliverer.run())
            stack.push_async_callback(_cancelled, delivering)
            await dispatcher.start()
            stack.push_async_callback(dispatcher.drain, DRAIN_SECONDS)
            sweeping = asyncio.create_task(_sweep(store, outputs, settings.retention_hours * 3600))
            stack.push_async_callback(_cancelled, sweeping)
            self._endpoints = Endpoints(
                settings,
                keys=self._keys,
                store=store,
                dispatcher=dispatcher,
                outputs=outputs,
                reader=reader,
                defaults=engine.bundle.defaults,
                healthy=lambda: _unready(engine),
            )
            try:
                yield
            finally:
                self._endpoints = None


def _painting(kind: str) -> Handler:
    async def paint(endpoints: Endpoints, request: Request) -> Response:
        return await endpoints.paint(kind, request)

    return paint


def _describing(public_url: str | None) -> Callable[[Request], Awaitable[Response]]:
    """``GET /openapi.json``: the contract of this server."""
    described = openapi.document(public_url=public_url)

    async def describe(request: Request) -> Response:
        return JSONResponse(described)

    return describe


def _unready(engine: PictureEngine) -> str | None:
    """Why the engine would not take a request now; an engine that cannot say is ready."""
    return None if getattr(engine, "ready", True) else "The engine is starting."


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _sweep(store: JobStore, outputs: OutputFolder, retention: float) -> None:
    """Now and then remove what has been kept long enough."""
    while True:
        try:
            removed = await asyncio.to_thread(expiry, store, outputs, retention=retention)
            if removed:
                logger.info("expired: %d files", removed)
        except Exception:
            logger.exception("what has expired could not be removed")
        await asyncio.sleep(SWEEP_SECONDS)


async def _answer_api_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, ApiError)
    return error_response(exc)


async def _answer_http_exception(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    sentence = _SENTENCES.get(exc.status_code, "The request cannot be served.")
    return error_response(ApiError(exc.status_code, sentence, headers=exc.headers))


async def _answer_exception(request: Request, exc: Exception) -> Response:
    return error_response(ApiError(500, "Internal server error. Please try again."))
