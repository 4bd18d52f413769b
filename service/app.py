"""The ASGI application: routes, middleware, and what lives as long as the application does."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from service import openapi
from service.auth import Keys
from service.decoding import PictureDecoder
from service.dispatch import Dispatcher
from service.endpoints import NOT_READY, Endpoints, expiry
from service.engine_process import EngineProcess
from service.errors import ApiError, StorageError, unkept
from service.fetch import HttpFetcher
from service.gauges import engine_state
from service.inputs import PictureReader
from service.jobs import JobStore, Limits, default_url, new_boot_id
from service.metrics import Metrics
from service.origins import OriginGuard
from service.painter import Painter, PictureEngine, safety_checker_of
from service.playground import routes as playground
from service.responses import error_response
from service.safety import find, tell
from service.schema import KINDS
from service.settings import Settings
from service.storage import FOLDER, Storage, open_storage
from service.stream import Streams
from service.watch import STOPPED, Parts, Watch
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


def create_app(
    settings: Settings,
    engine: PictureEngine | None = None,
    *,
    decoder: PictureDecoder | None = None,
) -> Starlette:
    """The service as an ASGI application.

    Args:
        settings: What the operator set.
        engine: What makes the pictures, closed by whoever opened it; where None, the engine is
            opened when the application starts, on the bundle and device of the settings, and
            closed when it stops.
        decoder: What decodes pictures; likewise.
    """
    life = _Life(settings, engine, decoder)
    routes: list[BaseRoute] = [
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
        WebSocketRoute(f"{root}/stream{slash}", life.streams)
        for root in ROOTS
        for slash in ("", "/")
    ]
    routes += [
        Route(f"/{FOLDER}/{{name}}", life.asks(Endpoints.output), methods=["GET"]),
        Route("/livez", life.watch.live, methods=["GET"]),
        Route("/readyz", life.watch.ready, methods=["GET"]),
        Route("/v2/health/live", life.watch.live, methods=["GET"]),
        Route("/v2/health/ready", life.watch.ready, methods=["GET"]),
        Route("/metrics", life.watch.metrics, methods=["GET"]),
        Route(openapi.PATH, _describing(settings.public_url), methods=["GET"]),
        *playground(settings),
    ]
    everywhere = Middleware(
        CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"]
    )
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(OriginGuard, policy=settings.origin_policy, guarded="/api/"),
            everywhere,
        ],
        exception_handlers={
            ApiError: _answer_api_error,
            StorageError: _answer_storage_error,
            HTTPException: _answer_http_exception,
            Exception: _answer_exception,
        },
        lifespan=life.lifespan,
    )
    app.router.redirect_slashes = False  # a redirect would drop the body
    app.state.metrics = life.metrics
    return app


class _Life:
    """What is opened when the application starts and closed when it stops."""

    def __init__(
        self, settings: Settings, engine: PictureEngine | None, decoder: PictureDecoder | None
    ) -> None:
        self._settings = settings
        self._given = engine
        self._decoder = decoder
        self._keys = Keys(key.get_secret_value() for key in settings.api_keys)
        self._endpoints: Endpoints | None = None
        self._streams: Streams | None = None
        self.metrics = Metrics()
        self.watch = Watch(self.metrics, exposure=settings.metrics, keys=self._keys)

    def asks(self, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        """An endpoint that answers 503 while the application is not running."""

        @functools.wraps(handler)
        async def endpoint(request: Request) -> Response:
            if self._endpoints is None:
                headers = {"Retry-After": "5"}
                raise ApiError(503, NOT_READY, headers=headers, reason="not_ready")
            return await handler(self._endpoints, request)

        return endpoint

    async def streams(self, socket: WebSocket) -> None:
        """The realtime stream; 503 while the application is not running."""
        if self._streams is None:
            headers = {"Retry-After": "5"}
            refusal = ApiError(503, NOT_READY, headers=headers, reason="not_ready")
            await socket.send_denial_response(error_response(refusal))
            return
        await self._streams.serve(socket)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Open what is shared before the first request; drain and close after the last."""
        settings = self._settings
        outputs = open_storage(settings.storage_url, settings.data_dir)
        async with contextlib.AsyncExitStack() as stack:
            await outputs.open()
            stack.push_async_callback(outputs.close)
            store = await asyncio.to_thread(
                JobStore.open,
                settings.database_url or default_url(settings.data_dir),
                boot_id=new_boot_id(),
                clock=time.time,
            )
            stack.push_async_callback(asyncio.to_thread, store.close)
            engine = self._given
            if engine is None:
                checker = await asyncio.to_thread(find)
                opened = await asyncio.to_thread(
                    EngineProcess.open,
                    settings.bundle,
                    device=settings.device,
                    safety_checker=checker.path,
                    cache_bytes=settings.cache_bytes,
                )
                stack.push_async_callback(asyncio.to_thread, opened.close)
                tell(opened.safety_checker, checker)
                engine = opened
            decoder = self._decoder
            if decoder is None:
                limits = settings.picture_limits
                decoder = await asyncio.to_thread(PictureDecoder.open, limits=limits)
                stack.push_async_callback(asyncio.to_thread, decoder.close)
            fetcher = HttpFetcher(
                settings.address_policy,
                max_bytes=settings.picture_limit,
                seconds=settings.fetch_seconds,
            )
            stack.push_async_callback(fetcher.aclose)
            reader = PictureReader(
                self.metrics.counted(fetcher), max_bytes=settings.picture_limit, outputs=outputs
            )
            deliverer = Deliverer(
                store.outbox,
                fetcher.post,
                secrets=parse_secrets(settings.webhook_secret.get_secret_value()),
                on_attempt=self.metrics.attempted,
            )
            dispatcher = Dispatcher(
                store,
                Painter(
                    engine,
                    reader,
                    decoder,
                    outputs,
                    base64_mode=settings.base64_mode,
                    metrics=self.metrics,
                ),
                slots=settings.slots,
                limits=Limits(per_key=settings.queue_limit, total=settings.queue_total),
                trouble=partial(_trouble, engine, outputs),
                on_end=deliverer.wake,
                metrics=self.metrics,
            )
            stack.push_async_callback(self.watch.shut)
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
                decoder=decoder,
                metrics=self.metrics,
                bundle=engine.bundle,
                safety_checker=safety_checker_of(engine),
            )
            self._streams = Streams(
                settings,
                keys=self._keys,
                engine=engine,
                reader=reader,
                decoder=decoder,
                dispatcher=dispatcher,
                metrics=self.metrics,
            )
            parts = Parts(store=store, dispatcher=dispatcher, outputs=outputs, engine=engine)
            self.watch.open(parts, queue_limit=settings.queue_total)
            try:
                yield
            finally:
                self._endpoints = self._streams = None


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


