"""Single rows: finding, ending and reading them. Everything here runs inside a transaction."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, delete, func, insert, select, update

from service.jobs.errors import StoreError
from service.jobs.tables import ANSWER, REQUEST, documents, jobs
from service.jobs.values import Job, State

MAX_ID: Final = 2**31 - 1
ID_TRIES: Final = 16


def is_in(state: State) -> ColumnElement[bool]:
    """The jobs in a state."""
    return jobs.c.state == state


def count(connection: Connection, *conditions: ColumnElement[bool]) -> int:
    """How many jobs meet all conditions."""
    statement = select(func.count()).select_from(jobs).where(*conditions)
    return connection.execute(statement).scalar_one()


def find(
    connection: Connection, job_id: int, *conditions: ColumnElement[bool], lock: bool = False
) -> Row[Any] | None:
    """The row of a job that meets all conditions, locked until the transaction ends if wanted."""
    statement = select(jobs).where(jobs.c.id == job_id, *conditions)
    if lock:
        statement = statement.with_for_update()
    return connection.execute(statement).one_or_none()


def add(connection: Connection, values: Mapping[str, Any], *, request: str) -> Row[Any]:
    """Write a new job under a random id that is not in use, at the end of the queue.

    The id is not sequential: it must not tell how many jobs there are, or which is next. The
    transaction must be serialised: nobody else may write a new job before it ends.

    Raises:
        StoreError: When no free id was found.
    """
    last = connection.execute(select(func.max(jobs.c.seq))).scalar_one() or 0
    for _ in range(ID_TRIES):
        job_id = secrets.randbelow(MAX_ID) + 1
        if find(connection, job_id) is not None:
            continue
        statement = insert(jobs).values(**values, id=job_id, seq=last + 1).returning(*jobs.c)
        row = connection.execute(statement).one()
        connection.execute(insert(documents).values(job_id=job_id, role=REQUEST, text=request))
        return row
    raise StoreError(f"no free id in {ID_TRIES} tries")


def end(
    connection: Connection,
    job_id: int,
    *conditions: ColumnElement[bool],
    state: State,
    now: float,
    message: str | None = None,
    files: Sequence[str] = (),
) -> Row[Any] | None:
    """End a job that meets all conditions, and drop its request.

    Returns:
        Its row as it is now; None when it does not meet them, and nothing was written.
    """
    row = connection.execute(
        update(jobs)
        .where(jobs.c.id == job_id, *conditions)
        .values(state=state, ended_at=now, message=message, files=json.dumps(list(files)))
        .returning(*jobs.c)
    ).one_or_none()
    if row is not None:
        connection.execute(
            delete(documents).where(documents.c.job_id == job_id, documents.c.role == REQUEST)
        )
    return row


def with_request(connection: Connection, row: Row[Any]) -> Job:
    """A job and what is asked of it."""
    return job(row, request=_document(connection, row.id, REQUEST))


def with_documents(connection: Connection, row: Row[Any]) -> Job:
    """A job and, when it is done, its answer; until it has ended, what is asked of it."""
    request = None if State(row.state).ended else _document(connection, row.id, REQUEST)
    return job(row, request=request, answer=_document(connection, row.id, ANSWER))


def job(row: Row[Any], *, request: str | None = None, answer: str | None = None) -> Job:
    """The value of a row and the documents beside it."""
    return Job(
        id=row.id,
        kind=row.kind,
        state=State(row.state),
        attempt=row.attempt,
        crashes=row.crashes,
        file_prefix=row.file_prefix,
        webhook=row.webhook,
        track_id=json.loads(row.track_id),
        deadline=row.deadline,
        accepted_at=row.accepted_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        message=row.message,
        files=tuple(json.loads(row.files)),
        owner=row.key_digest.hex(),
        request=request,
        answer=None if answer is None else json.loads(answer),
    )


def _document(connection: Connection, job_id: int, role: str) -> str | None:
    return connection.execute(
        select(documents.c.text).where(documents.c.job_id == job_id, documents.c.role == role)
    ).scalar_one_or_none()
