"""From an accepted job to a finished one: who is worked on, who waits for it, how long it takes.

A job is in the store before it is anywhere else, and its outcome is in the store before anybody is
told. In memory there is only what a restart may lose: who waits, and what is under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from engine import InpaintRequest
from service.errors import ApiError, StorageError, unkept
from service.fullness import Fullness
from service.inputs import is_link
from service.jobs import Job, JobStore, Limits, NewJob, QueueFull, State, StoreError
from service.logs import bind_job
from service.metrics import Metrics
from service.painter import Painter
from service.schema import KINDS, Body
from service.waiters import Waiters

logger = logging.getLogger(__name__)

_FIRST_GUESS: Final = 2.0
"""Seconds a job is thought to take before one was measured."""

_SMOOTHING: Final = 0.2
_RETRY_SECONDS: Final = 1.0
"""How soon a store that failed is asked again."""

FAILED: Final = "The engine failed to make the picture."
LEFT: Final = "The client left before the picture was made."


class Dispatcher:
    """Runs jobs in a bounded number of slots and wakes those who wait for them.

    Args:
        store: Where jobs are kept.
        painter: Does the work of one job.
        slots: How many jobs are worked on at once, fetching and decoding included.
        limits: How many may wait.
        trouble: Why pictures could not be kept now, or None. Meanwhile nothing is taken and nothing
            is begun; what waits goes on waiting.
        on_end: Told whenever a job has ended, for example to deliver its webhook.
        metrics: Told what becomes of jobs.

    Attributes:
        waiters: Who waits for jobs.
    """

    def __init__(
        self,
        store: JobStore,
        painter: Painter,
        *,
        slots: int,
        limits: Limits,
        trouble: Callable[[], Awaitable[str | None]],
        on_end: Callable[[], None] = lambda: None,
        metrics: Metrics | None = None,
    ) -> None:
        self.waiters: Final = Waiters()
        self._store = store
        self._painter = painter
        self._slots = slots
        self._limits = limits
        self._trouble = trouble
        self._held: str | None = None
        self._on_end = on_end
        self._metrics = metrics or Metrics()
        self._working: dict[int, asyncio.Task[None]] = {}
        self._fullness = Fullness()
        self._waiting = True  # whether a job may be in the queue; the store alone knows for sure
        self._reserved = 0  # slots of jobs that are being claimed
        self._wake = asyncio.Event()
        self._draining = False
        self._seconds = _FIRST_GUESS
        self._loop: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take up what an earlier process left over, and begin."""
        recovery = await asyncio.to_thread(self._store.recover)
        if recovery.requeued or recovery.failed:
            again, given_up = len(recovery.requeued), len(recovery.failed)
            logger.warning("after a crash: %d jobs run again, %d given up", again, given_up)
            self._metrics.recovered(again + given_up)
            await asyncio.to_thread(self._count_ended, recovery.failed, "failed")
        self._loop = asyncio.create_task(self._claim())
        self._loop.add_done_callback(_say_if_broken)
        self._wake.set()
        self._on_end()

    async def drain(self, seconds: float) -> None:
        """Begin nothing more, give what is under way some time, and put back what is left."""
        self._draining = True
        self._wake.set()
        if self._loop is not None:
            await asyncio.wait([self._loop])
        if self._working:
            await asyncio.wait(self._working.values(), timeout=seconds)
        for task in list(self._working.values()):
            task.cancel()
        await asyncio.gather(*self._working.values(), return_exceptions=True)

    @property
    def draining(self) -> bool:
        """Whether nothing more is begun."""
        return self._draining

    @property
    def stuck(self) -> bool:
        """Whether nothing is begun any more though it should be: a defect."""
        return self._loop is not None and self._loop.done() and not self._draining

    def refuse_if_full(self, key: str | None = None) -> None:
        """Refuse a request that the queue would refuse, without asking it: at little cost.

        The store said that the queue is full, and no job has left it since. Without a key, only
        what holds for every key counts.

        Raises:
            ApiError: 429 or 503 when the queue is full, 503 when the server stops.
        """
        if self._draining:
            headers = {"Retry-After": "10"}
            raise ApiError(503, "The server is stopping.", headers=headers, reason="draining")
        full = self._fullness.known(key)
        if full is not None:
            raise self._full(full)

    async def accept(self, body: Body, *, kind: str, key: str, root: str, prefix: str) -> Job:
        """Put a checked request into the queue; it is on the disk when this returns.

        Where a slot is free and nobody waits, it is begun at once.

        Raises:
            ApiError: 429 or 503 when the queue is full, 503 when it or its pictures cannot be kept.
        """
        self.refuse_if_full(key)
        reason = await self._trouble()
        if reason is not None:
            raise unkept(reason)
        keeping = self._keep(body, kind=kind, key=key, root=root, prefix=prefix)
        try:
            return await asyncio.shield(asyncio.ensure_future(keeping))
        except QueueFull as exc:
            raise self._full(exc) from exc
        except StoreError as exc:
            logger.exception("a job could not be kept")
            raise ApiError(
                503, "The request cannot be kept now.", headers={"Retry-After": "5"}, reason="store"
            ) from exc

    async def _keep(self, body: Body, *, kind: str, key: str, root: str, prefix: str) -> Job:
        """Write a job down. One that is likely to begin at once has its pictures decoded
        meanwhile, where nothing has to be fetched: the disk and the decoder do not need each
        other."""
        begin = self._free_slots > 0 and not self._waiting and not self._draining
        departures = self._fullness.departures
        begun = None
        if begin and not any(map(is_link, body.pictures.values())):
            preparing = asyncio.create_task(self._painter.prepare(body, root=root))
            begun = _Begun(body=body, root=root, preparing=preparing)
        self._reserved += begin
        try:
            deadline = None if body.deadline_ms is None else time.time() + body.deadline_ms / 1000
            new = NewJob(
                kind=kind,
                key=key,
                request=await asyncio.to_thread(body.to_document, root=root),
                file_prefix=prefix,
                webhook=body.webhook,
                track_id=body.track_id,
                deadline=deadline,
            )
            accept = partial(self._store.accept, new, limits=self._limits, begin=begin)
            job = await asyncio.to_thread(accept)
        except BaseException as exc:
            if begun is not None:
                await begun.drop()
            if isinstance(exc, QueueFull):
                self._fullness.note(exc, key=key, departures=departures)
            raise
        finally:
            self._reserved -= begin
        self._metrics.accepted(kind)
        self.waiters.expect(job.id)
        if job.state is State.RUNNING:
            self._begin(job, begun)
        else:
            self._waiting = True
            self._wake.set()
            if begun is not None:
                await begun.drop()
        return job

    async def abandon(self, job_id: int) -> None:
        """The only one who wanted a job has gone: take it from the queue, or stop working on it."""
        task = self._working.get(job_id)
        if task is not None:
            task.cancel(LEFT)
        elif await asyncio.to_thread(self._store.cancel, job_id):
            self._fullness.departed()
            await asyncio.to_thread(self._count_ended, [job_id], "cancelled")
        self.waiters.forget(job_id)

    async def eta(self, job_id: int) -> float:
        """Seconds until a job will be done, from what jobs took lately and how many are before."""
        before = await asyncio.to_thread(self._store.position, job_id) or 0
        rounds = (before + len(self._working)) / self._slots
        return round(max(1.0, self._seconds * (1.0 + rounds)), 1)

    def _full(self, exc: QueueFull) -> ApiError:
        seconds = max(1, round(self._seconds))
        headers = {"Retry-After": str(seconds)}
        if exc.scope == "key":
            message = f"Rate limit exceeded. Maximum {exc.limit} queued requests allowed."
            return ApiError(429, message, headers=headers, extra={"retry_after": seconds})
        message = "The server is busy. Please try again later."
        return ApiError(503, message, headers=headers, reason="queue_full_all")

    async def _claim(self) -> None:
        """Fill free slots with the oldest waiting jobs, whenever something has changed."""
        while not self._draining:
            await self._wake.wait()
            self._wake.clear()
            free = self._free_slots
            if free <= 0 or not self._waiting or self._draining:
                continue
            self._waiting = False  # from here on, whoever comes sets it again
            self._reserved += free
            try:
                overdue = await asyncio.to_thread(self._store.fail_overdue)
                held = await self._holding()
                jobs = [] if held else await asyncio.to_thread(self._store.claim, free)
            except StoreError:
                logger.exception("the queue cannot be read")
                await asyncio.sleep(_RETRY_SECONDS)
                self._waiting = True
                self._wake.set()
                continue
            finally:
                self._reserved -= free
            self._fullness.departed()
            if overdue:
                await asyncio.to_thread(self._count_ended, overdue, "cancelled")
            for job_id in overdue:
                self.waiters.tell(job_id)
            for job in jobs:
                self._begin(job)
            if held:
                await asyncio.sleep(_RETRY_SECONDS)
            if held or len(jobs) == free:
                self._waiting = True
                self._wake.set()

    @property
    def _free_slots(self) -> int:
        return self._slots - len(self._working) - self._reserved

    async def _holding(self) -> bool:
        """Whether the storage keeps everybody waiting; says so once."""
        before, self._held = self._held, await self._trouble()
        if self._held is not None and before is None:
            logger.error("nothing is begun: %s", self._held)
        if self._held is None and before is not None:
            logger.info("work goes on")
        return self._held is not None

    def _begin(self, job: Job, begun: _Begun | None = None) -> None:
        """Work on a claimed job: from where it stands, or else from the store's document of it."""
        task = asyncio.create_task(self._work(job, begun), name=f"job-{job.id}")
        self._working[job.id] = task
        task.add_done_callback(partial(self._free, job.id))

    def _free(self, job_id: int, _: object) -> None:
        self._working.pop(job_id, None)
        self._wake.set()

    async def _work(self, job: Job, begun: _Begun | None) -> None:
        """One job from claim to outcome, whatever happens on the way."""
        bind_job(job.id)
        self._metrics.took("waiting", (job.started_at or job.accepted_at) - job.accepted_at)
        begin = time.monotonic()
        outcome: Callable[[], object]
        how: str | None = "failed"
        answer: Mapping[str, Any] | None = None
        try:
            if begun is None:
                assert job.request is not None
                # in a thread: it may hold megabytes of base64
                read = KINDS[job.kind].from_document
                body, root = await asyncio.to_thread(read, job.request)
                request = await self._painter.prepare(body, root=root, owner=job.owner)
            else:
                body, root = begun.body, begun.root
                request = await begun.preparing
            painted = await self._painter.paint(job, body, request, root=root)
        except ApiError as exc:
            self.waiters.refuse(job.id, exc)
            how = "refused" if exc.status < 500 else "failed"
            outcome = partial(self._store.fail, job.id, job.attempt, exc.message)
        except StorageError as exc:
            logger.error("job %d: the storage failed: %s", job.id, exc)
            self.waiters.refuse(job.id, unkept(exc.reason))
            outcome = partial(self._store.fail, job.id, job.attempt, exc.reason)
        except asyncio.CancelledError as exc:
            if exc.args == (LEFT,):
                how = "cancelled"
                outcome = partial(self._store.fail, job.id, job.attempt, LEFT)
            else:  # the server stops: the job runs again after the next start
                how = None
                outcome = partial(self._store.requeue, job.id, job.attempt, crashed=False)
        except Exception:
            logger.exception("job %d failed", job.id)
            self.waiters.refuse(job.id, ApiError(500, FAILED))
            outcome = partial(self._store.fail, job.id, job.attempt, FAILED)
        else:
            seconds = time.monotonic() - begin
            self._seconds += _SMOOTHING * (seconds - self._seconds)
            self._metrics.took("total", seconds)
            how = "done"
            answer = painted.answer
            outcome = partial(
                self._store.finish,
                job.id,
                job.attempt,
                answer=painted.answer,
                files=painted.files,
                webhook_answer=painted.webhook_answer,
            )
        await asyncio.shield(asyncio.ensure_future(self._end(job, outcome, how, answer)))

    async def _end(
        self,
        job: Job,
        outcome: Callable[[], object],
        how: str | None,
        answer: Mapping[str, Any] | None,
    ) -> None:
        """Write the outcome down, however long the store needs, then tell those who wait."""
        while True:
            try:
                written = await asyncio.to_thread(outcome)
                break
            except StoreError:
                logger.exception("the outcome of job %d cannot be kept", job.id)
                await asyncio.sleep(_RETRY_SECONDS)
        if written and how is not None:
            self._metrics.ended(job.kind, how)
        if written is True and answer is not None:
            self.waiters.answer(job.id, answer)
        self.waiters.tell(job.id)
        with contextlib.suppress(Exception):
            self._on_end()

    def _count_ended(self, job_ids: Iterable[int], how: str) -> None:
        """Count jobs that ended without having been worked on here. In a thread: it reads."""
        for job_id in job_ids:
            with contextlib.suppress(StoreError):
                job = self._store.show(job_id)
                if job is not None:
                    self._metrics.ended(job.kind, how)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Begun:
    """What is there of a job before the store has it."""

    body: Body
    root: str
    preparing: asyncio.Task[InpaintRequest]

    async def drop(self) -> None:
        """It will not be needed."""
        self.preparing.cancel()
        await asyncio.gather(self.preparing, return_exceptions=True)


def _say_if_broken(loop: asyncio.Task[None]) -> None:
    error = None if loop.cancelled() else loop.exception()
    if error is not None:
        logger.critical("the queue is not worked on any more", exc_info=error)
