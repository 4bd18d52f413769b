"""What runs in the child: the engine, its heartbeat, its answers.

Three things end it: its parent's death (a signal from the kernel, and the end of the socket),
SIGKILL, and its own crash. SIGINT and SIGTERM it leaves to the parent, which decides when the work
is over. The heartbeat comes from the engine's own loop, after a step, and from no other thread: a
kernel that hangs stops it.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import importlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol

import numpy as np

from engine import BundleError, EngineError, InpaintRequest, SessionError, Ticket
from engine.bundle import Bundle
from engine.cache import CacheStatistics
from engine.sessions.devices import Device, preload
from engine.ticket import MakePreview, OnStep
from service.allocator import keep_buffers, trim
from service.engine_process.crossing import (
    describe_error,
    unwrap_request,
    wrap_result,
    wrap_statistics,
)
from service.engine_process.wire import MAX_TEXT, Link, Message, close_all, wrap

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG: Final = 1


class OpenedEngine(Protocol):
    """What a factory gives: the part of ``engine.Engine`` that is used here."""

    @property
    def bundle(self) -> Bundle: ...

    @property
    def device(self) -> Device: ...

    @property
    def cache_statistics(self) -> dict[str, CacheStatistics]: ...

    def submit(self, request: InpaintRequest, *, on_step: OnStep | None = None) -> Ticket: ...


def main(options: dict[str, Any]) -> NoReturn:
    """Wait for what to open, open it, warm up, and serve until the parent lets go.

    Args:
        options: Those of ``service.engine_process.program``.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _die_with(options["parent"])
    _die_first()
    faulthandler.enable()
    keep_buffers()
    link = Link(socket.socket(fileno=options["socket"]))
    if options["ahead"]:
        with contextlib.suppress(Exception):  # opening it fails again, and says why
            importlib.import_module("engine.engine")
            preload()
    told = _told(link)
    _log_through(link, told["log_level"])
    try:
        engine = _open(told)
        _require_same(engine.bundle, told["fingerprint"])
        _warm_up(engine)
    except Exception as exc:
        link.send({"kind": "failed", "error": describe_error(_as_engine_error(exc))})
        os._exit(1)
    trim()
    device = {"name": engine.device.name, "detail": engine.device.detail}
    link.send({"kind": "ready", "device": device})
    with contextlib.suppress(ConnectionError):
        _Server(engine, link, told["beat_seconds"]).serve()
    os._exit(0)  # no destructors: nothing here is worth an orderly end, and a device may hang in it


def _told(link: Link) -> Message:
    """The first message, which says what to open; without one this process is not needed."""
    with contextlib.suppress(ConnectionError):
        if (received := link.receive()) is not None:
            return received[0]
    os._exit(0)


class _Server:
    """Reads requests in the main thread; answers come from the engine's loop."""

    def __init__(self, engine: OpenedEngine, link: Link, beat_seconds: float) -> None:
        self._engine = engine
        self._link = link
        self._beat_seconds = beat_seconds
        self._beaten = 0.0
        self._tickets: dict[int, Ticket] = {}

    def serve(self) -> None:
        """Do what the parent says until it is gone."""
        while (received := self._link.receive()) is not None:
            message, fds = received
            try:
                self._obey(message, fds)
            finally:
                close_all(fds)

    def _obey(self, message: Message, fds: list[int]) -> None:
        kind, number = message["kind"], message["id"]
        if kind == "run":
            self._run(number, fds[0], watched=message["watched"])
        elif number not in self._tickets:
            return  # done meanwhile
        elif kind == "cancel":
            self._tickets[number].cancel()
        elif kind == "watch":
            self._tickets[number].on_step(partial(self._step, number))

    def _run(self, number: int, fd: int, *, watched: bool) -> None:
        try:
            ticket = self._engine.submit(unwrap_request(fd), on_step=self._beat)
        except Exception as exc:
            self._fail(number, exc)
            return
        if watched:
            ticket.on_step(partial(self._step, number))
        self._tickets[number] = ticket
        ticket.add_done_callback(partial(self._done, number))

    def _beat(self, step: int, total: int, preview: MakePreview) -> None:
        now = time.monotonic()
        if now - self._beaten >= self._beat_seconds:
            self._beaten = now
            self._tell({"kind": "beat"})

    def _step(self, number: int, step: int, total: int, preview: MakePreview) -> None:
        fd = wrap({}, {"preview": preview()})
        self._tell({"kind": "step", "id": number, "step": step, "total": total}, fd)

    def _done(self, number: int, ticket: Ticket) -> None:
        self._tickets.pop(number, None)
        try:
            result = ticket.result(0)
            fd = wrap_result(result)
        except Exception as exc:
            self._fail(number, exc)
            return
        caches = wrap_statistics(self._engine.cache_statistics)
        seconds = result.timings.total
        self._tell({"kind": "done", "id": number, "seconds": seconds, "caches": caches}, fd)

    def _fail(self, number: int, error: Exception) -> None:
        self._tell({"kind": "error", "id": number, "error": describe_error(error)})

    def _tell(self, message: Message, fd: int | None = None) -> None:
        fds = [] if fd is None else [fd]
        try:
            with contextlib.suppress(ConnectionError):  # the reading thread sees it, and ends us
                self._link.send(message, fds)
        finally:
            close_all(fds)


class _LogHandler(logging.Handler):
    """Hands log lines to the parent, whose handlers decide what becomes of them."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self._link = link

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            text = self.format(record)[:MAX_TEXT]
            line = {"kind": "log", "name": record.name, "level": record.levelno, "text": text}
            self._link.send(line)


def _log_through(link: Link, level: int) -> None:
    root = logging.getLogger()
    root.handlers[:] = [_LogHandler(link)]
    root.setLevel(level)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, even while a kernel hangs."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def _die_first() -> None:
    """When memory runs out, this process goes and not the service."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def _open(options: dict[str, Any]) -> OpenedEngine:
    module, _, names = str(options["factory"]).partition(":")
    found: Any = importlib.import_module(module)
    for name in names.split("."):
        found = getattr(found, name)
    factory: Callable[..., OpenedEngine] = found
    return factory(
        options["path"],
        device=options["device"],
        threads=options["threads"],
        max_batch_pixels=options["max_batch_pixels"],
        safety_checker=options["safety_checker"],
        cache_bytes=options["cache_bytes"],
    )


def _require_same(bundle: Bundle, fingerprint: str) -> None:
    """The parent checks requests against the bundle that it has read.

    Raises:
        BundleError: When another one lies there now.
    """
    if bundle.fingerprint != fingerprint:
        raise BundleError(
            f"{bundle.path}: was replaced by another bundle, which is used after a new start only"
        )


def _as_engine_error(exc: Exception) -> EngineError:
    if isinstance(exc, EngineError):
        return exc
    logger.error("the engine failed while it opened", exc_info=exc)
    return SessionError(f"the engine failed while it opened: {exc!r}")


def _warm_up(engine: OpenedEngine) -> None:
    """Make one picture of the bundle's own size in one step, so that the first client does not pay
    for what a device does at its first run; it also shows that the networks run at all."""
    side = engine.bundle.defaults.size
    mask = np.zeros((side, side), np.uint8)
    mask[side // 4 : side // 2, side // 4 : side // 2] = 255
    image = np.full((side, side, 3), 127, np.uint8)
    request = InpaintRequest(image=image, mask=mask, prompt="", seed=0, num_inference_steps=1)
    engine.submit(request).result()
