"""From an accepted job to a finished one: who is worked on, and how long the others wait.

A job is in the store before it is anywhere else, and its outcome is in the store before anybody is
told. In memory there is only what a restart may lose: who waits, and what is under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Final

from service.errors import BUSY, ApiError, unkept
from service.fullness import Fullness
from service.inputs import is_link
from service.jobs import Job, JobStore, Limits, NewJob, QueueFull, State, StoreError
from service.metrics import Metrics
from service.painter import Painter
from service.places import Places
from service.runner import RETRY_SECONDS, Begun, Runner
from service.schema import Body
from service.waiters import Waiters

logger = logging.getLogger(__name__)

OVERDUE_SECONDS: Final = 1.0
"""How often waiting jobs are looked through for deadlines that have passed."""

OUTCOME_SECONDS: Final = 5.0
"""How long a stopping server tries to keep outcomes: the next start recovers what is left."""


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
        places: The slots as edits of streams take them.
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
        self._runner = Runner(
            store, painter, waiters=self.waiters, on_end=on_end, metrics=self._metrics
        )
        self._working: dict[int, asyncio.Task[None]] = {}
        self._fullness = Fullness()
        self._waiting = True  # whether a job may be in the queue; the store alone knows for sure
        self._reserved = 0  # slots of jobs that are being claimed
        self._unwanted: set[int] = set()  # jobs whose only client has gone
        self._wake = asyncio.Event()
        self.places: Final = Places(
            free=lambda: self._free_slots,
            jobs_wait=lambda: self._waiting and self._held is None,
            changed=self._wake.set,
        )
        self._draining = False
        self._loop: asyncio.Task[None] | None = None
        self._clock: asyncio.Task[None] | None = None

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
        self._clock = asyncio.create_task(self._keep_deadlines())
        self._wake.set()
        self._on_end()

    async def drain(self, seconds: float) -> None:
        """Begin nothing more, give what is under way some time, and put back what is left."""
        self._draining = True
        self._wake.set()
        if self._loop is not None:
            await asyncio.wait([self._loop])
        if self._clock is not None:
            self._clock.cancel()
        while self._reserved:  # a request that is being accepted may yet begin
            await asyncio.sleep(0.01)
        if self._working:
            await asyncio.wait(self._working.values(), timeout=seconds)
        for task in list(self._working.values()):
            task.cancel()
        if self._working:
            await asyncio.wait(self._working.values(), timeout=OUTCOME_SECONDS)

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
            begun = Begun(body=body, root=root, preparing=preparing)
        self._reserved += begin
        try:
            deadline = None if body.deadline_ms is None else time.time() + body.deadline_ms / 1000

            def accept() -> Job:  # in a thread: the document may have megabytes
                new = NewJob(
                    kind=kind,
                    key=key,
                    request=body.to_document(root=root),
                    file_prefix=prefix,
                    webhook=body.webhook,
                    track_id=body.track_id,
                    deadline=deadline,
                )
                return self._store.accept(new, limits=self._limits, begin=begin)

            job = await asyncio.to_thread(accept)
        except BaseException as exc:
            if begun is not None:
                await begun.drop()
            if isinstance(exc, QueueFull):
                self._fullness.note(exc, key=key, departures=departures)
            raise
        finally:
            self._reserved -= begin
            self._wake.set()  # whoever came meanwhile found no free slot
        self._metrics.accepted(kind)
        self.waiters.expect(job.id)
        if job.state is State.RUNNING:
            self._begin(job, begun)
        else:
            self._waiting = True
            self._wake.set()
            if begun is not None:
                await begun.drop()
        return dataclasses.replace(job, request=None)

    async def abandon(self, job_id: int) -> None:
        """The only one who wanted a job has gone: take it from the queue, or stop working on it."""
        self.waiters.forget(job_id)
        self._unwanted.add(job_id)
        await asyncio.sleep(0)  # a task that is cancelled before its first step never runs
        if job_id not in self._working and await asyncio.to_thread(self._store.cancel, job_id):
            self._fullness.departed()
            await asyncio.to_thread(self._count_ended, [job_id], "cancelled")
        task = self._working.get(job_id)
        if task is not None:
            task.cancel()
        elif not self._reserved:  # else the store may have given it out already: see _begin
            self._unwanted.discard(job_id)

    async def fail_overdue(self) -> None:
        """Fail the waiting jobs whose deadline has passed, and tell those who wait for them.

        Raises:
            StoreError: When the store cannot be written.
        """
        overdue = await asyncio.to_thread(self._store.fail_overdue)
        if not overdue:
            return
        self._fullness.departed()
        await asyncio.to_thread(self._count_ended, overdue, "cancelled")
        for job_id in overdue:
            self.waiters.tell(job_id)
        self._on_end()

    async def _keep_deadlines(self) -> None:
        """A deadline passes also while nothing else happens."""
        while True:
            await asyncio.sleep(OVERDUE_SECONDS)
            try:
                await self.fail_overdue()
            except StoreError:
                logger.exception("deadlines cannot be kept")

    async def eta(self, job_id: int) -> float:
        """Seconds until a job will be done, from what jobs took lately and how many are before."""
        before = await asyncio.to_thread(self._store.position, job_id) or 0
        rounds = (before + len(self._working)) / self._slots
        return round(max(1.0, self._runner.seconds * (1.0 + rounds)), 1)

    def _full(self, exc: QueueFull) -> ApiError:
        seconds = max(1, round(self._runner.seconds))
        headers = {"Retry-After": str(seconds)}
        if exc.scope == "key":
            message = f"Rate limit exceeded. Maximum {exc.limit} queued requests allowed."
            return ApiError(429, message, headers=headers, extra={"retry_after": seconds})
        return ApiError(503, BUSY, headers=headers, reason="queue_full_all")

    async def _claim(self) -> None:
        """Fill free slots with the oldest waiting jobs, whenever something has changed."""
        while not self._draining:
            await self._wake.wait()
            self._wake.clear()
            self.places.deal()
            free = self._free_slots
            if free <= 0 or not self._waiting or self._draining:
                continue
            self._waiting = False  # from here on, whoever comes sets it again
            self._reserved += free
            try:
                held = await self._holding()
                share = max(1, self._slots // 2)
                jobs = [] if held else await asyncio.to_thread(self._store.claim, free, share=share)
                for job in jobs:  # before the slots are given back
                    self._begin(job)
            except StoreError:
                logger.exception("the queue cannot be read")
                await asyncio.sleep(RETRY_SECONDS)
                self._waiting = True
                self._wake.set()
                continue
            finally:
                self._reserved -= free
                self.places.jobs_were_served()
            self._fullness.departed()
            if held:
                await asyncio.sleep(RETRY_SECONDS)
            if held or len(jobs) == free:
                self._waiting = True
                self._wake.set()

    @property
    def _free_slots(self) -> int:
        return self._slots - len(self._working) - self._reserved - self.places.taken

    async def _holding(self) -> bool:
        """Whether the storage keeps everybody waiting; says so once."""
        before, self._held = self._held, await self._trouble()
        if self._held is not None and before is None:
            logger.error("nothing is begun: %s", self._held)
        if self._held is None and before is not None:
            logger.info("work goes on")
        return self._held is not None

    def _begin(self, job: Job, begun: Begun | None = None) -> None:
        """Work on a claimed job: from where it stands, or else from the store's document of it."""
        unwanted = partial(self._unwanted.__contains__, job.id)
        task = asyncio.create_task(self._runner.run(job, begun, unwanted), name=f"job-{job.id}")
        self._working[job.id] = task
        task.add_done_callback(partial(self._free, job.id))
        if job.id in self._unwanted:
            asyncio.get_running_loop().call_soon(task.cancel)  # after its first step

    def _free(self, job_id: int, _: object) -> None:
        self._working.pop(job_id, None)
        self._unwanted.discard(job_id)
        self.places.deal()
        self._wake.set()

    def _count_ended(self, job_ids: Iterable[int], how: str) -> None:
        """Count jobs that ended without having been worked on here. In a thread: it reads."""
        for job_id in job_ids:
            with contextlib.suppress(StoreError):
                job = self._store.show(job_id)
                if job is not None:
                    self._metrics.ended(job.kind, how)


def _say_if_broken(loop: asyncio.Task[None]) -> None:
    error = None if loop.cancelled() else loop.exception()
    if error is not None:
        logger.critical("the queue is not worked on any more", exc_info=error)
