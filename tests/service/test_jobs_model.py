"""The job store against a model in memory, in random orders with restarts in between."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.jobs import MAX_CRASHES, JobStore, Limits, QueueFull, State, default_url
from tests.service.test_jobs import Clock, new_job

LIMITS = Limits(per_key=3, total=5)
KEYS = ("a", "b", "c")


@dataclass
class Expected:
    """What the model knows of a job."""

    id: int
    key: str
    webhook: bool
    deadline: float | None
    state: State = State.QUEUED
    attempt: int = 0
    crashes: int = 0
    ended_at: float | None = None


class Jobs(RuleBasedStateMachine):
    """Every rule does the same to the store and to a list."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="edgefill-model-"))
        self.clock = Clock()
        self.boots = 0
        self.jobs: list[Expected] = []
        self.webhooks: set[int] = set()
        self.store = self.open()

    def open(self) -> JobStore:
        self.boots += 1
        url = default_url(self.folder)
        return JobStore.open(url, boot_id=str(self.boots), clock=self.clock)

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    def of(self, *states: State) -> list[Expected]:
        return [job for job in self.jobs if job.state in states]

    def end(self, job: Expected, state: State) -> None:
        job.state, job.ended_at = state, self.clock.now
        if job.webhook and state is not State.CANCELLED:
            self.webhooks.add(job.id)

    def give_back(self, job: Expected, *, crashed: bool) -> None:
        job.crashes += crashed
        job.state = State.QUEUED
        if job.crashes >= MAX_CRASHES:
            self.end(job, State.FAILED)

    @rule(
        key=st.sampled_from(KEYS),
        webhook=st.booleans(),
        patience=st.sampled_from([None, 5.0, 50.0]),
    )
    def accept(self, key: str, webhook: bool, patience: float | None) -> None:
        deadline = None if patience is None else self.clock.now + patience
        new = new_job(key, webhook="https://a.example/" if webhook else None, deadline=deadline)
        waiting = self.of(State.QUEUED)
        if sum(job.key == key for job in waiting) >= LIMITS.per_key or (
            len(waiting) >= LIMITS.total
        ):
            with pytest.raises(QueueFull):
                self.store.accept(new, limits=LIMITS)
            return
        job = self.store.accept(new, limits=LIMITS)
        self.jobs.append(Expected(id=job.id, key=key, webhook=webhook, deadline=deadline))

    @rule(limit=st.integers(1, 3), share=st.sampled_from([None, 1, 2]))
    def claim(self, limit: int, share: int | None) -> None:
        busy = Counter(job.key for job in self.of(State.RUNNING))
        turns = []
        for place, job in enumerate(self.of(State.QUEUED)):
            if job.deadline is None or job.deadline > self.clock.now:
                busy[job.key] += 1
                turns.append((busy[job.key] > (share or 99), place, job))
        chosen = {job.id for _, _, job in sorted(turns, key=lambda turn: turn[:2])[:limit]}
        ready = [job for job in self.of(State.QUEUED) if job.id in chosen]
        for job in ready:
            job.state, job.attempt = State.RUNNING, job.attempt + 1
        claimed = [(job.id, job.attempt) for job in self.store.claim(limit, share=share)]
        assert claimed == [(job.id, job.attempt) for job in ready]

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), off=st.sampled_from([0, 0, 0, -1, 1]), succeeds=st.booleans())
    def outcome(self, data: st.DataObject, off: int, succeeds: bool) -> None:
        job = data.draw(st.sampled_from(self.jobs))
        attempt = job.attempt + off
        if succeeds:
            took = self.store.finish(job.id, attempt, answer={"id": job.id}, files=[f"{job.id}"])
        else:
            took = self.store.fail(job.id, attempt, "It failed.")
        assert took == (job.state is State.RUNNING and off == 0)
        if took:
            self.end(job, State.DONE if succeeds else State.FAILED)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), crashed=st.booleans())
    def requeue(self, data: st.DataObject, crashed: bool) -> None:
        job = data.draw(st.sampled_from(self.jobs))
        state = self.store.requeue(job.id, job.attempt, crashed=crashed)
        if job.state is State.RUNNING:
            self.give_back(job, crashed=crashed)
            assert state is job.state
        else:
            assert state is None

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.jobs))
        assert self.store.cancel(job.id) == (job.state is State.QUEUED)
        if job.state is State.QUEUED:
            self.end(job, State.CANCELLED)

    @rule(seconds=st.sampled_from([1.0, 10.0, 100.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def fail_overdue(self) -> None:
        late = [
            job
            for job in self.of(State.QUEUED)
            if job.deadline is not None and job.deadline <= self.clock.now
        ]
        assert self.store.fail_overdue() == [job.id for job in late]
        for job in late:
            self.end(job, State.FAILED)

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = self.open()
        running = self.of(State.RUNNING)
        for job in running:
            self.give_back(job, crashed=True)
        recovery = self.store.recover()
        assert recovery.requeued == tuple(j.id for j in running if j.state is State.QUEUED)
        assert recovery.failed == tuple(j.id for j in running if j.state is State.FAILED)

    @rule(age=st.sampled_from([0.0, 20.0]))
    def expire(self, age: float) -> None:
        before = self.clock.now - age
        old = [job for job in self.jobs if job.ended_at is not None and job.ended_at < before]
        files = self.store.expire(before)
        assert sorted(files) == sorted(str(job.id) for job in old if job.state is State.DONE)
        self.jobs = [job for job in self.jobs if job not in old]

    @invariant()
    def they_agree(self) -> None:
        found = [
            (job.id, job.state, job.attempt, job.crashes, job.ended_at)
            for job in reversed(self.store.list_jobs(limit=10_000))
        ]
        assert found == [
            (job.id, job.state, job.attempt, job.crashes, job.ended_at) for job in self.jobs
        ]
        statistics = self.store.statistics()
        waiting = self.of(State.QUEUED)
        assert statistics.queued == len(waiting)
        assert statistics.running == len(self.of(State.RUNNING))
        for place, job in enumerate(waiting):
            assert self.store.position(job.id) == place
        for key in KEYS:
            assert self.store.count(key) == sum(job.key == key for job in waiting)
        for job in self.jobs[-3:]:
            assert self.store.get(job.id, job.key) is not None
            assert self.store.get(job.id, "another") is None
            assert len(self.store.outbox.deliveries(job.id)) == (job.id in self.webhooks)


TestJobs = Jobs.TestCase
TestJobs.settings = settings(
    max_examples=30, stateful_step_count=30, deadline=None, database=None, derandomize=True
)
