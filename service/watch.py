"""What operators and their machines look at: ``/livez``, ``/readyz`` and ``/metrics``."""

from __future__ import annotations

import asyncio
import ipaddress
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.auth import Keys
from service.dispatch import Dispatcher
from service.errors import ApiError
from service.gauges import engine_state
from service.jobs import JobStore
from service.metrics import Metrics
from service.responses import error_response
from service.storage import Storage

Exposure: TypeAlias = Literal["loopback", "key", "open", "off"]

_FORWARDED: Final = ("forwarded", "x-forwarded-for", "x-real-ip", "via", "origin")
"""Headers of requests that a proxy or a web page on this machine passes on for somebody else."""

STOPPED: Final = "The engine has stopped and does not start any more."

_ENGINE: Final = {
    "starting": "The engine is starting.",
    "restarting": "The engine is starting again.",
    "stopped": STOPPED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What is looked at while the application runs."""

    store: JobStore
    dispatcher: Dispatcher
    outputs: Storage
    engine: Any


class Watch:
    """Answers for those who watch the service; also while it starts and stops.

    Args:
        metrics: What is read at ``/metrics``.
        exposure: By whom: clients on loopback, those with a key, everybody, or nobody.
        keys: Who has a key.
    """

    def __init__(self, metrics: Metrics, *, exposure: Exposure, keys: Keys) -> None:
        self._metrics = metrics
        self._exposure = exposure
        self._keys = keys
        self._parts: Parts | None = None

    def open(self, parts: Parts, *, queue_limit: int) -> None:
        """The application runs from now on."""
        self._metrics.watch(parts.store, parts.engine, queue_limit=queue_limit)
        self._parts = parts

    async def shut(self) -> None:
        """The application stops, and its parts are closed next."""
        self._parts = None
        await asyncio.to_thread(self._metrics.unwatch)

    async def live(self, request: Request) -> Response:
        """``GET /livez``: starting the process again would not help."""
        if self._parts is not None:
            wrong = _hopeless(self._parts)
            if wrong is not None:
                return _unwell(*wrong)
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """``GET /readyz``: a request would be served. ``state`` is one word that says why not:
        ``starting``, ``restarting``, ``stopped``, ``stuck``, ``stopping`` or ``unwritable``."""
        parts = self._parts
        if parts is None:
            return _unwell("starting", "The server is not ready.")
        wrong = _hopeless(parts)
        if wrong is not None:
            return _unwell(*wrong)
        state = engine_state(parts.engine)
        if state != "ready":
            return _unwell(state, _ENGINE[state])
        if parts.dispatcher.draining:
            return _unwell("stopping", "The server is stopping.")
        trouble = await parts.outputs.trouble()
        if trouble is not None:
            return _unwell("unwritable", trouble)
        if not await asyncio.to_thread(parts.store.writable):
            return _unwell("unwritable", "The job store cannot be written.")
        return JSONResponse({"status": "ok", "state": "ready"})

    async def metrics(self, request: Request) -> Response:
        """``GET /metrics``: Prometheus' text format, for whom the settings allow."""
        try:
            self._permit(request)
        except ApiError as exc:
            return error_response(exc)
        text = await asyncio.to_thread(self._metrics.render)
        return Response(text, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    def _permit(self, request: Request) -> None:
        """Raises ApiError for those that the metrics are not for."""
        if self._exposure == "off":
            raise ApiError(404, "There is nothing at this address.")
        if self._exposure == "key":
            self._keys.check({}, request.headers)
        if self._exposure == "loopback" and not from_this_machine(request):
            raise ApiError(
                403, "Metrics are for this machine only; EDGEFILL_METRICS says who else gets them."
            )


def from_this_machine(request: Request) -> bool:
    """Whether a request comes from loopback, and is not passed on for somebody else."""
    if request.client is None or any(name in request.headers for name in _FORWARDED):
        return False
    try:
        return ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


def _hopeless(parts: Parts) -> tuple[str, str] | None:
    """What is wrong that only another process can mend, as a word and a sentence."""
    if engine_state(parts.engine) == "stopped":
        return "stopped", _ENGINE["stopped"]
    if parts.dispatcher.stuck:
        return "stuck", "The server does not work on its queue any more."
    return None


def _unwell(state: str, sentence: str) -> Response:
    headers = {"Retry-After": "5"}
    return error_response(ApiError(503, sentence, headers=headers, extra={"state": state}))
