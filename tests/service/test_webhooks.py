"""Webhooks arrive, whatever their receivers do: signed, with one id, once or more."""

from __future__ import annotations

import asyncio
import base64
import datetime
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import standardwebhooks.webhooks
from standardwebhooks import Webhook, WebhookVerificationError

from service.errors import FetchError
from service.jobs import Delivery, DeliveryState, Job, JobStore, Outbox, StoreError, default_url
from service.webhooks import (
    SCHEDULE,
    Deliverer,
    Reply,
    parse_secrets,
)
from tests.service.test_jobs import START, WIDE, Clock, new_job

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
NEXT_SECRET = "whsec_" + base64.b64encode(bytes(range(32, 64))).decode()
HOOK = "https://hooks.example/take"


class Receiver:
    """Takes webhooks; what it answers is decided by ``reply`` per attempt."""

    def __init__(self, clock: Clock, reply: Callable[[str], Reply] = lambda url: Reply(200)):
        self.clock = clock
        self.reply = reply
        self.seen: list[tuple[float, str, dict[str, str], bytes]] = []
        self.taken: dict[int, list[str]] = defaultdict(list)
        self.now = 0
        self.most = 0
        self.per_host: Counter[str] = Counter()
        self.most_per_host = 0
        self.pause = 0.0

    async def __call__(
        self, url: str, headers: Mapping[str, str], body: bytes, timeout: float
    ) -> Reply:
        host = url.split("/")[2]
        self.per_host[host] += 1
        self.now += 1
        self.most = max(self.most, self.now)
        self.most_per_host = max(self.most_per_host, self.per_host[host])
        try:
            self.seen.append((self.clock.now, url, dict(headers), body))
            await asyncio.sleep(self.pause)
            reply = self.reply(url)
        finally:
            self.per_host[host] -= 1
            self.now -= 1
        if 200 <= reply.status < 300:
            self.taken[json.loads(body)["id"]].append(headers["webhook-id"])
        return reply


