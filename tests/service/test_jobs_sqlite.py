"""The SQLite file under the job store: settings, damage, a full disk, many threads at once."""

from __future__ import annotations

import json
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from service.jobs import JobStore, Limits, QueueFull, State, StoreError, default_url
from service.jobs.database import SqliteDatabase, open_database
from tests.service.test_jobs import WIDE, new_job

THREADS = 8


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "jobs.sqlite3"


@pytest.fixture
def store(file: Path) -> Iterator[JobStore]:
    store = JobStore.open(default_url(file.parent))
    yield store
    store.close()


def together(*works: object) -> None:
    """Run functions in threads, and raise the first error of any."""
    errors: list[BaseException] = []

    def guarded(work: object) -> None:
        try:
            assert callable(work)
            work()
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        raise error


def test_commits_are_flushed(file: Path) -> None:
    database = open_database(default_url(file.parent), check=True)
    pragmas = {
        "synchronous": 2,
        "journal_mode": "wal",
        "foreign_keys": 1,
        "busy_timeout": 5000,
        "wal_autocheckpoint": 1000,
    }

    def look(connection: Connection) -> dict[str, object]:
        return {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in pragmas}

    try:
        assert database.write(look) == pragmas
        assert database.read(look) == pragmas
    finally:
        database.close()


def test_only_the_owner_can_read_it(store: JobStore, file: Path) -> None:
    store.accept(new_job(), limits=WIDE)
    for path in file.parent.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_keys_are_not_in_the_file(store: JobStore, file: Path) -> None:
    store.accept(new_job("a-key-nobody-must-see"), limits=WIDE)
    for path in file.parent.iterdir():
        assert b"a-key-nobody-must-see" not in path.read_bytes()


def test_requests_are_dropped_when_jobs_end(store: JobStore, file: Path) -> None:
    for _ in range(4):
        store.accept(new_job(deadline=time.time() + 0.05), limits=WIDE)
    first, second, _ = store.claim(3)
    store.finish(first.id, first.attempt, answer={})
    store.fail(second.id, second.attempt, "It failed.")
    with sqlite3.connect(file) as connection:
        assert roles(connection) == {"answer": 1, "request": 2}
        time.sleep(0.06)
        assert len(store.fail_overdue()) == 1
        assert roles(connection) == {"answer": 1, "request": 1}
        store.expire(time.time() + 1)
        assert roles(connection) == {"request": 1}
    connection.close()


def roles(connection: sqlite3.Connection) -> dict[str, int]:
    rows = connection.execute("SELECT role, count(*) FROM edgefill_documents GROUP BY role")
    return dict(rows.fetchall())


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "sqlite:///x?mode=ro", "mysql://a/b", "rubbish", ""]
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(StoreError):
        JobStore.open(url)


def test_places_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file" / "jobs.sqlite3", tmp_path):
        with pytest.raises(StoreError):
            JobStore.open(f"sqlite:///{path}")


def test_damage_is_found_at_the_start(store: JobStore, file: Path) -> None:
    for number in range(60):
        store.accept(new_job(request=json.dumps(["x" * 900, number])), limits=WIDE)
    store.close()
    data = bytearray(file.read_bytes())
    data[4096 * 12 : -4096] = b"\x5a" * len(data[4096 * 12 : -4096])
    file.write_bytes(data)
    with pytest.raises(StoreError, match=r"damaged|malformed"):
        JobStore.open(default_url(file.parent))
    file.write_bytes(b"this is no database, it is a text" * 1000)
    with pytest.raises(StoreError, match="not a database"):
        JobStore.open(default_url(file.parent))


def test_a_newer_database_is_left_alone(store: JobStore, file: Path) -> None:
    store.close()
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE edgefill_about SET value='9' WHERE name='schema_version'")
    connection.close()
    with pytest.raises(StoreError, match="has version 9, this Edgefill reads 1"):
        JobStore.open(default_url(file.parent))


def test_a_closed_store_says_so(store: JobStore) -> None:
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.accept(new_job(), limits=WIDE)
    assert not store.writable()


