"""The job store: accepting, claiming and ending jobs. The package tells the whole API."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Subquery,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from service.jobs import outbox, rows, schema
from service.jobs.database import Database, open_database
from service.jobs.errors import QueueFull, StoreError
from service.jobs.reader import JobReader
from service.jobs.rows import is_in
from service.jobs.tables import ANSWER, documents, jobs
from service.jobs.values import MAX_CRASHES, Job, Limits, NewJob, Recovery, State
from service.urls import Target

EXPIRY_BATCH: Final = 200
CRASHED: Final = f"The request was given up because the engine crashed {MAX_CRASHES} times on it."
OVERDUE: Final = "The request was not begun before its deadline."


def new_boot_id() -> str:
    """A name for one run of the server, which no other run has."""
    return secrets.token_hex(16)


class JobStore(JobReader):
    """Jobs in a database.

    Args:
        database: Where they are.
        boot_id: The run of the server that claims jobs through this store.
        clock: Seconds since 1970, for the times that are stored.
    """

    def __init__(self, database: Database, *, boot_id: str, clock: Callable[[], float]) -> None:
        super().__init__(database, clock=clock)
        self._boot_id = boot_id
        self.outbox = outbox.Outbox(database, clock)

    @classmethod
    def open(
        cls,
        url: str,
        *,
        boot_id: str | None = None,
        clock: Callable[[], float] = time.time,
        check: bool = True,
    ) -> JobStore:
        """Open the database behind a URL, and make what is missing in it.

        Args:
            url: ``sqlite:///<path>`` or ``postgresql://...``; see ``default_url``.
            boot_id: Names this run of the server; a fresh one where None.
            clock: Seconds since 1970.
            check: Whether a SQLite file is looked through for damage.

        Raises:
            StoreError: When it cannot be used, is damaged, or belongs to a newer Edgefill.
        """
        database = open_database(url, check=check)
        try:
            return cls(database, boot_id=boot_id or new_boot_id(), clock=clock)
        except BaseException:
            database.close()
            raise

    def close(self) -> None:
        """Finish what is being written and let go of the database."""
        self._database.close()

    def writable(self) -> bool:
        """Whether a commit works now."""
        try:
            self._database.write(schema.touch)
        except StoreError:
            return False
        return True

    def accept(self, new: NewJob, *, limits: Limits, begin: bool = False) -> Job:
        """Queue a job. When this returns, the job survives a crash and a power cut.

        Args:
            new: What is asked.
            limits: How many may wait.
            begin: Claim it in the same transaction, if no other job waits.

        Raises:
            QueueFull: When the key, or all keys together, have as many queued jobs as allowed.
            FetchError: When the webhook is not an http or https URL.
            StoreError: When it could not be written.
        """
        host = None if new.webhook is None else Target.parse(new.webhook).host
        digest, now = self._digest(new.key), self._clock()
        values = {
            "kind": new.kind,
            "key_digest": digest,
            "state": State.QUEUED,
            "attempt": 0,
            "crashes": 0,
            "file_prefix": new.file_prefix,
            "webhook": new.webhook,
            "webhook_host": host,
            "track_id": json.dumps(new.track_id),
            "deadline": new.deadline,
            "accepted_at": now,
            "files": "[]",
        }

        def work(connection: Connection) -> Job:
            self._database.serialise(connection)
            mine = jobs.c.key_digest == digest
            if rows.count(connection, is_in(State.QUEUED), mine) >= limits.per_key:
                raise QueueFull("key", limits.per_key)
            waiting = rows.count(connection, is_in(State.QUEUED))
            if waiting >= limits.total:
                raise QueueFull("all", limits.total)
            claimed = self._claimed(now) if begin and not waiting else {}
            row = rows.add(connection, values | claimed, request=new.request)
            return rows.job(row, request=new.request)

        return self._database.write(work)

    def claim(self, limit: int = 1, *, share: int | None = None) -> list[Job]:
        """Take the oldest queued jobs: they are running now, as this run's, in a new attempt.

        Args:
            limit: How many at most.
            share: How many jobs of one key run before those of other keys come first, however long
                they have waited: pictures that are slow to fetch must not take every place.
        """
        now = self._clock()
        alive = or_(jobs.c.deadline.is_(None), jobs.c.deadline > now)
        turns = _turns(alive)
        order = [turns.c.seq] if share is None else [turns.c.turn > share, turns.c.seq]
        first = select(turns.c.id).order_by(*order).limit(limit)

        def work(connection: Connection) -> list[Job]:
            waiting = connection.scalars(
                select(jobs.c.id)
                .where(is_in(State.QUEUED), alive, jobs.c.id.in_(first))
                .with_for_update(skip_locked=True)
            ).all()
            claimed = connection.execute(
                update(jobs)
                .where(jobs.c.id.in_(waiting))
                .values(
                    state=State.RUNNING,
                    attempt=jobs.c.attempt + 1,
                    boot_id=self._boot_id,
                    started_at=now,
                )
                .returning(*jobs.c)
            ).all()
            oldest_first = sorted(claimed, key=lambda row: int(row.seq))
            return [rows.with_request(connection, row) for row in oldest_first]

        return self._database.write(work)

    def finish(
        self,
        job_id: int,
        attempt: int,
        *,
        answer: Mapping[str, Any],
        files: Sequence[str] = (),
        webhook_answer: Mapping[str, Any] | None = None,
    ) -> bool:
        """A job is done; its webhook is due from now on.

        Args:
            job_id: Which.
            attempt: The attempt it was claimed with.
            answer: The body of the success answer, for every fetch from now on.
            files: Names of the output files, which must be on the disk already.
            webhook_answer: What the webhook tells instead of ``answer``, such as links where the
                answer holds whole pictures.

        Returns:
            False when the job is not running in that attempt of this run any more. Then nothing
            has been written, and the files belong to nobody.
        """
        text = outbox.dumps(answer)

        def work(connection: Connection) -> bool:
            fence, now = self._fence(attempt), self._clock()
            row = rows.end(connection, job_id, *fence, state=State.DONE, files=files, now=now)
            if row is None:
                return False
            connection.execute(insert(documents).values(job_id=job_id, role=ANSWER, text=text))
            told = answer if webhook_answer is None else webhook_answer
            outbox.post_later(connection, job=row, body=told, now=now)
            return True

        return self._database.write(work)

    def fail(self, job_id: int, attempt: int, message: str) -> bool:
        """A job has failed; its webhook is due from now on.

        Args:
            job_id: Which.
            attempt: The attempt it was claimed with.
            message: One sentence for the client.

        Returns:
            False when the fence was lost, as in ``finish``.
        """

        def work(connection: Connection) -> bool:
            row = rows.find(connection, job_id, *self._fence(attempt), lock=True)
            if row is not None:
                self._fail(connection, row, message)
            return row is not None

        return self._database.write(work)

    def requeue(self, job_id: int, attempt: int, *, crashed: bool) -> State | None:
        """Give a running job back: to its old place in the queue, or failed after too many crashes.

        Args:
            job_id: Which.
            attempt: The attempt it was claimed with.
            crashed: Whether the job may be to blame; False when the server merely stops.

        Returns:
            ``QUEUED`` or ``FAILED``; None when the fence was lost, as in ``finish``.
        """

        def work(connection: Connection) -> State | None:
            row = rows.find(connection, job_id, *self._fence(attempt), lock=True)
            return None if row is None else self._give_back(connection, row, crashed=crashed)

        return self._database.write(work)

    def recover(self) -> Recovery:
        """Give back every job that another run of the server left running.

        Call it once, before the first claim. One server uses a database at a time: where a second
        one is alive, its jobs are taken for crashed (each still has one outcome).
        """

        def work(connection: Connection) -> Recovery:
            left = connection.execute(
                select(jobs)
                .where(is_in(State.RUNNING), jobs.c.boot_id != self._boot_id)
                .order_by(jobs.c.seq)
                .with_for_update()
            ).all()
            states = {row.id: self._give_back(connection, row, crashed=True) for row in left}
            return Recovery(
                requeued=tuple(name for name, state in states.items() if state is State.QUEUED),
                failed=tuple(name for name, state in states.items() if state is State.FAILED),
            )

        return self._database.write(work)

    def cancel(self, job_id: int) -> bool:
        """Cancel a queued job; no webhook is sent. False when it is not queued."""

        def work(connection: Connection) -> bool:
            now, queued = self._clock(), is_in(State.QUEUED)
            return rows.end(connection, job_id, queued, state=State.CANCELLED, now=now) is not None

        return self._database.write(work)

    def fail_overdue(self) -> list[int]:
        """Fail the queued jobs whose deadline has passed; the ids of those."""
        now = self._clock()

        def work(connection: Connection) -> list[int]:
            overdue = connection.execute(
                select(jobs)
                .where(is_in(State.QUEUED), jobs.c.deadline <= now)
                .order_by(jobs.c.seq)
                .with_for_update(skip_locked=True)
            ).all()
            for row in overdue:
                self._fail(connection, row, OVERDUE)
            return [row.id for row in overdue]

        return self._database.write(work)

    def expire(self, before: float) -> list[str]:
        """Remove the jobs and webhooks that ended before a time.

        Args:
            before: Seconds since 1970.

        Returns:
            The names of the removed jobs' files, which belong to nobody now.
        """

        def work(connection: Connection) -> Sequence[Row[Any]]:
            old = select(jobs.c.id).where(jobs.c.ended_at < before).limit(EXPIRY_BATCH)
            outbox.expire(connection, before)
            ids = connection.scalars(old).all()
            statement = delete(jobs).where(jobs.c.id.in_(ids)).returning(jobs.c.files)
            return connection.execute(statement).all()

        names: list[str] = []
        while removed := self._database.write(work):
            names.extend(name for row in removed for name in json.loads(row.files))
        return names

    def _claimed(self, now: float) -> dict[str, Any]:
        """What makes a new job one that this run works on."""
        return {
            "state": State.RUNNING,
            "attempt": 1,
            "boot_id": self._boot_id,
            "started_at": now,
        }

    def _fence(self, attempt: int) -> tuple[ColumnElement[bool], ...]:
        """What an outcome must meet: the attempt it comes from is still the one that counts."""
        return (
            is_in(State.RUNNING),
            jobs.c.attempt == attempt,
            jobs.c.boot_id == self._boot_id,
        )

    def _fail(self, connection: Connection, row: Row[Any], message: str) -> None:
        """Fail a job whose row is locked."""
        now = self._clock()
        rows.end(connection, row.id, state=State.FAILED, message=message, now=now)
        body = {"status": "failed", "id": row.id, "message": message}
        outbox.post_later(connection, job=row, body=body, now=now)

    def _give_back(self, connection: Connection, row: Row[Any], *, crashed: bool) -> State:
        """Queue a running job whose row is locked again, unless it has crashed too often."""
        crashes = row.crashes + crashed
        change = update(jobs).where(jobs.c.id == row.id)
        if crashes < MAX_CRASHES:
            connection.execute(change.values(state=State.QUEUED, crashes=crashes, boot_id=None))
            return State.QUEUED
        connection.execute(change.values(crashes=crashes))
        self._fail(connection, row, CRASHED)
        return State.FAILED


def _turns(alive: ColumnElement[bool]) -> Subquery:
    """The queued jobs with the number of the turn that each has: how many of its key are running or
    stand before it."""
    running = (
        select(jobs.c.key_digest, func.count().label("n"))
        .where(is_in(State.RUNNING))
        .group_by(jobs.c.key_digest)
        .subquery()
    )
    place = func.row_number().over(partition_by=jobs.c.key_digest, order_by=jobs.c.seq)
    return (
        select(jobs.c.id, jobs.c.seq, (place + func.coalesce(running.c.n, 0)).label("turn"))
        .select_from(jobs.outerjoin(running, jobs.c.key_digest == running.c.key_digest))
        .where(is_in(State.QUEUED), alive)
        .subquery()
    )
