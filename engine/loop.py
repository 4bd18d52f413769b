"""The loop: requests join at any denoising step, and every UNet call carries all of them.

State is in ``engine.job``, the choice of who runs in ``engine.batcher``, the execution in
``engine.models``; here is the order of things, and what holds when something fails.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from engine.batcher import pick
from engine.bundle import Bundle
from engine.cache import ContentCache
from engine.clock import Clock
from engine.errors import DeadlineMissed, EngineError, RequestCancelled, SessionError
from engine.job import Draft, Foreseen, Job, finish, prepare, unchanged
from engine.models import Models
from engine.planner import Planner
from engine.prompt import PromptEncoder
from engine.request import InpaintResult
from engine.safety_checker import SafetyChecker
from engine.ticket import Ticket

logger = logging.getLogger(__name__)

MAX_RUNNING: Final = 32
"""How many requests take part in the loop; further ones wait their turn."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Submitted:
    """A checked request that has not begun."""

    ticket: Ticket
    draft: Draft
    clock: Clock


@dataclass(slots=True, kw_only=True, eq=False)
class _Running:
    """A prepared job and the ticket it is for."""

    ticket: Ticket
    job: Job
    waited: int = 0
    """Pixels the UNet has worked on without it."""
    parts: list[npt.NDArray[np.float32]] = field(default_factory=list)
    """What the UNet has said to the first rows of the step under way, where one call is too
    small for all of them."""

    @property
    def shape_key(self) -> tuple[int, ...]:
        return self.job.shape_key

    @property
    def pixels(self) -> int:
        return self.job.pixels

    @property
    def rows_done(self) -> int:
        """Rows of the step under way that the UNet has answered."""
        return sum(map(len, self.parts))

    @property
    def left(self) -> int:
        job = self.job
        steps = len(job.schedule) - job.step
        return job.pixels * steps - job.pixels // job.row_count * self.rows_done


