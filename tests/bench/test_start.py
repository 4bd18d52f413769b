"""The measurement of a start runs; no figure is judged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import start
from bench.server import ServerError, started
from bench.tree import Process, tree
from service.cli import main


def test_a_server_is_started_and_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(start, "PICTURES", 1)
    monkeypatch.setattr(start, "drop_file_cache", lambda: None)
    found = start.measure(repetitions=1, cold=True)
    times = found["start"]
    assert 0 < times["listening"]["median_ms"] < times["ready"]["median_ms"]
    assert times["ready"]["count"] == 2
    assert times["first_picture"]["count"] == 1
    for memory in (found["idle_mb"], found["after_1_pictures_mb"]):
        assert list(memory) == ["all", "server", "engine", "decoding"]
        assert [part["processes"] for part in memory.values()] == [4, 1, 1, 2]
        whole, *parts = (part["rss"] for part in memory.values())
        assert whole == pytest.approx(sum(parts), abs=0.5)
        if os.geteuid() == 0:
            assert 0 < memory["all"]["pss"] < whole


def test_a_server_that_ends_while_it_starts_says_why() -> None:
    with started(["-m", "service.cli", "serve", "--port", "70000"]) as server:
        server._process.wait()
        server._reading.join()
        with pytest.raises(ServerError, match="--port is 70000"):
            server.require_running()


def test_the_tree_holds_children_of_children() -> None:
    inner = "import time; print(flush=True); time.sleep(60)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    command = [sys.executable, "-c", outer]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = tree(process.pid)
        os.killpg(process.pid, 9)
    assert [process.part for process in found] == ["server", "other"]
    assert all(process.rss > 1 << 20 for process in found)


def test_shared_memory_that_is_not_told_is_not_guessed() -> None:
    run = [Process(part="server", rss=3_000_000, pss=1), Process(part="x", rss=1_000_000, pss=None)]
    assert start._megabytes([run])["all"] == {"processes": 2, "rss": 4.0, "pss": None}


def test_a_file_cache_that_cannot_be_emptied(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(start, "_DROP_CACHES", tmp_path)
    assert main(["bench", "start", "--cold"]) == 1
    assert "error: the file cache cannot be emptied: " in capsys.readouterr().err
