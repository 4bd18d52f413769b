"""Delivering webhooks from the outbox until they are taken, or given up for everybody to see.

Headers and signatures are those of Standard Webhooks 1.0.0: ``webhook-id`` stays the same over all
attempts, ``webhook-timestamp`` is of the attempt, ``webhook-signature`` is there when a secret is
set. Delivery is at least once: receivers tell repetitions by the id. Only 2xx is success; redirects
are failures; 410 means never again.

    deliverer = Deliverer(store.outbox, post, secrets=parse_secrets("whsec_..."))
    task = asyncio.create_task(deliverer.run())     # until cancelled
    deliverer.wake()                                # from the loop's thread, when a job has ended
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import email.utils
import hashlib
import hmac
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from service.errors import FetchError, SettingsError
from service.fetch import Reply
from service.jobs import Delivery, DeliveryState, Outbox, StoreError
from service.logs import bind_job

logger = logging.getLogger(__name__)

T = TypeVar("T")

SCHEDULE: Final = (0.0, 5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 86400.0)
"""Seconds before each attempt, counted from the one before; Standard Webhooks 1.0.0."""

JITTER: Final = 0.1
"""A wait is made longer by up to this part of it, so that a crowd does not come back at once."""

MAX_RETRY_AFTER: Final = SCHEDULE[-1]
MAX_IN_FLIGHT: Final = 16
POST_SECONDS: Final = 15.0
POLL_SECONDS: Final = 5.0
SECRET_PREFIX: Final = "whsec_"
GONE: Final = 410


class Post(Protocol):
    """The way out to the receivers."""

    async def __call__(
        self, url: str, headers: Mapping[str, str], body: bytes, timeout: float
    ) -> Reply:
        """POST once, without following redirects.

        Args:
            url: An http or https URL.
            headers: All headers that say something about the body.
            body: UTF-8 JSON.
            timeout: Seconds for everything.

        Raises:
            FetchError: When the receiver is not permitted or did not answer.
            OSError: Likewise; ``TimeoutError`` is one.
        """
        ...


def parse_secrets(text: str) -> tuple[bytes, ...]:
    """Read signing secrets: ``whsec_`` and base64 of 24 to 64 bytes, several separated by commas.

    With several, every webhook carries a signature of each, so that a receiver can change from one
    secret to the next at any time.

    Raises:
        SettingsError: When one is not of this form; its text is not told.
    """
    return tuple(_secret(part.strip()) for part in text.split(",") if part.strip())


def _secret(text: str) -> bytes:
    try:
        if not text.startswith(SECRET_PREFIX):
            raise ValueError("other prefix")
        secret = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except (ValueError, binascii.Error):
        raise SettingsError(f"a webhook secret must be {SECRET_PREFIX} and base64") from None
    if not 24 <= len(secret) <= 64:
        raise SettingsError(
            f"a webhook secret holds {len(secret)} bytes; must be between 24 and 64"
        )
    return secret


def sign(secrets: Sequence[bytes], *, identity: str, timestamp: int, body: bytes) -> str:
    """The value of ``webhook-signature``: v1 is HMAC-SHA256 over ``id.timestamp.body``."""
    message = f"{identity}.{timestamp}.".encode() + body
    digests = (hmac.digest(secret, message, hashlib.sha256) for secret in secrets)
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


def retry_after_seconds(value: str | None, *, now: float) -> float:
    """What a ``Retry-After`` header asks for, at most a day; 0 where it asks for nothing.

    Args:
        value: The header: seconds, or an HTTP date.
        now: Seconds since 1970.
    """
    if value is None:
        return 0.0
    value = value.strip()
    if value.isascii() and value.isdigit():
        seconds = float(value[:12])
    else:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - now
        except (ValueError, TypeError, OverflowError, OSError):
            return 0.0
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """What an attempt came to."""

    delivered: bool
    gone: bool = False
    status: int | None = None
    error: str | None = None
    retry_after: float = 0.0


class Deliverer:
    """Takes webhooks from the outbox and posts them, a few at a time, one per host.

    One deliverer per outbox: two would post the same webhook at the same time.

    Args:
        outbox: Where they are.
        post: The way out.
        secrets: What they are signed with; unsigned where empty.
        clock: Seconds since 1970, the same as the store's.
        uniform: Evenly distributed numbers in [0, 1), for the jitter.
        in_flight: How many at a time.
        seconds: Longest time for one attempt, in seconds.
        poll: Seconds between looks into the outbox when nobody wakes the deliverer.
        on_attempt: Told after every attempt where its webhook stands now.
    """

    def __init__(
        self,
        outbox: Outbox,
        post: Post,
        *,
        secrets: Sequence[bytes] = (),
        clock: Callable[[], float] = time.time,
        uniform: Callable[[], float] = random.random,
        in_flight: int = MAX_IN_FLIGHT,
        seconds: float = POST_SECONDS,
        poll: float = POLL_SECONDS,
        on_attempt: Callable[[DeliveryState], None] = lambda state: None,
    ) -> None:
        self._outbox = outbox
        self._post = post
        self._secrets = tuple(secrets)
        self._clock = clock
        self._uniform = uniform
        self._limit = in_flight
        self._seconds = seconds
        self._poll = poll
        self._on_attempt = on_attempt
        self._tasks: dict[asyncio.Task[None], str] = {}
        self._awake = asyncio.Event()

    def wake(self) -> None:
        """Look into the outbox now. Call it in the event loop's thread."""
        self._awake.set()

    async def run(self) -> None:
        """Deliver until cancelled; attempts that are cut off then are made again after a start."""
        try:
            while True:
                self._awake.clear()
                try:
                    await self._start_due()
                    wait = await self._seconds_to_next()
                except StoreError as exc:
                    logger.error("webhooks wait, the outbox cannot be read: %s", exc)
                    wait = self._poll
                await self._rest(wait)
        finally:
            await self._abandon()

    async def deliver_due(self) -> None:
        """Deliver everything that is due by now, and wait until it has been tried.

        Raises:
            StoreError: When the outbox cannot be read.
        """
        try:
            while await self._start_due() or self._tasks:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self._abandon()

    async def _start_due(self) -> int:
        """Begin as many attempts as there are free places for; how many were begun."""
        free = self._limit - len(self._tasks)
        if free <= 0:
            return 0
        busy = set(self._tasks.values())
        due = await asyncio.to_thread(self._outbox.due, free, not_hosts=busy)
        for delivery in due:
            task = asyncio.create_task(self._attempt(delivery))
            self._tasks[task] = delivery.host
            task.add_done_callback(self._ended)
        return len(due)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        self._awake.set()

    async def _seconds_to_next(self) -> float:
        following = await asyncio.to_thread(self._outbox.next_due)
        if following is None:
            return self._poll
        # What is due now and was not begun waits for a place, and an attempt that ends wakes us.
        seconds = following - self._clock()
        return min(seconds, self._poll) if seconds > 0 else self._poll

    async def _rest(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._awake.wait()
        except TimeoutError:
            pass

    async def _abandon(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _attempt(self, delivery: Delivery) -> None:
        bind_job(delivery.job_id)
        outcome = await self._try(delivery)
        attempt = delivery.attempts + 1
        where = f"webhook {delivery.id} of request {delivery.job_id} to {delivery.host}"
        next_at = None
        if outcome.delivered:
            state = DeliveryState.DELIVERED
            logger.info("%s: delivered in attempt %d", where, attempt)
        elif outcome.gone or attempt >= len(SCHEDULE):
            state = DeliveryState.GIVEN_UP
            logger.error("%s: given up after attempt %d: %s", where, attempt, outcome.error)
        else:
            state = DeliveryState.PENDING
            wait = SCHEDULE[attempt] * (1 + JITTER * self._uniform())
            next_at = self._clock() + max(wait, outcome.retry_after)
            logger.warning("%s: attempt %d failed: %s", where, attempt, outcome.error)
        self._on_attempt(state)
        try:
            await _to_the_end(
                lambda: self._outbox.record(
                    delivery,
                    state=state,
                    next_at=next_at,
                    status=outcome.status,
                    error=outcome.error,
                )
            )
        except Exception:  # whatever it is: without a pause it would be posted again at once
            logger.exception("%s: not recorded, so it will be tried again", where)
            await asyncio.sleep(self._poll)

    async def _try(self, delivery: Delivery) -> _Outcome:
        body = delivery.body.encode()
        try:
            async with asyncio.timeout(self._seconds):
                status, retry_after = await self._post(
                    delivery.url, self._headers(delivery.id, body), body, self._seconds
                )
        except TimeoutError:
            return _Outcome(delivered=False, error=f"no answer within {self._seconds:g} s")
        except (FetchError, OSError) as exc:
            return _Outcome(delivered=False, error=str(exc))
        except Exception as exc:  # one that breaks must not keep the others from being delivered
            logger.exception("webhook %s: posting broke", delivery.id)
            return _Outcome(delivered=False, error=type(exc).__name__)
        if 200 <= status < 300:
            return _Outcome(delivered=True, status=status)
        return _Outcome(
            delivered=False,
            gone=status == GONE,
            status=status,
            error=f"answered with status {status}",
            retry_after=retry_after_seconds(retry_after, now=self._clock()),
        )

    def _headers(self, identity: str, body: bytes) -> dict[str, str]:
        timestamp = int(self._clock())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "edgefill",
            "webhook-id": identity,
            "webhook-timestamp": str(timestamp),
        }
        if self._secrets:
            headers["webhook-signature"] = sign(
                self._secrets, identity=identity, timestamp=timestamp, body=body
            )
        return headers


async def _to_the_end(work: Callable[[], T]) -> T:
    """Run ``work`` in a thread, and wait for its end also when cancelled meanwhile."""
    working = asyncio.create_task(asyncio.to_thread(work))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait([working])
        raise
