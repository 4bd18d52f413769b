"""The tables, for SQLite and PostgreSQL alike. Times are seconds since 1970."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)

REQUEST: Final = "request"
ANSWER: Final = "answer"

metadata = MetaData()

about = Table(
    "edgefill_about",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

jobs = Table(
    "edgefill_jobs",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    # The order of acceptance. Ids are random and clocks jump.
    Column("seq", BigInteger, nullable=False, unique=True),
    Column("kind", Text, nullable=False),
    Column("key_digest", LargeBinary, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("crashes", Integer, nullable=False),
    Column("boot_id", Text),
    Column("file_prefix", Text, nullable=False),
    Column("webhook", Text),
    Column("webhook_host", Text),
    Column("track_id", Text, nullable=False),  # JSON
    Column("deadline", Double),
    Column("accepted_at", Double, nullable=False),
    Column("started_at", Double),
    Column("ended_at", Double),
    Column("message", Text),
    Column("files", Text, nullable=False),  # JSON
    Index("edgefill_jobs_by_state", "state", "seq"),
    Index("edgefill_jobs_by_end", "ended_at"),
)

# Documents may hold megabytes: apart from the jobs, so that looking at the queue stays cheap.
documents = Table(
    "edgefill_documents",
    metadata,
    Column("job_id", Integer, ForeignKey(jobs.c.id, ondelete="CASCADE"), primary_key=True),
    Column("role", Text, primary_key=True),
    Column("text", Text, nullable=False),
)

# No foreign key: a webhook that is still being tried outlives its job's retention.
deliveries = Table(
    "edgefill_deliveries",
    metadata,
    Column("id", Text, primary_key=True),
    Column("job_id", Integer, nullable=False),
    Column("url", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_at", Double, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("last_status", Integer),
    Column("last_error", Text),
    Index("edgefill_deliveries_by_due", "state", "next_at"),
    Index("edgefill_deliveries_by_job", "job_id"),
)
