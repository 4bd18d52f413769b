"""How the job store reaches its database: SQLite in a file, or PostgreSQL by URL.

SQLite: write-ahead log, every commit flushed to the disk before it returns (synchronous=FULL), one
writer (``service.jobs.writer``), readers beside it. On a local disk only, never a network share.
PostgreSQL (the driver is ``psycopg``): a transaction per call, rows locked where it matters.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from service.jobs.errors import StoreError
from service.jobs.writer import Writer

T = TypeVar("T")

FILE: Final = "jobs.sqlite3"
BUSY_MILLISECONDS: Final = 5000
READERS: Final = 4
CONNECTIONS: Final = 8
_LOCK: Final = 0x6564676566696C6C  # "edgefill": PostgreSQL's advisory lock of the queue's end


def default_url(data_dir: Path) -> str:
    """The URL of the SQLite database in a data directory."""
    url = URL.create("sqlite", database=str(data_dir.absolute() / FILE))
    return url.render_as_string(hide_password=False)


class Database(Protocol):
    """Runs functions in transactions, from any thread."""

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work``, return when it is durable. Raises StoreError: then nothing was written."""
        ...

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work``, which only reads. Raises StoreError."""
        ...

    def serialise(self, connection: Connection) -> None:
        """Let no other transaction that calls this run beside the current one."""
        ...

    def close(self) -> None:
        """Let go of every connection."""
        ...


def open_database(url: str, *, check: bool) -> Database:
    """Connect.

    Args:
        url: ``sqlite:///<path>`` or ``postgresql://<user>:<password>@<host>/<database>``.
        check: Whether a SQLite file is looked through for damage, which takes time in its size.

    Raises:
        StoreError: When the URL is of neither kind, or the database cannot be used.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as exc:
        raise StoreError("the database URL cannot be read") from exc
    backend = "postgresql" if parsed.drivername == "postgres" else parsed.get_backend_name()
    if backend == "sqlite":
        if not parsed.database or parsed.database == ":memory:" or parsed.query:
            raise StoreError("a SQLite database must be a plain file: sqlite:///<path>")
        return SqliteDatabase(Path(parsed.database), check=check)
    if backend == "postgresql":
        return PostgresDatabase(parsed.set(drivername="postgresql+psycopg"))
    raise StoreError(f"database {backend!r} is not known; allowed: sqlite, postgresql")


class SqliteDatabase:
    """A file, one writer, a few readers."""

    def __init__(self, path: Path, *, check: bool) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # it holds what people asked for
        except OSError as exc:
            raise StoreError(f"{path}: {exc.strerror}") from exc
        self._write = _sqlite_engine(path, begin="BEGIN IMMEDIATE", pool_size=1)
        self._read = _sqlite_engine(path, begin="BEGIN", pool_size=READERS)
        try:
            _prepare(self._write, path, check=check)
        except SQLAlchemyError as exc:
            self._dispose()
            raise _store_error(exc) from exc
        except StoreError:
            self._dispose()
            raise
        self._writer = Writer(self._write)

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in the writer's thread and wait until it is on the disk."""
        try:
            return self._writer.do(work)
        except SQLAlchemyError as exc:
            raise _store_error(exc) from exc

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` on a snapshot, beside the writer."""
        return _run(self._read, work)

    def serialise(self, connection: Connection) -> None:
        """Nothing to do: there is one writer."""

    def close(self) -> None:
        """Finish what is being written, then close the file."""
        self._writer.close()
        self._dispose()

    def _dispose(self) -> None:
        self._read.dispose()
        self._write.dispose()


class PostgresDatabase:
    """A PostgreSQL server."""

    def __init__(self, url: URL) -> None:
        try:
            self._engine = create_engine(
                url,
                pool_size=CONNECTIONS,
                max_overflow=0,
                pool_pre_ping=True,
                hide_parameters=True,
            )
        except (ImportError, NoSuchModuleError) as exc:
            raise StoreError(
                "PostgreSQL needs psycopg: pip install 'edgefill[postgresql]'"
            ) from exc
        event.listen(self._engine, "connect", _flush_every_commit)

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in a transaction of its own."""
        return _run(self._engine, work)

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in a transaction of its own."""
        return _run(self._engine, work)

    def serialise(self, connection: Connection) -> None:
        """Take the advisory lock until the transaction ends."""
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


def _run(engine: Engine, work: Callable[[Connection], T]) -> T:
    try:
        with engine.begin() as connection:
            return work(connection)
    except SQLAlchemyError as exc:
        raise _store_error(exc) from exc


def _store_error(error: SQLAlchemyError) -> StoreError:
    """The driver's own words, without the statement and what people asked for in it."""
    cause = getattr(error, "orig", None) or error
    return StoreError(f"{type(cause).__name__}: {cause}")


def _sqlite_engine(path: Path, *, begin: str, pool_size: int) -> Engine:
    engine = create_engine(
        URL.create("sqlite+pysqlite", database=str(path)),
        pool_size=pool_size,
        max_overflow=0,
        hide_parameters=True,
        connect_args={"check_same_thread": False},
    )

    def connect(connection: Any, _: object) -> None:
        # The driver must not begin transactions by itself: when it does, it does so too late.
        connection.isolation_level = None
        for pragma in (
            f"busy_timeout={BUSY_MILLISECONDS}",
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "wal_autocheckpoint=1000",
            # Some builds write zeros over what is deleted: every request's pictures once more.
            "secure_delete=FAST",
        ):
            connection.execute(f"PRAGMA {pragma}").close()

    def begins(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    event.listen(engine, "connect", connect)
    event.listen(engine, "begin", begins)
    return engine


def _prepare(engine: Engine, path: Path, *, check: bool) -> None:
    with engine.connect() as connection:
        mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()
        if mode != "wal":
            raise StoreError(f"{path}: SQLite cannot keep a write-ahead log there ({mode})")
        if check:
            verdict = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
            if verdict != "ok":
                raise StoreError(f"{path}: is damaged: {verdict}")


def _flush_every_commit(connection: Any, _: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit TO on")
    connection.commit()
