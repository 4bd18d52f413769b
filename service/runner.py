"""The work of one job from claim to outcome: it is painted, its outcome is kept, then told."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from engine import DeadlineMissed, InpaintRequest
from service.errors import FAILED, ApiError, StorageError, unkept
from service.jobs import Job, JobStore, StoreError
from service.logs import bind_job
from service.metrics import Metrics
from service.painter import Painted, Painter
from service.schema import KINDS, Body
from service.waiters import Waiters

logger = logging.getLogger(__name__)

RETRY_SECONDS: Final = 1.0
"""How soon a store that failed is asked again."""

LEFT: Final = "The client left before the picture was made."
LATE: Final = "The picture was not made before its deadline."

_FIRST_GUESS: Final = 2.0
_SMOOTHING: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """What is there of a job before the store has it."""

    body: Body
    root: str
    preparing: asyncio.Task[InpaintRequest]

    async def drop(self) -> None:
        """It will not be needed."""
        self.preparing.cancel()
        await asyncio.gather(self.preparing, return_exceptions=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """How a job ended.

    Attributes:
        keep: Writes it down; its value says whether the job was still this attempt's.
        how: What it is counted as; None where it will be done again.
        answer: What its client is told, where it is done.
        made_at: When its pictures were made, where they were; see ``Painted``.
    """

    keep: Callable[[], object]
    how: str | None
    answer: Mapping[str, Any] | None = None
    made_at: float | None = None


class Runner:
    """Works on jobs.

    Args:
        store: Where their outcomes are kept.
        painter: Does the work.
        waiters: Told when a job has ended.
        on_end: Told too, for example to deliver a webhook.
        metrics: Told what becomes of jobs.

    Attributes:
        seconds: How long a job took lately; a guess before one was measured.
    """

    def __init__(
        self,
        store: JobStore,
        painter: Painter,
        *,
        waiters: Waiters,
        on_end: Callable[[], None],
        metrics: Metrics,
    ) -> None:
        self.seconds = _FIRST_GUESS
        self._store = store
        self._painter = painter
        self._waiters = waiters
        self._on_end = on_end
        self._metrics = metrics

    async def run(self, job: Job, begun: Begun | None, unwanted: Callable[[], bool]) -> None:
        """One job from claim to outcome, whatever happens on the way.

        Args:
            job: Running, in its present attempt.
            begun: Where it stands already.
            unwanted: Asked when the task is cancelled: whether that is because nobody wants the
                picture any more, and not because the server stops.
        """
        bind_job(job.id)
        self._metrics.took("waiting", (job.started_at or job.accepted_at) - job.accepted_at)
        outcome = await self._work(job, begun, unwanted)
        await asyncio.shield(asyncio.ensure_future(self._keep(job, outcome)))

    async def _work(self, job: Job, begun: Begun | None, unwanted: Callable[[], bool]) -> _Outcome:
        begin = time.monotonic()
        left = None if job.deadline is None else job.deadline - time.time()
        deadline = asyncio.timeout(left)
        try:
            async with deadline:
                painted = await self._paint(job, begun)
        except ApiError as exc:
            how = "refused" if exc.status < 500 else "failed"
            return self._failed(job, exc, how=how)
        except DeadlineMissed as exc:
            text = str(exc)
            return self._failed(job, late(f"{text[0].upper()}{text[1:]}."), how="cancelled")
        except StorageError as exc:
            logger.error("job %d: the storage failed: %s", job.id, exc)
            return self._failed(job, unkept(exc.reason))
        except asyncio.CancelledError:
            if unwanted():  # not by the message of the cancellation, which gather() loses
                return self._failed(job, ApiError(500, LEFT), how="cancelled")
            requeue = partial(self._store.requeue, job.id, job.attempt, crashed=False)
            return _Outcome(keep=requeue, how=None)
        except Exception as exc:
            if isinstance(exc, TimeoutError) and deadline.expired():
                return self._failed(job, late(LATE), how="cancelled")
            logger.exception("job %d failed", job.id)
            return self._failed(job, ApiError(500, FAILED))
        seconds = time.monotonic() - begin
        self.seconds += _SMOOTHING * (seconds - self.seconds)
        self._metrics.took("total", seconds)
        finish = partial(
            self._store.finish,
            job.id,
            job.attempt,
            answer=painted.answer,
            files=painted.files,
            webhook_answer=painted.webhook_answer,
        )
        return _Outcome(keep=finish, how="done", answer=painted.answer, made_at=painted.made_at)

    async def _paint(self, job: Job, begun: Begun | None) -> Painted:
        if begun is None:
            assert job.request is not None
            # in a thread: it may hold megabytes of base64
            read = KINDS[job.kind].from_document
            body, root = await asyncio.to_thread(read, job.request)
            request = await self._painter.prepare(body, root=root, owner=job.owner)
        else:
            body, root = begun.body, begun.root
            try:
                request = await begun.preparing
            except BaseException:
                await begun.drop()
                raise
        return await self._painter.paint(job, body, request, root=root)

    def _failed(self, job: Job, error: ApiError, *, how: str = "failed") -> _Outcome:
        self._waiters.refuse(job.id, error)
        fail = partial(self._store.fail, job.id, job.attempt, error.message)
        return _Outcome(keep=fail, how=how)

    async def _keep(self, job: Job, outcome: _Outcome) -> None:
        """Write the outcome down, however long the store needs, then tell those who wait."""
        while True:
            try:
                written = await asyncio.to_thread(outcome.keep)
                break
            except StoreError:
                logger.exception("the outcome of job %d cannot be kept", job.id)
                await asyncio.sleep(RETRY_SECONDS)
        if outcome.made_at is not None:
            self._painter.tail.add(time.monotonic() - outcome.made_at)
        if written and outcome.how is not None:
            self._metrics.ended(job.kind, outcome.how)
        if written is True and outcome.answer is not None:
            self._waiters.answer(job.id, outcome.answer)
        self._waiters.tell(job.id)
        with contextlib.suppress(Exception):
            self._on_end()


def late(message: str) -> ApiError:
    """The answer to a request whose deadline has passed or cannot be kept."""
    return ApiError(503, message, headers={"Retry-After": "1"})