class Loop:
    """The requests of one engine and the rounds that serve them.

    ``submit``, ``stop`` and ``close`` may be called from any thread. A round is done by one thread
    at a time; ticket callbacks run inside it.
    """

    def __init__(
        self,
        *,
        bundle: Bundle,
        models: Models,
        prompts: PromptEncoder,
        cache: ContentCache,
        max_batch_pixels: int,
        planner: Planner,
        checker: SafetyChecker | None = None,
    ) -> None:
        self._bundle = bundle
        self._models = models
        self._prompts = prompts
        self._cache = cache
        self._max_batch_pixels = max_batch_pixels
        self._planner = planner
        self._checker = checker
        self._submitted: deque[_Submitted] = deque()
        self._running: list[_Running] = []
        self._wake = threading.Condition()
        self._turn = threading.Lock()  # held by whoever does a round, ...
        self._turn_of: int | None = None  # ... and its thread, so that callbacks are known
        self._closing = False
        self._closed = False

    def submit(self, ticket: Ticket, draft: Draft, clock: Clock) -> None:
        """Take a checked request.

        Raises:
            EngineError: If the loop is closing.
        """
        with self._wake:
            if self._closing:
                raise EngineError("the engine is closed")
            self._submitted.append(_Submitted(ticket=ticket, draft=draft, clock=clock))
            self._wake.notify()

    def run(self) -> None:
        """Do rounds, sleeping while there is nothing to do, until it is stopped."""
        while not self._closed:
            with self._wake:
                self._wake.wait_for(lambda: self._closing or self._submitted or self._running)
            self.round()

    def round(self) -> bool:
        """One round, or the clean-up where the loop is stopping; True where there is more to do."""
        with self._turn:
            self._turn_of = threading.get_ident()
            try:
                if not self._closing:
                    self._drop_cancelled()
                    self._drop_late()
                    self._admit()
                    self._advance()
            except BaseException:
                self._closing = True
                raise
            finally:
                if self._closing:
                    self._clean_up()
                self._turn_of = None
            with self._wake:
                return bool(self._running or self._submitted)

    def stop(self) -> None:
        """Take no more requests, and let ``run`` return after the round under way."""
        with self._wake:
            self._closing = True
            self._wake.notify()

    def close(self) -> None:
        """After ``stop``: settle what is open and let go of the networks."""
        with self._turn:
            self._clean_up()

    def in_callback(self) -> bool:
        """Whether the calling thread is inside a round, that is, in a ticket's callback."""
        return self._turn_of == threading.get_ident()

    def _clean_up(self) -> None:
        if self._closed:
            return
        self._closed = True
        closed = "the engine was closed before the picture was done"
        for ticket in self._tickets():
            ticket.settle(RequestCancelled(closed))
        self._running.clear()
        self._submitted.clear()
        self._models.close()
        if self._checker is not None:
            self._checker.close()

    def _advance(self) -> None:
        """One UNet call; the others wait."""
        batch = pick(self._running, max_pixels=self._max_batch_pixels)
        if batch:
            self._running = [r for r in self._running if r not in batch]
            self._run(batch)

    def _drop_cancelled(self) -> None:
        """Settle what was cancelled, before it can hold up anybody."""
        with self._wake:
            gone = [ticket for ticket in self._tickets() if ticket.cancelled()]
            if not gone:
                return
            self._submitted = deque(s for s in self._submitted if s.ticket not in gone)
            self._running = [r for r in self._running if r.ticket not in gone]
        for ticket in gone:
            ticket.settle(Ticket.cancellation())

    def _drop_late(self) -> None:
        """Give up what has missed its deadline: it is of no use to anybody."""
        now = time.perf_counter()
        late = [r for r in self._running if _left(r.job.draft, r.job.clock, now) <= 0]
        for running in late:
            self._running.remove(running)
            self._planner.learn(running.job.draft, running.job.clock, now)
            late_by = "the picture was not made before its deadline"
            running.ticket.settle(DeadlineMissed(late_by))

    def _tickets(self) -> list[Ticket]:
        return [r.ticket for r in self._running] + [s.ticket for s in self._submitted]

    def _admit(self) -> None:
        """Prepare the next submitted request and let it join.

        One a round, so that those already running are held up by no more than that.
        """
        with self._wake:
            if not self._submitted or len(self._running) >= MAX_RUNNING:
                return
            next_up = self._submitted.popleft()
        ticket, clock, schedule = next_up.ticket, next_up.clock, next_up.draft.schedule
        clock.started = time.perf_counter()
        try:
            if schedule is None:
                ticket.settle(unchanged(next_up.draft, clock, self._checker))
                return
            draft = self._planned(next_up.draft, clock)
            assert draft.schedule is not None
            job = prepare(
                draft,
                draft.schedule,
                bundle=self._bundle,
                models=self._models,
                prompts=self._prompts,
                cache=self._cache,
                clock=clock,
            )
        except Exception as exc:
            ticket.settle(_as_engine_error(exc))
            return
        self._running.append(_Running(ticket=ticket, job=job))

    def _planned(self, draft: Draft, clock: Clock) -> Draft:
        """A draft that is about to join, as it has to be to meet its deadline."""
        if draft.deadline is None:
            return draft
        left = _left(draft, clock, clock.started)
        if left <= 0:
            raise DeadlineMissed("the request was not begun before its deadline")
        with self._wake:
            waiting = [s.draft for s in self._submitted][: MAX_RUNNING - len(self._running) - 1]
        running = [(r.job, r.waited, r.rows_done) for r in self._running]
        return self._planner.plan(draft, left=left, running=running, waiting=waiting)

    def _run(self, batch: list[_Running]) -> None:
        """One UNet call for a batch, one scheduler step for each of its jobs."""
        begin = time.perf_counter()
        try:
            noise_pred = self._predict(batch)
        except Exception as exc:
            for running in batch:
                running.ticket.settle(_as_engine_error(exc))
            return
        seconds = time.perf_counter() - begin
        if noise_pred is None:
            batch[0].job.clock.add("unet", seconds)
            self._running.append(batch[0])
            return
        first = 0
        for running in batch:
            job, last = running.job, first + running.job.row_count
            try:
                watched = running.ticket.watched
                foreseen = job.advance(noise_pred[first:last], foresee=watched)
            except Exception as exc:
                running.ticket.settle(_as_engine_error(exc))
                continue
            finally:
                first = last
            job.clock.add("unet", seconds)
            if foreseen is not None:
                preview = partial(self._preview, foreseen)
                running.ticket.report_step(job.step, len(job.schedule), preview)
            if job.done:
                self._finish(running)
            else:
                self._running.append(running)

    def _predict(self, batch: list[_Running]) -> npt.NDArray[np.float32] | None:
        """The UNet's answer to all rows of a batch.

        A job whose step is too much for one call gets a part of it a round, so that others have
        their turn in between; None until the last part.
        """
        rows = [row for running in batch for row in running.job.rows()]
        pixels = sum(running.pixels for running in batch)
        if pixels <= self._max_batch_pixels or len(rows) == 1:
            self._wait(pixels)
            return self._models.unet(rows)
        (alone,) = batch
        done = alone.rows_done
        size = max(1, self._max_batch_pixels * len(rows) // pixels)
        part = rows[done : done + size]
        self._wait(pixels * len(part) // len(rows))
        alone.parts.append(self._models.unet(part).copy())
        if done + len(part) < len(rows):
            return None
        answer = np.concatenate(alone.parts)
        alone.parts.clear()
        return answer

    def _wait(self, pixels: int) -> None:
        """Those who are no part of the call under way wait for it."""
        for running in self._running:
            running.waited += pixels

    def _preview(self, foreseen: Foreseen) -> npt.NDArray[np.uint8]:
        return self._models.preview(foreseen())

    def _finish(self, running: _Running) -> None:
        try:
            outcome: InpaintResult | EngineError = finish(running.job, self._models, self._checker)
        except Exception as exc:
            outcome = _as_engine_error(exc)
        self._planner.learn(running.job.draft, running.job.clock, time.perf_counter())
        running.ticket.settle(outcome)


def _left(draft: Draft, clock: Clock, now: float) -> float:
    """Seconds until a deadline; without one there is no end of them."""
    return math.inf if draft.deadline is None else clock.submitted + draft.deadline - now


def _as_engine_error(exc: Exception) -> EngineError:
    """An error of ours as it is; anything else is a defect, logged and wrapped."""
    if isinstance(exc, EngineError):
        return exc
    logger.error("the engine failed on a request", exc_info=exc)
    wrapped = SessionError(f"the engine failed on this request: {exc!r}")
    wrapped.__cause__ = exc
    return wrapped
