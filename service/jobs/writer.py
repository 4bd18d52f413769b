"""The one thread that writes to a SQLite database, and commits for everybody who waits.

SQLite has one writer at a time, and a durable commit costs a disk flush. So the works of all
threads go through one queue; those that came in while the disk was busy share the next transaction,
each in a savepoint of its own, and all are answered once it is on the disk.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine

from service.jobs.errors import StoreError

T = TypeVar("T")

MAX_BATCH: Final = 64


class Writer:
    """Runs works on one connection, one after the other, in shared transactions.

    Args:
        engine: Makes the connection; its transactions take SQLite's write lock when they begin.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._works: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="edgefill-jobs", daemon=True)
        self._thread.start()

    def do(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in a transaction and wait until it is on the disk.

        Returns:
            What ``work`` returned.

        Raises:
            StoreError: When the writer has been closed.
            Exception: What ``work`` or the commit raised; then nothing of it has been written.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise StoreError("the job store is closed")
            self._works.put((work, future))
        return future.result()

    def close(self) -> None:
        """Do what has been handed in, then stop. Closing twice is fine."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._works.put(None)
        self._thread.join()

    def _run(self) -> None:
        going = True
        while going:
            first = self._works.get()
            if first is None:
                return
            batch = [first]
            while len(batch) < MAX_BATCH and not self._works.empty():
                following = self._works.get()
                if following is None:
                    going = False
                    break
                batch.append(following)
            self._commit(batch)

    def _commit(self, batch: list[_Work]) -> None:
        outcomes: list[tuple[Any, Exception | None]] = []
        try:
            with self._engine.begin() as connection:
                for work, _ in batch:
                    outcomes.append(_attempt(connection, work))
        except Exception as exc:  # the transaction is gone, and with it every work in it
            for _, future in batch:
                future.set_exception(exc)
            return
        for (_, future), (value, error) in zip(batch, outcomes, strict=True):
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)


_Work = tuple[Callable[[Connection], Any], Future[Any]]


def _attempt(
    connection: Connection, work: Callable[[Connection], Any]
) -> tuple[Any, Exception | None]:
    """Run a work in a savepoint: its error undoes nothing but itself.

    Raises:
        Exception: When SQLite gave up the whole transaction, as on a full disk.
    """
    driver: Any = connection.connection.dbapi_connection
    savepoint = connection.begin_nested()
    try:
        value = work(connection)
        savepoint.commit()
    except Exception as exc:
        if not driver.in_transaction:
            raise
        savepoint.rollback()
        return None, exc
    return value, None
