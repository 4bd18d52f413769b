"""The job store's promises on a real PostgreSQL server, started for this file alone."""

from __future__ import annotations

import contextlib
import getpass
import importlib.util
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from service.jobs import JobStore, Limits, QueueFull, StoreError
from tests.service.test_jobs import WIDE, StoreContract, new_job

BINARIES = Path("/usr/lib/postgresql/15/bin")
ACCOUNT = "postgres"  # the server refuses to run as root

pytestmark = [
    pytest.mark.skipif(
        not (BINARIES / "initdb").is_file(), reason=f"no PostgreSQL server in {BINARIES}"
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("psycopg") is None, reason="needs the postgresql extra: psycopg"
    ),
]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A running server's URL, without the database."""
    as_other = os.getuid() == 0
    who = ACCOUNT if as_other else None
    home = Path(tempfile.mkdtemp(prefix="edgefill-pg-"))
    log = (home / "log").open("wb")
    try:
        if as_other:
            shutil.chown(home, ACCOUNT, ACCOUNT)
        data = str(home / "data")
        initdb = [BINARIES / "initdb", "-D", data, "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run([*initdb, "--locale=C"], check=True, capture_output=True, user=who)
        listen = ["-k", str(home), "-c", "listen_addresses=", "-c", "fsync=off"]
        running = subprocess.Popen(
            [BINARIES / "postgres", "-D", data, *listen],
            stdout=log,
            stderr=log,
            user=who,
            cwd=home,
        )
        try:
            wait_for(home / ".s.PGSQL.5432", running)
            name = ACCOUNT if as_other else getpass.getuser()
            yield f"postgresql://{name}@/{{database}}?host={home}"
        finally:
            running.terminate()
            running.wait(20)
    finally:
        log.close()
        shutil.rmtree(home, ignore_errors=True)


def wait_for(socket: Path, server: subprocess.Popen[bytes]) -> None:
    import psycopg

    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(psycopg.OperationalError):
            user = ACCOUNT if os.getuid() == 0 else getpass.getuser()
            psycopg.connect(host=str(socket.parent), user=user, dbname="postgres").close()
            return
        time.sleep(0.1)
    raise RuntimeError("the PostgreSQL server did not start")


@pytest.fixture(scope="module")
def numbers() -> Iterator[int]:
    return count()


@pytest.fixture
def database(server: str, numbers: Iterator[int]) -> str:
    """The URL of an empty database."""
    import psycopg

    name = f"jobs_{next(numbers)}"
    with psycopg.connect(server.format(database="postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.format(database=name)


class TestPostgres(StoreContract):
    @pytest.fixture
    def url(self, database: str) -> str:
        return database


def test_two_servers_never_claim_the_same_job(database: str) -> None:
    stores = [JobStore.open(database) for _ in range(2)]
    try:
        ids = {stores[0].accept(new_job(), limits=WIDE).id for _ in range(60)}
        claimed: list[tuple[int, int]] = []

        def work(store: JobStore) -> None:
            while jobs := store.claim(2):
                claimed.extend((job.id, job.attempt) for job in jobs)
                assert all(store.finish(job.id, job.attempt, answer={}) for job in jobs)

        threads = [threading.Thread(target=work, args=(store,)) for store in stores * 3]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(claimed) == sorted((job_id, 1) for job_id in ids)
    finally:
        for store in stores:
            store.close()


def test_limits_hold_when_many_accept_at_once(database: str) -> None:
    store = JobStore.open(database)
    refused: list[QueueFull] = []

    def work() -> None:
        for _ in range(5):
            try:
                store.accept(new_job(), limits=Limits(per_key=12, total=100))
            except QueueFull as exc:
                refused.append(exc)

    try:
        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.statistics().queued == 12
        assert len(refused) == 18
    finally:
        store.close()


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        JobStore.open(f"postgres://nobody@/nothing?host={tmp_path}")