def refuses(url: str) -> Reply:
    raise FetchError("hooks.example port 443: no connection")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that the verifier reads too."""
    clock = Clock()

    class Then(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Then:
            return cls.fromtimestamp(clock.now, tz)

    monkeypatch.setattr(standardwebhooks.webhooks, "datetime", Then)
    return clock


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[JobStore]:
    store = JobStore.open(default_url(tmp_path), clock=clock)
    yield store
    store.close()


def ended(store: JobStore, *urls: str) -> list[Job]:
    """A finished job per webhook."""
    jobs = []
    for url in urls:
        accepted = store.accept(new_job(webhook=url, track_id="\u00e9"), limits=WIDE)
        (job,) = store.claim()
        assert job.id == accepted.id
        assert store.finish(job.id, job.attempt, answer={"status": "success", "id": job.id})
        jobs.append(job)
    return jobs


def deliverer(outbox: Outbox, receiver: Receiver, **options: object) -> Deliverer:
    values = {"secrets": parse_secrets(SECRET), "uniform": lambda: 0.5, "poll": 0.01, **options}
    return Deliverer(outbox, receiver, clock=receiver.clock, **values)  # type: ignore[arg-type]


def pass_time(outbox: Outbox, receiver: Receiver, *, until: float, **options: object) -> None:
    """Deliver, and move the clock from one due time to the next."""
    clock = receiver.clock
    while True:
        asyncio.run(deliverer(outbox, receiver, **options).deliver_due())
        due = outbox.next_due()
        if due is None or due > until:
            clock.now = until
            return
        assert due > clock.now
        clock.now = due


def only(store: JobStore, job: Job) -> Delivery:
    (delivery,) = store.outbox.deliveries(job.id)
    return delivery


def test_one_webhook(store: JobStore, clock: Clock) -> None:
    receiver = Receiver(clock)
    (job,) = ended(store, HOOK)
    asyncio.run(deliverer(store.outbox, receiver).deliver_due())
    ((_, url, headers, body),) = receiver.seen
    assert url == HOOK
    assert headers["Content-Type"] == "application/json"
    said = {"status": "success", "id": job.id, "track_id": "\u00e9"}
    assert Webhook(SECRET).verify(body, headers) == said
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body + b" ", headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(NEXT_SECRET).verify(body, headers)
    delivery = only(store, job)
    assert (delivery.state, delivery.attempts) == (DeliveryState.DELIVERED, 1)
    assert (delivery.last_status, delivery.last_error) == (200, None)
    assert delivery.ended_at == clock.now
    asyncio.run(deliverer(store.outbox, receiver).deliver_due())
    assert len(receiver.seen) == 1


def test_without_a_secret_there_is_no_signature(store: JobStore, clock: Clock) -> None:
    receiver = Receiver(clock)
    ended(store, HOOK)
    asyncio.run(deliverer(store.outbox, receiver, secrets=()).deliver_due())
    ((_, _, headers, _),) = receiver.seen
    assert "webhook-signature" not in headers
    assert headers["webhook-id"].startswith("msg_")
    assert headers["webhook-timestamp"] == str(int(START))


def test_two_secrets_while_one_replaces_the_other(store: JobStore, clock: Clock) -> None:
    receiver = Receiver(clock)
    ended(store, HOOK)
    both = parse_secrets(f"{NEXT_SECRET}, {SECRET}")
    asyncio.run(deliverer(store.outbox, receiver, secrets=both).deliver_due())
    ((_, _, headers, body),) = receiver.seen
    for secret in (SECRET, NEXT_SECRET):
        assert Webhook(secret).verify(body, headers)


def test_a_receiver_that_is_down_for_a_day(store: JobStore, clock: Clock) -> None:
    receiver = Receiver(clock, refuses)
    jobs = ended(store, *[HOOK] * 5)
    pass_time(store.outbox, receiver, until=START + 24 * 3600)
    assert {only(store, job).last_error for job in jobs} == {
        "hooks.example port 443: no connection"
    }
    receiver.reply = lambda url: Reply(204)
    pass_time(store.outbox, receiver, until=START + 60 * 3600)
    ids = {job.id: only(store, job).id for job in jobs}
    assert receiver.taken == {job_id: [name] for job_id, name in ids.items()}
    for job in jobs:
        sent = [each for each in receiver.seen if each[2]["webhook-id"] == ids[job.id]]
        assert len({headers["webhook-timestamp"] for _, _, headers, _ in sent}) == len(sent)
        for at, _, headers, body in sent:
            clock.now = at
            assert Webhook(SECRET).verify(body, headers)["id"] == job.id


def test_the_schedule_and_its_end(store: JobStore, clock: Clock) -> None:
    receiver = Receiver(clock, lambda url: Reply(500))
    (job,) = ended(store, HOOK)
    pass_time(store.outbox, receiver, until=START + 14 * 86400)
    times = [at for at, _, _, _ in receiver.seen]
    waits = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    assert times[0] == START
    assert waits == pytest.approx([each * 1.05 for each in SCHEDULE[1:]])
    delivery = only(store, job)
    assert (delivery.state, delivery.attempts) == (DeliveryState.GIVEN_UP, len(SCHEDULE))
    assert (delivery.last_status, delivery.last_error) == (500, "answered with status 500")
    receiver.reply = lambda url: Reply(200)
    assert store.outbox.redeliver(job.id) == 1
    pass_time(store.outbox, receiver, until=clock.now)
    assert receiver.taken == {job.id: [delivery.id]}
    assert only(store, job).state is DeliveryState.DELIVERED


@pytest.mark.parametrize("status", [301, 302, 307, 308, 304, 400, 404, 500, 503])
def test_only_2xx_is_success(store: JobStore, clock: Clock, status: int) -> None:
    receiver = Receiver(clock, lambda url: Reply(status))
    (job,) = ended(store, HOOK)
    asyncio.run(deliverer(store.outbox, receiver).deliver_due())
    delivery = only(store, job)
    assert (delivery.state, delivery.attempts) == (DeliveryState.PENDING, 1)
    assert delivery.next_at == pytest.approx(START + 5.25)


def test_gone_is_gone(store: JobStore, clock: Clock) -> None:
    receiver = Receiver(clock, lambda url: Reply(410))
    (job,) = ended(store, HOOK)
    pass_time(store.outbox, receiver, until=START + 86400)
    assert len(receiver.seen) == 1
    delivery = only(store, job)
    assert (delivery.state, delivery.last_status) == (DeliveryState.GIVEN_UP, 410)


def test_retry_after_is_honoured(store: JobStore, clock: Clock) -> None:
    receiver = Receiver(clock, lambda url: Reply(429, "120"))
    (job,) = ended(store, HOOK)
    asyncio.run(deliverer(store.outbox, receiver).deliver_due())
    assert only(store, job).next_at == START + 120


def test_a_slow_receiver_holds_up_nobody_else(store: JobStore, clock: Clock) -> None:
    class Slow(Receiver):
        async def __call__(
            self, url: str, headers: Mapping[str, str], body: bytes, timeout: float
        ) -> Reply:
            if "slow" in url:
                await asyncio.sleep(60)
            return await super().__call__(url, headers, body, timeout)

    receiver = Slow(clock)
    slow, *others = ended(store, "https://slow.example/", *[HOOK] * 6)
    asyncio.run(deliverer(store.outbox, receiver, seconds=0.2).deliver_due())
    assert only(store, slow).last_error == "no answer within 0.2 s"
    assert set(receiver.taken) == {job.id for job in others}


def test_a_few_at_a_time_and_one_per_host(store: JobStore, clock: Clock) -> None:
    receiver = Receiver(clock)
    receiver.pause = 0.01
    urls = [f"https://h{number % 6}.example/{number}" for number in range(18)]
    ended(store, *urls)
    asyncio.run(deliverer(store.outbox, receiver, in_flight=3).deliver_due())
    assert len(receiver.taken) == 18
    assert receiver.most == 3
    assert receiver.most_per_host == 1


def test_a_post_that_breaks_is_a_failed_attempt(store: JobStore, clock: Clock) -> None:
    def breaks(url: str) -> Reply:
        raise LookupError("a secret of the inside")

    receiver = Receiver(clock, breaks)
    (job,) = ended(store, HOOK)
    asyncio.run(deliverer(store.outbox, receiver).deliver_due())
    assert only(store, job).last_error == "LookupError"


def test_random_failures_and_restarts(tmp_path: Path, clock: Clock) -> None:
    """30 % of attempts fail, in all ways there are; the server restarts between rounds."""
    dice = random.Random(3)

    def reply(url: str) -> Reply:
        if dice.random() >= 0.3:
            return Reply(200)
        match dice.randrange(4):
            case 0:
                raise FetchError("no connection")
            case 1:
                raise TimeoutError
            case 2:
                return Reply(302)
            case _:
                return Reply(503, "30")

    receiver = Receiver(clock, reply)
    store = JobStore.open(default_url(tmp_path), clock=clock)
    jobs = ended(store, *[f"https://h{number % 8}.example/" for number in range(40)])
    store.close()
    for hour in range(100):
        store = JobStore.open(default_url(tmp_path), clock=clock, check=False)
        try:
            pass_time(store.outbox, receiver, until=START + 3600 * (hour + 1))
            if store.outbox.next_due() is None:
                break
        finally:
            store.close()
    assert {job_id: len(names) for job_id, names in receiver.taken.items()} == {
        job.id: 1 for job in jobs
    }
    ids = defaultdict(set)
    for at, _, headers, body in receiver.seen:
        clock.now = at
        ids[Webhook(SECRET).verify(body, headers)["id"]].add(headers["webhook-id"])
    assert {len(names) for names in ids.values()} == {1}
    assert len(receiver.seen) > 45


def test_a_crash_after_the_post_delivers_twice(
    store: JobStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = Receiver(clock)
    (job,) = ended(store, HOOK)
    with monkeypatch.context() as patch:

        def crash(*args: object, **kwargs: object) -> bool:
            raise StoreError("crashed")

        async def once() -> None:
            running = asyncio.create_task(deliverer(store.outbox, receiver, poll=60).run())
            while not receiver.taken:
                await asyncio.sleep(0.01)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

        patch.setattr(store.outbox, "record", crash)
        asyncio.run(once())
    asyncio.run(deliverer(store.outbox, receiver).deliver_due())
    first, second = receiver.taken[job.id]
    assert first == second
    assert only(store, job).state is DeliveryState.DELIVERED


def test_running_beside_the_work(store: JobStore, clock: Clock) -> None:
    """Woken or not, ``run`` delivers what comes, and is cancelled in the middle without harm."""
    receiver = Receiver(clock)
    receiver.pause = 0.02

    async def scenario() -> None:
        running = deliverer(store.outbox, receiver, poll=0.2)
        task = asyncio.create_task(running.run())
        for round_ in range(3):
            await asyncio.to_thread(ended, store, HOOK, "https://b.example/", HOOK)
            if round_:
                running.wake()
            async with asyncio.timeout(10):
                while len(receiver.taken) < 3 * (round_ + 1):
                    await asyncio.sleep(0.01)
        await asyncio.to_thread(ended, store, HOOK)
        running.wake()
        await asyncio.sleep(0.03)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    pass_time(store.outbox, receiver, until=clock.now)
    assert len(receiver.taken) == 10
    assert store.outbox.count(DeliveryState.PENDING) == 0


def test_an_attempt_that_ends_makes_room_at_once(store: JobStore, clock: Clock) -> None:
    receiver = Receiver(clock)
    ended(store, *[HOOK] * 6)

    async def scenario() -> None:
        task = asyncio.create_task(deliverer(store.outbox, receiver, poll=60).run())
        async with asyncio.timeout(10):
            while len(receiver.taken) < 6:
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(scenario())


def test_an_outbox_that_fails_is_tried_again(
    store: JobStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = Receiver(clock)
    ended(store, HOOK)
    due = store.outbox.due
    failures = iter([True, True, False])

    def fails(limit: int, *, not_hosts: set[str]) -> list[Delivery]:
        if next(failures, False):
            raise StoreError("the disk is full")
        return due(limit, not_hosts=not_hosts)

    monkeypatch.setattr(store.outbox, "due", fails)

    async def scenario() -> None:
        task = asyncio.create_task(deliverer(store.outbox, receiver).run())
        async with asyncio.timeout(10):
            while not receiver.taken:
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(scenario())
