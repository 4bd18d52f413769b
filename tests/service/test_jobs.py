"""The job store's promises, on SQLite here and on PostgreSQL in ``test_jobs_postgres``."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import service.jobs
from service.errors import FetchError
from service.jobs import (
    DeliveryState,
    Job,
    JobStore,
    Limits,
    NewJob,
    QueueFull,
    QueueStatistics,
    State,
    default_url,
)

WIDE = Limits(per_key=1000, total=1000)
START = 1_800_000_000.0


class Clock:
    """A clock that is moved by hand."""

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def new_job(key: str = "key", **changes: Any) -> NewJob:
    values: dict[str, Any] = {"kind": "inpaint", "key": key, "file_prefix": "f" * 24}
    return NewJob(**{**values, "request": json.dumps({"prompt": "an apple"}), **changes})


def told(store: JobStore, job: Job) -> Any:
    """What the one webhook of a job says."""
    (delivery,) = store.outbox.deliveries(job.id)
    return json.loads(delivery.body)


class StoreContract:
    """Everything here holds on every database."""

    @pytest.fixture
    def url(self) -> str:
        raise NotImplementedError

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def store(self, url: str, clock: Clock) -> Iterator[JobStore]:
        store = JobStore.open(url, boot_id="first", clock=clock)
        yield store
        store.close()

    def test_a_job_can_be_claimed_as_it_is_accepted(self, store: JobStore, url: str) -> None:
        first = store.accept(new_job(), limits=WIDE, begin=True)
        assert (first.state, first.attempt) == (State.RUNNING, 1)
        waits = store.accept(new_job(), limits=WIDE)
        behind = store.accept(new_job(), limits=WIDE, begin=True)
        assert waits.state is behind.state is State.QUEUED
        assert [job.id for job in store.claim(5)] == [waits.id, behind.id]
        assert store.finish(first.id, 1, answer={"status": "success"})
        left = store.accept(new_job(), limits=WIDE, begin=True)
        after = JobStore.open(url, boot_id="second")
        try:
            assert left.id in after.recover().requeued
        finally:
            after.close()

    def test_a_job_from_queue_to_answer(self, store: JobStore, clock: Clock) -> None:
        accepted = store.accept(
            new_job(track_id="mine", webhook="https://Hooks.example./x?y=1"), limits=WIDE
        )
        assert 1 <= accepted.id <= 2**31 - 1
        assert accepted.state is State.QUEUED
        assert accepted.attempt == 0
        assert store.get(accepted.id, "key") is not None
        clock.now += 2
        assert store.statistics() == QueueStatistics(queued=1, running=0, oldest_age=2)
        (job,) = store.claim(5)
        assert (job.id, job.state, job.attempt) == (accepted.id, State.RUNNING, 1)
        assert job.request == '{"prompt": "an apple"}'
        assert job.started_at == START + 2
        assert store.claim() == []
        answer = {"status": "success", "id": job.id, "output": ["https://here.example/1.png"]}
        clock.now += 3
        assert store.finish(job.id, 1, answer=answer, files=["a.png", "b.png"])
        done = store.get(job.id, "key")
        assert done is not None
        assert (done.state, done.answer, done.ended_at) == (State.DONE, answer, START + 5)
        assert done.files == ("a.png", "b.png")
        assert store.statistics() == QueueStatistics(queued=0, running=0, oldest_age=0)
        assert told(store, job) == {**answer, "track_id": "mine"}
        (delivery,) = store.outbox.due(9)
        assert delivery.url == "https://Hooks.example./x?y=1"
        assert delivery.host == "hooks.example"
        assert delivery.state is DeliveryState.PENDING

    def test_a_failure_is_told(self, store: JobStore) -> None:
        store.accept(new_job(track_id=7, webhook="https://a.example/"), limits=WIDE)
        (job,) = store.claim()
        assert store.fail(job.id, job.attempt, "The engine failed.")
        found = store.show(job.id)
        assert found is not None
        assert (found.state, found.message, found.answer) == (
            State.FAILED,
            "The engine failed.",
            None,
        )
        body = {"status": "failed", "id": job.id, "message": "The engine failed.", "track_id": 7}
        assert told(store, job) == body

    def test_the_webhook_may_tell_less_than_the_answer(self, store: JobStore) -> None:
        store.accept(new_job(webhook="https://a.example/"), limits=WIDE)
        (job,) = store.claim()
        links = {"output": ["https://here.example/1.png"]}
        assert store.finish(
            job.id, job.attempt, answer={"output": ["aGVsbG8="]}, webhook_answer=links
        )
        assert told(store, job) == {**links, "track_id": None}

    def test_an_outcome_needs_the_fence(self, store: JobStore, url: str, clock: Clock) -> None:
        store.accept(new_job(webhook="https://a.example/"), limits=WIDE)
        (first,) = store.claim()
        other = JobStore.open(url, boot_id="second", clock=clock, check=False)
        try:
            assert not other.finish(first.id, first.attempt, answer={})
            assert not store.finish(first.id, first.attempt + 1, answer={})
            assert not store.fail(first.id + 1, first.attempt, "No such request.")
            assert store.requeue(first.id, first.attempt, crashed=False) is State.QUEUED
            assert not store.finish(first.id, first.attempt, answer={})
            (again,) = other.claim()
            assert again.attempt == 2
            assert not store.finish(first.id, first.attempt, answer={})
            assert not store.fail(first.id, 2, "From the run before.")
            assert store.requeue(first.id, 2, crashed=True) is None
            assert other.finish(first.id, 2, answer={"by": "second"})
            assert not other.finish(first.id, 2, answer={"by": "nobody"})
            assert not other.fail(first.id, 2, "Too late.")
        finally:
            other.close()
        found = store.show(first.id)
        assert found is not None
        assert found.answer == {"by": "second"}
        assert told(store, first) == {"by": "second", "track_id": None}

    def test_limits(self, store: JobStore) -> None:
        limits = Limits(per_key=2, total=3)
        for key in ("a", "a", "b"):
            store.accept(new_job(key), limits=limits)
        with pytest.raises(QueueFull) as of_key:
            store.accept(new_job("a"), limits=limits)
        assert (of_key.value.scope, of_key.value.limit) == ("key", 2)
        with pytest.raises(QueueFull) as of_all:
            store.accept(new_job("b"), limits=limits)
        assert (of_all.value.scope, of_all.value.limit) == ("all", 3)
        assert (store.count("a"), store.count("b"), store.count("c")) == (2, 1, 0)
        store.claim()  # what runs no longer waits
        store.accept(new_job("a"), limits=limits)

    def test_oldest_first_whatever_the_clock_says(self, store: JobStore, clock: Clock) -> None:
        accepted = []
        for _ in range(6):
            accepted.append(store.accept(new_job(), limits=WIDE).id)
            clock.now -= 3600
        assert len(set(accepted)) == 6
        assert [store.position(each) for each in accepted] == [0, 1, 2, 3, 4, 5]
        first, second = store.claim(2)
        assert [first.id, second.id] == accepted[:2]
        assert store.position(accepted[0]) is None
        assert store.position(accepted[2]) == 0
        assert store.requeue(first.id, first.attempt, crashed=False) is State.QUEUED
        assert store.position(accepted[2]) == 1
        assert [job.id for job in store.claim(9)] == [accepted[0], *accepted[2:]]

    def test_three_crashes_end_a_job(self, store: JobStore) -> None:
        store.accept(new_job(webhook="https://a.example/"), limits=WIDE)
        states = []
        for crashed in (True, False, True, False, True):
            (job,) = store.claim()
            states.append(store.requeue(job.id, job.attempt, crashed=crashed))
        assert states == [*[State.QUEUED] * 4, State.FAILED]
        assert store.claim() == []
        assert "crashed 3 times" in told(store, job)["message"]

    def test_recovery_gives_back_what_ran(self, store: JobStore, url: str, clock: Clock) -> None:
        ids = [store.accept(new_job(), limits=WIDE).id for _ in range(3)]
        store.claim(2)
        assert store.recover().requeued == ()  # our own are alive
        for attempt in (1, 2, 3):
            later = JobStore.open(url, boot_id=f"later {attempt}", clock=clock)
            try:
                recovery = later.recover()
                expected = (tuple(ids[:2]), ()) if attempt < 3 else ((), tuple(ids[:2]))
                assert (recovery.requeued, recovery.failed) == expected
                if attempt < 3:
                    assert [job.id for job in later.claim(2)] == ids[:2]
            finally:
                later.close()
        assert [job.id for job in store.claim(9)] == ids[2:]

    def test_cancelling(self, store: JobStore) -> None:
        first = store.accept(new_job(webhook="https://a.example/"), limits=WIDE)
        second = store.accept(new_job(), limits=WIDE)
        assert store.cancel(first.id)
        assert not store.cancel(first.id)
        (running,) = store.claim(9)
        assert running.id == second.id
        assert not store.cancel(second.id)
        assert store.outbox.deliveries(first.id) == []
        assert [job.id for job in store.list_jobs(state=State.CANCELLED)] == [first.id]

    def test_deadlines(self, store: JobStore, clock: Clock) -> None:
        late = store.accept(new_job(deadline=START + 5, webhook="https://a.example/"), limits=WIDE)
        patient = store.accept(new_job(deadline=START + 50), limits=WIDE)
        assert store.fail_overdue() == []
        clock.now += 5
        assert [job.id for job in store.claim(9)] == [patient.id]
        assert store.fail_overdue() == [late.id]
        assert store.fail_overdue() == []
        assert told(store, late)["status"] == "failed"

    def test_expiry(self, store: JobStore, clock: Clock) -> None:
        for number in range(3):
            store.accept(new_job(webhook="https://a.example/"), limits=WIDE)
            (job,) = store.claim()
            store.finish(job.id, job.attempt, answer={}, files=[f"{number}.png"])
            clock.now += 10
        waiting = store.accept(new_job(), limits=WIDE)
        (delivery,) = store.outbox.due(1)
        store.outbox.record(delivery, state=DeliveryState.DELIVERED, status=200)
        assert store.expire(START) == []
        assert sorted(store.expire(START + 20)) == ["0.png", "1.png"]
        assert [each.id for each in store.list_jobs()] == [waiting.id, job.id]
        clock.now += 10
        assert store.expire(clock.now) == ["2.png"]
        assert store.outbox.count(DeliveryState.DELIVERED) == 0
        assert store.outbox.count(DeliveryState.PENDING) == 2
        assert store.get(waiting.id, "key") is not None

    def test_many_expire_at_once(
        self, store: JobStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("service.jobs.store.EXPIRY_BATCH", 3)
        for _ in range(10):
            store.cancel(store.accept(new_job(), limits=WIDE).id)
        store.expire(clock.now + 1)
        assert store.list_jobs() == []

    def test_other_keys_see_nothing(self, store: JobStore) -> None:
        mine = store.accept(new_job("mine"), limits=WIDE)
        assert store.get(mine.id, "mine") is not None
        for key in ("yours", "", "mine ", "Mine", "\ud800"):
            assert store.get(mine.id, key) is None
        assert store.get(mine.id + 1 if mine.id < 2**31 - 1 else 1, "mine") is None

    def test_ids_in_use_are_not_given_again(
        self, store: JobStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drawn = iter([4, 4, 4, 9])
        monkeypatch.setattr(secrets, "randbelow", lambda limit: next(drawn))
        assert store.accept(new_job(), limits=WIDE).id == 5
        assert store.accept(new_job(), limits=WIDE).id == 10

    def test_webhooks_must_be_urls(self, store: JobStore) -> None:
        for webhook in ("ftp://a.example/", "https://", "nonsense", "http://127.1/"):
            with pytest.raises(FetchError):
                store.accept(new_job(webhook=webhook), limits=WIDE)
        assert store.list_jobs() == []

    def test_texts_come_back_as_they_were(self, store: JobStore) -> None:
        text = json.dumps({"prompt": "ein Apfel \u00e4\u4e2d\U0001f34e \x00"}, ensure_ascii=False)
        text += "x" * 3_000_000
        store.accept(new_job(request=text.replace("\x00", ""), track_id="\ud800\x00"), limits=WIDE)
        (job,) = store.claim()
        assert job.request == text
        assert job.track_id == "\ud800\x00"
        assert store.finish(job.id, job.attempt, answer={"prompt": "\x00\u4e2d"})
        found = store.get(job.id, "key")
        assert found is not None
        assert found.answer == {"prompt": "\x00\u4e2d"}

    def test_an_answer_that_is_no_json_changes_nothing(self, store: JobStore) -> None:
        store.accept(new_job(), limits=WIDE)
        (job,) = store.claim()
        with pytest.raises(ValueError, match="JSON"):
            store.finish(job.id, job.attempt, answer={"seconds": float("nan")})
        assert store.finish(job.id, job.attempt, answer={})

    def test_webhook_records_are_fenced(self, store: JobStore, clock: Clock) -> None:
        store.accept(new_job(webhook="https://a.example/"), limits=WIDE)
        (job,) = store.claim()
        store.finish(job.id, job.attempt, answer={})
        (delivery,) = store.outbox.due(9)
        assert store.outbox.due(9, not_hosts=["a.example"]) == []
        again = {"state": DeliveryState.PENDING, "next_at": START + 5, "error": "no"}
        assert store.outbox.record(delivery, **again)
        assert not store.outbox.record(delivery, **again)
        assert store.outbox.due(9) == []
        assert store.outbox.next_due() == START + 5
        assert store.outbox.redeliver(job.id) == 1
        assert store.outbox.redeliver(job.id + 1 if job.id < 9 else 1) == 0
        clock.now -= 40 * 3600  # what is due in two days was written by a clock that ran ahead
        (delivery,) = store.outbox.due(9)
        assert store.outbox.record(delivery, state=DeliveryState.GIVEN_UP, error="gone")
        assert store.outbox.due(9) == []
        assert store.outbox.next_due() is None

    def test_it_is_all_there_after_a_restart(self, store: JobStore, url: str, clock: Clock) -> None:
        job = store.accept(new_job(), limits=WIDE)
        assert store.writable()
        store.close()
        again = JobStore.open(url, clock=clock)
        try:
            assert again.get(job.id, "key") == job
        finally:
            again.close()


class TestSqlite(StoreContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return default_url(tmp_path / "data")


def test_public_names() -> None:
    for name in service.jobs.__all__:
        assert getattr(service.jobs, name) is not None
    assert {"JobStore", "NewJob", "Limits", "QueueFull", "StoreError"} <= set(service.jobs.__all__)
