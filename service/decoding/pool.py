"""The decoding processes as the service uses them."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import queue
import threading
from concurrent.futures import Future
from typing import Final

from engine.errors import InputError
from engine.header import PictureLimits
from engine.image import Grey, Rgb
from service.decoding.worker import Kind, Pixels, Worker, WorkerLost
from service.errors import ApiError

logger = logging.getLogger(__name__)

WORKERS: Final = 2
"""Processes, and so pictures that are decoded at once: each may need a gigabyte."""

SECONDS: Final = 30.0
"""How long one picture may take on a machine that is busy; its own work is bounded by
``confine.CPU_SECONDS``."""

UNDECODABLE: Final = "could not be decoded"
UNAVAILABLE: Final = "Pictures cannot be decoded now."


@dataclasses.dataclass(slots=True, kw_only=True)
class _Task:
    """A picture that waits for a process."""

    kind: Kind
    data: bytes
    field: str
    done: Future[Pixels] = dataclasses.field(default_factory=Future)


class PictureDecoder:
    """Decodes pictures in processes of their own. Safe to use from any thread.

    Open one with ``PictureDecoder.open``, and close it when done.
    """

    def __init__(self, *, limits: PictureLimits, seconds: float, workers: int) -> None:
        self.limits: Final = limits
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._seats = [_Seat(self._tasks, limits, seconds) for _ in range(workers)]

    @classmethod
    def open(
        cls, *, limits: PictureLimits, seconds: float = SECONDS, workers: int = WORKERS
    ) -> PictureDecoder:
        """Start the processes, and wait until they take pictures.

        Args:
            limits: What is decoded at all.
            seconds: How long one picture may take, in seconds.
            workers: How many processes there are.

        Raises:
            OSError: If they cannot be started.
        """
        decoder = cls.start(limits=limits, seconds=seconds, workers=workers)
        try:
            decoder.wait()
        except BaseException:
            decoder.close()
            raise
        return decoder

    @classmethod
    def start(
        cls, *, limits: PictureLimits, seconds: float = SECONDS, workers: int = WORKERS
    ) -> PictureDecoder:
        """Start the processes, for who has something to do meanwhile; see ``open``."""
        decoder = cls(limits=limits, seconds=seconds, workers=workers)
        for seat in decoder._seats:
            seat.start()
        return decoder

    def wait(self) -> None:
        """Wait until the processes take pictures.

        Raises:
            OSError: If they cannot be started.
        """
        for seat in self._seats:
            seat.started.result()

    async def picture(self, data: bytes, *, field: str) -> Rgb:
        """Decode as ``engine.image.decode_picture`` does.

        Args:
            data: The file's bytes.
            field: What the picture is for, named in the error.

        Raises:
            InputError: If it is no good PNG or JPEG within the limits.
            ApiError: 503 when no process can be started.
        """
        return await self._decode("picture", data, field)

    async def mask(self, data: bytes, *, field: str) -> Grey:
        """Decode as ``engine.image.decode_mask`` does; see ``picture``."""
        return await self._decode("mask", data, field)

    def close(self) -> None:
        """End the processes, once they have decoded what was handed in before."""
        for _ in self._seats:
            self._tasks.put(None)
        for seat in self._seats:
            seat.join()

    async def _decode(self, kind: Kind, data: bytes, name: str) -> Pixels:
        task = _Task(kind=kind, data=data, field=name)
        self._tasks.put(task)
        return await asyncio.wrap_future(task.done)


class _Seat(threading.Thread):
    """A thread that owns one process and replaces it when it is lost."""

    def __init__(
        self, tasks: queue.SimpleQueue[_Task | None], limits: PictureLimits, seconds: float
    ) -> None:
        super().__init__(name="decoding", daemon=True)
        self.started: Final[Future[None]] = Future()
        self._tasks = tasks
        self._limits = limits
        self._seconds = seconds
        self._worker: Worker | None = None

    def run(self) -> None:
        try:
            self._take_worker()
        except OSError as exc:
            self.started.set_exception(exc)
        else:
            self.started.set_result(None)
        while (task := self._tasks.get()) is not None:
            if task.done.set_running_or_notify_cancel():
                self._settle(task)
            del task
        self._drop_worker()

    def _settle(self, task: _Task) -> None:
        try:
            task.done.set_result(self._ask(task))
        except (InputError, ApiError) as exc:
            task.done.set_exception(exc)
        except WorkerLost as exc:
            self._worker = None
            logger.error("decoding the %s: process lost: %s", task.field, exc)
            task.done.set_exception(InputError(task.field, UNDECODABLE))
            self._replace()
        except Exception as exc:
            logger.exception("decoding the %s failed", task.field)
            task.done.set_exception(exc)
            self._drop_worker()

    def _ask(self, task: _Task) -> Pixels:
        try:
            worker = self._take_worker()
            if not worker.alive():  # killed from outside while it was idle
                self._drop_worker()
                worker = self._take_worker()
            return worker.ask(task.kind, task.data, field=task.field, seconds=self._seconds)
        except OSError as exc:
            logger.error("no process decodes pictures: %s", exc)
            self._drop_worker()
            raise ApiError(503, UNAVAILABLE, headers={"Retry-After": "5"}) from exc

    def _take_worker(self) -> Worker:
        """The process, started where there is none."""
        if self._worker is None:
            worker = Worker(self._limits)
            try:
                worker.wait_ready()
            except WorkerLost as exc:
                raise OSError(f"a process that decodes pictures did not start: {exc}") from exc
            self._worker = worker
        return self._worker

    def _replace(self) -> None:
        """Start another process before the next picture asks for it."""
        try:
            self._take_worker()
        except OSError as exc:
            logger.error("no process decodes pictures: %s", exc)  # the next picture tries again

    def _drop_worker(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker = None
