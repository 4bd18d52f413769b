"""``edgefill serve``: where it binds, what it refuses, and how it stops."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from service.cli import main
from service.commands.serve import _stoppable, is_loopback
from service.lock import sole_server
from tests.service.engine_process.helpers import gone, until
from tests.service.stub_engine import StubEngine

ROOT = Path(__file__).parents[2]
WITH_STUB = """
import sys, service.engine_process
from tests.service.stub_engine import StubEngine
service.engine_process.EngineProcess = StubEngine
from service.cli import main
sys.exit(main(["serve", "--port", "0"]))
"""


@pytest.fixture(autouse=True)
def _stub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.engine_process.EngineProcess", StubEngine)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("192.168.1.5", False),
        ("example.com", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5"])
def test_without_keys_only_loopback_is_served(
    host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--host", host]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: without API keys only loopback is served")
    assert "EDGEFILL_API_KEYS" in hint


def test_bad_settings(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFILL_WAIT_SECONDS", "soon")
    assert main(["serve"]) == 2
    assert capsys.readouterr().err.startswith("error: EDGEFILL_WAIT_SECONDS: ")


def test_addresses_that_cannot_be_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 1
        assert f"error: cannot listen on 127.0.0.1 port {port}: " in capsys.readouterr().err
    assert main(["serve", "--port", "70000"]) == 2
    assert "error: --port is 70000; must be between 0 and 65535" in capsys.readouterr().err


def test_a_bundle_that_cannot_be_opened(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["serve", "--port", "0", "--bundle", str(tmp_path / "no")]) == 1
    err = capsys.readouterr().err
    assert "error: " in err
    assert "is not a directory" in err


def test_a_data_directory_that_cannot_be_used(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(StubEngine, "open", lambda *_, **__: pytest.fail("the engine was opened"))
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    monkeypatch.setenv("EDGEFILL_DATA_DIR", str(in_the_way))
    assert main(["serve", "--port", "0"]) == 1
    assert capsys.readouterr().err.splitlines()[-2:] == [
        f"error: cannot keep pictures in {in_the_way}: not a directory",
        "hint: set EDGEFILL_DATA_DIR to a directory that can be written",
    ]


def test_jobs_need_a_data_directory_also_when_pictures_are_elsewhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(StubEngine, "open", lambda *_, **__: pytest.fail("the engine was opened"))
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    monkeypatch.setenv("EDGEFILL_DATA_DIR", str(in_the_way))
    monkeypatch.setenv("EDGEFILL_STORAGE_URL", f"file://{tmp_path}/pictures")
    assert main(["serve", "--port", "0"]) == 1
    assert capsys.readouterr().err.splitlines()[-2:] == [
        f"error: cannot keep jobs in {in_the_way}: file exists",
        "hint: set EDGEFILL_DATA_DIR to a directory that can be written",
    ]


def test_pictures_that_no_process_decodes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.decoding.worker._BOOT", "raise SystemExit(3)")
    assert main(["serve", "--port", "0"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    why = "a process that decodes pictures did not start: "
    assert error.startswith(f"error: pictures cannot be decoded: {why}")


def test_an_application_that_does_not_start(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvicorn ends the process with a code of its own then."""

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no"})

    monkeypatch.setattr("service.app.create_app", lambda *_, **__: broken)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main(["serve", "--port", "0"]) == 1
    assert "error: the service did not start; the log above says why" in capsys.readouterr().err


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_whose_exception_was_lost(how: signal.Signals) -> None:
    before = signal.getsignal(how)
    stops: Any = (KeyboardInterrupt, SystemExit)
    with _stoppable() as look:
        look()
        with contextlib.suppress(*stops):
            signal.raise_signal(how)
        with pytest.raises(stops):
            look()
    assert signal.getsignal(how) is before


@pytest.mark.parametrize(("how", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_one_that_is_stopped_while_it_starts(
    how: signal.Signals, code: int, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "serve", "--port", "0"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "EDGEFILL_DATA_DIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        until(lambda: children.read_text())
        engine = int(children.read_text().split()[0])
        process.send_signal(how)
        _, log = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code
    assert log == ("" if code == 0 else "error: interrupted\n")
    assert gone(engine)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_real_process_serves_and_stops(how: signal.Signals, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "EDGEFILL_API_KEY": "misspelt"}
    process = subprocess.Popen(
        [sys.executable, "-c", WITH_STUB],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        log, url = "", None
        deadline = time.monotonic() + 20
        assert process.stderr is not None
        while url is None and time.monotonic() < deadline:
            log += process.stderr.readline()
            url = re.search(r"serving: (http://127\.0\.0\.1:\d+) ", log)
        assert url is not None, log
        with httpx.Client(base_url=url.group(1), verify=False, timeout=20) as client:
            while client.get("/readyz").status_code != 200:
                time.sleep(0.05)
            assert "server" not in client.get("/livez").headers
        process.send_signal(how)
        out, rest = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, rest
    assert out == ""
    assert "unknown variable: EDGEFILL_API_KEY;" in log
    assert "Traceback" not in log + rest


def test_a_second_server_on_the_same_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEFILL_DATA_DIR", str(tmp_path))
    with sole_server(tmp_path):
        assert main(["serve", "--port", "0"]) == 1
    assert f"in use by the server with process id {os.getpid()}" in capsys.readouterr().err
    with sole_server(tmp_path):  # whoever held it before
        pass


@pytest.mark.parametrize("url", ["foo", "mysql://a/b", "sqlite:////proc/none/x.db"])
def test_a_job_store_that_cannot_be_used_is_one_sentence(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEFILL_DATABASE_URL", url)
    assert main(["serve", "--port", "0"]) == 1
    error = capsys.readouterr().err
    assert "error: jobs cannot be kept: " in error
    assert "Traceback" not in error
