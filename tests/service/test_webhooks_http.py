"""Webhooks over real HTTP, by a clock that is moved by hand, across restarts of the store."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import random
import threading
from collections import defaultdict
from pathlib import Path

import pytest
from standardwebhooks import Webhook

from service.addresses import AddressPolicy
from service.fetch import HttpFetcher
from service.jobs import DeliveryState, JobStore, default_url
from service.webhooks import Deliverer, parse_secrets
from tests.service.hooks import Hook, Mood, answers, hangs_up, hook
from tests.service.test_jobs import START, Clock
from tests.service.test_webhooks import SECRET, clock, ended, only
from tests.service.wire import connects

__all__ = ["clock"]  # a fixture

LOOPBACK = AddressPolicy.parse(["127.0.0.0/8"])


def deliverer(store: JobStore, clock: Clock, *, seconds: float) -> Deliverer:
    fetcher = HttpFetcher(LOOPBACK, max_bytes=1000, seconds=5)
    return Deliverer(
        store.outbox,
        fetcher.post,
        secrets=parse_secrets(SECRET),
        clock=clock,
        uniform=lambda: 0.5,
        seconds=seconds,
        poll=0.01,
    )


def pass_time(path: Path, clock: Clock, *, until: float) -> None:
    """Deliver what is due, restart, move the clock to what is due next, and so on."""
    while True:
        store = JobStore.open(default_url(path), clock=clock, check=False)
        try:
            asyncio.run(deliverer(store, clock, seconds=1.0).deliver_due())
            due = store.outbox.next_due()
        finally:
            store.close()
        if due is None or due > until:
            clock.now = until
            return
        clock.now = due


def waits(go: threading.Event, handler: http.server.BaseHTTPRequestHandler) -> None:
    """Answer when it is let go."""
    go.wait(30)
    answers(204)(handler)


def in_bad_mood(dice: random.Random) -> Mood:
    """Fails three times in ten, each time in another way."""
    failures = [
        answers(500),
        answers(503, Retry_After="30"),
        answers(429, Retry_After="Mon, 01 Jan 1990 00:00:00 GMT"),
        answers(307, Location="http://127.0.0.5/"),
        hangs_up,
    ]

    def mood(handler: http.server.BaseHTTPRequestHandler) -> None:
        failed = dice.random() < 0.3
        (dice.choice(failures) if failed else answers(204))(handler)

    return mood


def test_whatever_receivers_do_everything_arrives_once_they_recover(
    tmp_path: Path, clock: Clock
) -> None:
    slow_until = threading.Event()
    with contextlib.ExitStack() as stack:

        def receiver(host: str, mood: Mood, *, up: bool = True) -> Hook:
            return stack.enter_context(hook(host, mood, up=up))

        down = receiver("127.0.0.2", answers(204), up=False)
        slow = receiver("127.0.0.3", lambda handler: waits(slow_until, handler))
        trap = receiver("127.0.0.5", answers(204))
        moved = receiver("127.0.0.4", answers(302, Location=trap.url))
        moody = receiver("127.0.0.6", in_bad_mood(random.Random(8)))
        gone = receiver("127.0.0.7", answers(410))
        busy = receiver("127.0.0.8", answers(503, Retry_After="600"))
        stack.callback(slow_until.set)

        store = JobStore.open(default_url(tmp_path), clock=clock)
        jobs = {
            each.host: ended(store, *[each.url] * count)
            for each, count in ((down, 3), (slow, 1), (moved, 3), (moody, 20), (gone, 2), (busy, 2))
        }
        store.close()
        with connects() as seen:
            pass_time(tmp_path, clock, until=START + 60)
            assert [len(each.taken) for each in (down, slow, moved, gone, busy)] == [0] * 5

            down.start()
            slow_until.set()
            slow.mood = moved.mood = busy.mood = moody.mood = answers(204)
            gone.mood = answers(204)
            pass_time(tmp_path, clock, until=START + 599)
            assert not busy.taken
            pass_time(tmp_path, clock, until=START + 86400)
        assert trap.host not in {host for host, _ in seen}
        assert trap.came == []

        for each in (down, slow, moved, moody, busy):
            assert set(each.taken) == {job.id for job in jobs[each.host]}, each.host
        assert not gone.taken
        assert_valid(clock, down, slow, moved, moody, gone, busy)

        store = JobStore.open(default_url(tmp_path), clock=clock)
        for each in (down, slow, moved, moody, gone, busy):
            for job in jobs[each.host]:
                delivery = only(store, job)
                given_up = each is gone
                assert delivery.state is (
                    DeliveryState.GIVEN_UP if given_up else DeliveryState.DELIVERED
                )
                assert delivery.last_status == (410 if given_up else 204)
        assert store.outbox.redeliver(jobs[gone.host][0].id) == 1
        store.close()
        pass_time(tmp_path, clock, until=clock.now)
        assert gone.taken == [jobs[gone.host][0].id]


def assert_valid(clock: Clock, *receivers: Hook) -> None:
    """Every attempt verifies at its own time, and those of a job carry one id."""
    ids = defaultdict(set)
    for each in receivers:
        for headers, body in each.came:
            clock.now = float(headers["webhook-timestamp"])
            ids[Webhook(SECRET).verify(body, headers)["id"]].add(headers["webhook-id"])
    assert {len(names) for names in ids.values()} == {1}
    assert len({name for names in ids.values() for name in names}) == len(ids)


@pytest.mark.parametrize("slow_ones", [1, 3])
def test_a_slow_receiver_does_not_hold_up_the_others(
    tmp_path: Path, clock: Clock, slow_ones: int
) -> None:
    go = threading.Event()

    def held(handler: http.server.BaseHTTPRequestHandler) -> None:
        waits(go, handler)

    async def run(store: JobStore) -> None:
        task = asyncio.create_task(deliverer(store, clock, seconds=30).run())
        async with asyncio.timeout(20):
            while sum(len(each.taken) for each in good) < 20:
                await asyncio.sleep(0.01)
            assert [len(each.came) for each in slow] == [1] * slow_ones
            go.set()
            while sum(len(each.taken) for each in slow) < 5 * slow_ones:
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with contextlib.ExitStack() as stack:
        stack.callback(go.set)
        slow = [stack.enter_context(hook(f"127.0.0.{2 + i}", held)) for i in range(slow_ones)]
        good = [stack.enter_context(hook(f"127.0.0.{9 + i}", answers(204))) for i in range(2)]
        store = JobStore.open(default_url(tmp_path), clock=clock)
        stack.callback(store.close)
        ended(store, *[each.url for each in slow] * 5, *[each.url for each in good] * 10)
        asyncio.run(run(store))
    assert_valid(clock, *slow, *good)
