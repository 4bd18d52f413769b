"""The outbox: webhooks that were written in the transaction that ended their job.

A webhook is pending until its receiver took it or it was given up. Who delivers asks for what is
due, tries, and records the outcome; between the two nothing is held, so that a crash there means
one more attempt with the same id (at least once).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from service.jobs.database import Database
from service.jobs.tables import deliveries
from service.jobs.values import Delivery, DeliveryState

LONGEST_WAIT: Final = 36 * 3600.0
"""Seconds. What is due later than this from now was written by a clock that ran ahead."""

_PENDING: Final = deliveries.c.state == DeliveryState.PENDING


def dumps(document: Mapping[str, Any]) -> str:
    """JSON text in plain ASCII, which every database takes.

    Raises:
        ValueError: For NaN and infinities.
        TypeError: For what JSON has no word for.
    """
    return json.dumps(document, allow_nan=False, separators=(",", ":"))


def post_later(
    connection: Connection, *, job: Row[Any], body: Mapping[str, Any], now: float
) -> None:
    """Write the webhook of a job that ends, due now; a job without one is left alone.

    Args:
        connection: Inside the transaction that ends the job.
        job: The job's row.
        body: What is told; ``track_id`` is added.
        now: Seconds since 1970.
    """
    if job.webhook is None:
        return
    connection.execute(
        insert(deliveries).values(
            id=f"msg_{secrets.token_hex(16)}",
            job_id=job.id,
            url=job.webhook,
            host=job.webhook_host,
            body=dumps({**body, "track_id": json.loads(job.track_id)}),
            state=DeliveryState.PENDING,
            attempts=0,
            next_at=now,
            created_at=now,
        )
    )


def expire(connection: Connection, before: float) -> None:
    """Remove the webhooks that ended before a time; pending ones stay."""
    connection.execute(delete(deliveries).where(deliveries.c.ended_at < before))


class Outbox:
    """The webhooks of a job store. All methods raise ``StoreError`` when the database fails."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def due(self, limit: int, *, not_hosts: Collection[str] = ()) -> list[Delivery]:
        """Pending webhooks whose time has come, longest due first, at most one per host.

        Args:
            limit: How many at most.
            not_hosts: Hosts that are left out.
        """
        now = self._clock()
        ready = or_(deliveries.c.next_at <= now, deliveries.c.next_at > now + LONGEST_WAIT)

        def work(connection: Connection) -> list[Delivery]:
            found: list[Delivery] = []
            while len(found) < limit:
                busy = {*not_hosts, *(delivery.host for delivery in found)}
                row = connection.execute(
                    select(deliveries)
                    .where(_PENDING, ready, deliveries.c.host.not_in(busy))
                    .order_by(deliveries.c.next_at)
                    .limit(1)
                ).one_or_none()
                if row is None:
                    break
                found.append(_delivery(row))
            return found

        return self._database.read(work)

    def next_due(self) -> float | None:
        """When the next webhook is due, in seconds since 1970; None when none is pending."""
        statement = select(func.min(deliveries.c.next_at)).where(_PENDING)
        found: float | None = self._database.read(lambda c: c.execute(statement).scalar_one())
        return found

    def record(
        self,
        delivery: Delivery,
        *,
        state: DeliveryState,
        next_at: float | None = None,
        status: int | None = None,
        error: str | None = None,
    ) -> bool:
        """Write down an attempt.

        Args:
            delivery: The webhook as ``due`` gave it.
            state: What it is now.
            next_at: When it is tried next, where it is still pending.
            status: What the receiver answered.
            error: What went wrong.

        Returns:
            False when it was redelivered or recorded by somebody else since; nothing is written.
        """
        ended = state is not DeliveryState.PENDING
        statement = (
            update(deliveries)
            .where(_PENDING, _same(delivery))
            .values(
                state=state,
                attempts=delivery.attempts + 1,
                next_at=delivery.next_at if next_at is None else next_at,
                ended_at=self._clock() if ended else None,
                last_status=status,
                last_error=error,
            )
        )
        return self._database.write(lambda c: c.execute(statement).rowcount == 1)

    def deliveries(self, job_id: int) -> list[Delivery]:
        """The webhooks of a job, also after the job has expired."""
        statement = (
            select(deliveries)
            .where(deliveries.c.job_id == job_id)
            .order_by(deliveries.c.created_at, deliveries.c.id)
        )
        return self._database.read(
            lambda connection: [_delivery(row) for row in connection.execute(statement)]
        )

    def redeliver(self, job_id: int) -> int:
        """Make the webhooks of a job due now, with the whole schedule before them again.

        Returns:
            How many there are.
        """
        statement = (
            update(deliveries)
            .where(deliveries.c.job_id == job_id)
            .values(state=DeliveryState.PENDING, attempts=0, next_at=self._clock(), ended_at=None)
        )
        return self._database.write(lambda connection: connection.execute(statement).rowcount)

    def count(self, state: DeliveryState) -> int:
        """How many webhooks are in a state."""
        statement = select(func.count()).select_from(deliveries).where(deliveries.c.state == state)
        return self._database.read(lambda connection: connection.execute(statement).scalar_one())


def _same(delivery: Delivery) -> ColumnElement[bool]:
    return and_(
        deliveries.c.id == delivery.id,
        deliveries.c.attempts == delivery.attempts,
        deliveries.c.next_at == delivery.next_at,
    )


def _delivery(row: Row[Any]) -> Delivery:
    values = dict(row._mapping)
    return Delivery(**{**values, "state": DeliveryState(values["state"])})