async def _trouble(engine: PictureEngine, outputs: Storage) -> str | None:
    """Why nothing should be begun now: jobs that wait are for the process that works again."""
    if engine_state(engine) == "stopped":
        return STOPPED
    return await outputs.trouble()


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _sweep(store: JobStore, outputs: Storage, retention: float) -> None:
    """Now and then remove what has been kept long enough."""
    while True:
        try:
            removed = await expiry(store, outputs, retention=retention)
            if removed:
                logger.info("expired: %d files", removed)
        except Exception:
            logger.exception("what has expired could not be removed")
        await asyncio.sleep(SWEEP_SECONDS)


async def _answer_api_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, ApiError)
    if not hasattr(request.state, "job_id"):  # where there is a job, that is what is counted
        _metrics(request).refused(exc.reason)
    return error_response(exc)


async def _answer_storage_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, StorageError)
    logger.error("the storage failed: %s", exc)
    return await _answer_api_error(request, unkept(exc.reason))


async def _answer_http_exception(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    sentence = _SENTENCES.get(exc.status_code, "The request cannot be served.")
    error = ApiError(exc.status_code, sentence, headers=exc.headers)
    _metrics(request).refused(error.reason)
    return error_response(error)


async def _answer_exception(request: Request, exc: Exception) -> Response:
    error = ApiError(500, "Internal server error. Please try again.")
    _metrics(request).refused(error.reason)
    return error_response(error)


def _metrics(request: Request) -> Metrics:
    metrics: Metrics = request.app.state.metrics
    return metrics
