"""``edgefill jobs``: list, show and redeliver, beside a server that has the store open."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.commands import jobs
from service.console import CommandError
from service.jobs import DeliveryState, Job, JobStore, default_url
from service.settings import Settings
from tests.service.test_jobs import WIDE, new_job


@pytest.fixture
def store() -> Iterator[JobStore]:
    store = JobStore.open(default_url(Settings.load().data_dir))
    yield store
    store.close()


@pytest.fixture
def finished(store: JobStore) -> Job:
    """A finished job whose webhook was given up."""
    store.accept(new_job("the-key", webhook="https://a.example/hook", track_id="t-1"), limits=WIDE)
    (job,) = store.claim()
    store.finish(job.id, job.attempt, answer={"status": "success", "id": job.id}, files=["a.png"])
    (delivery,) = store.outbox.due(1)
    given_up = {"state": DeliveryState.GIVEN_UP, "status": 410}
    store.outbox.record(delivery, **given_up, error="answered with status 410")  # type: ignore[arg-type]
    return job


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    jobs.add(parser.add_subparsers(required=True))
    arguments = parser.parse_args(["jobs", *argv])
    code: int = arguments.run(arguments)
    return code


def test_list(store: JobStore, finished: Job, capsys: pytest.CaptureFixture[str]) -> None:
    queued = store.accept(new_job(), limits=WIDE)
    assert run("list") == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.startswith("queued: 1, running: 0, oldest waits: ")
    assert str(queued.id) in first
    assert "queued" in first
    assert str(finished.id) in second
    assert second.endswith("webhook given_up")
    assert run("list", "--state", "done", "--limit", "5", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["queue"]["queued"] == 1
    assert [each["id"] for each in record["jobs"]] == [finished.id]


def test_show(finished: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", str(finished.id)) == 0
    out = capsys.readouterr().out
    assert "state: done" in out
    assert "track_id: t-1" in out
    assert "given_up after 1 attempt(s), to https://a.example/hook" in out
    assert "last error: answered with status 410" in out
    assert run("show", str(finished.id), "--json") == 0
    text = capsys.readouterr().out
    record = json.loads(text)
    assert record["job"]["answer"] == {"status": "success", "id": finished.id}
    assert record["webhooks"][0]["body"]["track_id"] == "t-1"
    assert "the-key" not in text


def test_terminals_are_not_played_tricks_on(
    store: JobStore, capsys: pytest.CaptureFixture[str]
) -> None:
    job = store.accept(new_job(track_id="\x1b[2Jcleared\u202e"), limits=WIDE)
    assert run("show", str(job.id)) == 0
    assert r"track_id: '\x1b[2Jcleared\u202e'" in capsys.readouterr().out


def test_redeliver(store: JobStore, finished: Job, capsys: pytest.CaptureFixture[str]) -> None:
    (before,) = store.outbox.deliveries(finished.id)
    assert run("redeliver", str(finished.id)) == 0
    assert "is sent again" in capsys.readouterr().out
    (delivery,) = store.outbox.due(9)
    assert (delivery.id, delivery.attempts) == (before.id, 0)
    assert run("redeliver", str(finished.id), "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"id": finished.id, "webhooks": 1}
    assert run("show", str(finished.id)) == 0
    assert "next attempt: " in capsys.readouterr().out


def test_what_is_not_there(store: JobStore) -> None:
    silent = store.accept(new_job(), limits=WIDE)
    for action in ("show", "redeliver"):
        with pytest.raises(CommandError, match="there is no request 0"):
            run(action, "0")
    with pytest.raises(CommandError, match="has no webhook"):
        run("redeliver", str(silent.id))
    with pytest.raises(CommandError, match="--limit is 0"):
        run("list", "--limit", "0")


def test_no_store_is_made_by_looking(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="no server has accepted"):
        run("list")
    assert not (tmp_path / "data").exists()


def test_a_damaged_store(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "jobs.sqlite3").write_bytes(b"no database" * 999)
    with pytest.raises(CommandError, match="cannot be read"):
        run("list")
