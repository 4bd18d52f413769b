"""Looking at jobs: by the client who owns one, by who waits for one, and by the operator."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

from sqlalchemy import Connection, func, select

from service.jobs import rows, schema
from service.jobs.database import Database
from service.jobs.rows import is_in
from service.jobs.tables import jobs
from service.jobs.values import Job, QueueStatistics, State


class JobReader:
    """What can be asked of the jobs in a database. All methods raise ``StoreError`` when it fails.

    Args:
        database: Where they are; tables that are missing are made.
        clock: Seconds since 1970.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock
        self._salt = schema.prepare(database)

    def get(self, job_id: int, key: str) -> Job | None:
        """A job with its answer or request; None when there is none, or it is another key's."""
        digest = self._digest(key)

        def work(connection: Connection) -> Job | None:
            row = rows.find(connection, job_id)
            if row is None or not hmac.compare_digest(bytes(row.key_digest), digest):
                return None
            return rows.with_documents(connection, row)

        return self._database.read(work)

    def show(self, job_id: int) -> Job | None:
        """A job with its answer, whoever's it is: for the operator."""

        def work(connection: Connection) -> Job | None:
            row = rows.find(connection, job_id)
            return None if row is None else rows.with_documents(connection, row)

        return self._database.read(work)

    def list_jobs(self, *, limit: int = 100, state: State | None = None) -> list[Job]:
        """The newest jobs, newest first, without their documents: for the operator."""
        statement = select(jobs).order_by(jobs.c.seq.desc()).limit(limit)
        if state is not None:
            statement = statement.where(is_in(state))
        return self._database.read(lambda c: [rows.job(row) for row in c.execute(statement)])

    def position(self, job_id: int) -> int | None:
        """How many queued jobs come before a queued one; None when it is not queued."""

        def work(connection: Connection) -> int | None:
            row = rows.find(connection, job_id, is_in(State.QUEUED))
            if row is None:
                return None
            return rows.count(connection, is_in(State.QUEUED), jobs.c.seq < row.seq)

        return self._database.read(work)

    def count(self, key: str) -> int:
        """How many queued jobs a key has."""
        mine = jobs.c.key_digest == self._digest(key)
        return self._database.read(lambda c: rows.count(c, is_in(State.QUEUED), mine))

    def statistics(self) -> QueueStatistics:
        """How full the queue is."""

        def work(connection: Connection) -> QueueStatistics:
            oldest = select(func.min(jobs.c.accepted_at)).where(is_in(State.QUEUED))
            since = connection.execute(oldest).scalar_one()
            return QueueStatistics(
                queued=rows.count(connection, is_in(State.QUEUED)),
                running=rows.count(connection, is_in(State.RUNNING)),
                oldest_age=0.0 if since is None else max(0.0, self._clock() - since),
            )

        return self._database.read(work)

    def _digest(self, key: str) -> bytes:
        return hmac.digest(self._salt, key.encode("utf-8", "surrogatepass"), hashlib.sha256)