def test_eight_threads(store: JobStore) -> None:
    accepted: list[int] = []
    finished: list[int] = []
    feeding = threading.Semaphore(0)

    def accept() -> None:
        for _ in range(25):
            accepted.append(store.accept(new_job(), limits=WIDE).id)
            feeding.release()

    def work() -> None:
        for _ in range(25):
            feeding.acquire()
            (job,) = store.claim()
            assert store.finish(job.id, job.attempt, answer={"id": job.id})
            finished.append(job.id)
            found = store.get(job.id, "key")
            assert found is not None
            assert found.answer == {"id": job.id}

    together(*[accept] * (THREADS // 2), *[work] * (THREADS // 2))
    assert len(set(accepted)) == 100
    assert sorted(accepted) == sorted(finished)
    assert {job.attempt for job in store.list_jobs(limit=1000)} == {1}


def test_limits_hold_when_many_accept_at_once(store: JobStore) -> None:
    refused: list[QueueFull] = []

    def accept() -> None:
        for _ in range(6):
            try:
                store.accept(new_job(), limits=Limits(per_key=20, total=100))
            except QueueFull as exc:
                refused.append(exc)

    together(*[accept] * THREADS)
    assert store.statistics().queued == 20
    assert len(refused) == THREADS * 6 - 20


def test_one_of_many_outcomes_counts(store: JobStore) -> None:
    store.accept(new_job(webhook="https://a.example/"), limits=WIDE)
    (job,) = store.claim()
    won: list[int] = []

    def finish(number: int) -> None:
        if store.finish(job.id, job.attempt, answer={"by": number}):
            won.append(number)

    together(*[lambda n=n: finish(n) for n in range(THREADS)])
    assert len(won) == 1
    found = store.show(job.id)
    assert found is not None
    assert found.answer == {"by": won[0]}
    assert len(store.outbox.deliveries(job.id)) == 1


def test_an_error_undoes_its_own_work_only(file: Path) -> None:
    database = SqliteDatabase(file, check=True)
    go = threading.Event()

    def insert(number: int, *, fails: bool) -> None:
        def work(connection: Connection) -> None:
            go.wait(5)  # the first holds the writer, so that the others share a transaction
            connection.execute(text("INSERT INTO numbers VALUES (:n)"), {"n": number})
            if fails:
                raise LookupError(f"number {number}")

        if not fails:
            database.write(work)
            return
        with pytest.raises(LookupError, match=f"number {number}"):
            database.write(work)

    try:
        database.write(lambda connection: connection.execute(text("CREATE TABLE numbers (n)")))
        timer = threading.Timer(0.2, go.set)
        timer.start()
        together(*[lambda n=n: insert(n, fails=n % 3 == 0) for n in range(12)])
        timer.join()
        found = database.read(
            lambda c: c.execute(text("SELECT n FROM numbers ORDER BY n")).scalars().all()
        )
        assert found == [n for n in range(12) if n % 3]
    finally:
        database.close()


def test_a_full_disk_refuses_and_recovers(store: JobStore, file: Path) -> None:
    """SQLite's own page limit is its answer to a full disk: SQLITE_FULL, the transaction lost."""
    kept = store.accept(new_job(), limits=WIDE)

    def limit(pages: int) -> None:
        database = store._database
        database.write(lambda c: c.exec_driver_sql(f"PRAGMA max_page_count={pages}").close())

    limit(30)
    large = new_job(request="x" * 400_000)
    errors: list[StoreError] = []

    def accept() -> None:
        try:
            store.accept(large, limits=WIDE)
        except StoreError as exc:
            errors.append(exc)

    together(*[accept] * THREADS)
    assert len(errors) == THREADS
    assert "full" in str(errors[0])
    assert "xxx" not in str(errors[0])
    assert store.statistics().queued == 1
    limit(100_000)
    store.accept(large, limits=WIDE)
    assert [job.id for job in store.claim()] == [kept.id]


def test_a_second_process_waits_for_the_lock(store: JobStore, file: Path) -> None:
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.3, lambda: other.execute("COMMIT"))
    timer.start()
    started = time.monotonic()
    store.accept(new_job(), limits=WIDE)
    assert time.monotonic() - started > 0.2
    timer.join()
    other.close()
    assert [job.state for job in store.list_jobs()] == [State.QUEUED]
