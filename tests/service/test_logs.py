"""Log lines: their two forms, the job they are about, and what must never be in them."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.logs import MAX_CHARACTERS, Form, Level, bind_job, configure, redact
from tests.service.test_serve import ROOT, WITH_STUB

logger = logging.getLogger("service.test")


def begin(form: Form = "json", level: Level = "info") -> io.StringIO:
    stream = io.StringIO()
    configure(form=form, level=level, stream=stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_has_one_object_per_line() -> None:
    stream = begin()
    logger.info("two\nlines of %s", "text", extra={"seconds": 1.5, "where": ("a", "b")})
    logger.warning("nothing else")
    one, other = lines(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", one.pop("time"))
    assert one == {
        "level": "info",
        "logger": "service.test",
        "message": "two\nlines of text",
        "seconds": 1.5,
        "where": "('a', 'b')",
    }
    assert {name for name in other} == {"time", "level", "logger", "message"}


def test_extras_cannot_take_the_place_of_fields() -> None:
    stream = begin()
    logger.info("true", extra={"level": "critical", "time": "never", "job": 5})
    (line,) = lines(stream)
    assert (line["level"], line["message"]) == ("info", "true")
    assert line["time"] != "never"
    assert "job" not in line


def test_exceptions() -> None:
    stream = begin()
    try:
        raise ValueError("from https://name:word@host.example/a?signature=secret")
    except ValueError:
        logger.exception("it broke")
    (line,) = lines(stream)
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: from https://host.example/a?...")


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_line_that_is_badly_made_is_not_lost(form: Form) -> None:
    stream = begin(form)
    logger.warning("%d pictures", "many")
    assert "%d pictures ('many',)" in stream.getvalue()


def test_text_is_one_line_with_everything_else_indented() -> None:
    stream = begin("text")
    logger.warning("a\n2026-01-01T00:00:00.000Z INFO service.auth: forged\r\x1b[2J")
    try:
        raise ValueError("bad")
    except ValueError:
        logger.exception("it broke")
    written = stream.getvalue()
    first, forged, broke, *trace = written.splitlines()
    assert re.fullmatch(r"2\S+Z WARNING service\.test: a", first)
    assert forged == "    2026-01-01T00:00:00.000Z INFO service.auth: forged\\x0d\\x1b[2J"
    assert broke.endswith("ERROR service.test: it broke")
    assert trace[0] == "    Traceback (most recent call last):"
    assert all(line.startswith("    ") for line in trace)


def test_the_job_is_on_every_line_of_its_task_and_on_no_other() -> None:
    stream = begin()

    async def work(number: int) -> None:
        bind_job(number)
        await asyncio.sleep(0)
        logger.info("in %d", number)
        await asyncio.to_thread(logger.info, "in %d", number)

    async def both() -> None:
        await asyncio.gather(*(asyncio.create_task(work(number)) for number in (1, 2, 3)))
        logger.info("outside")

    asyncio.run(both())
    *inside, outside = lines(stream)
    assert len(inside) == 6
    assert all(line["message"] == f"in {line['job']}" for line in inside)
    assert "job" not in outside


def test_text_names_the_job_once() -> None:
    stream = begin("text")

    async def work() -> None:
        bind_job(1234)
        logger.info("job 1234: done")
        logger.info("a picture could not be fetched")

    asyncio.run(work())
    one, other = stream.getvalue().splitlines()
    assert one.endswith(": job 1234: done")
    assert other.endswith(": job 1234: a picture could not be fetched")


def test_levels() -> None:
    ours = ("service.a", "engine.b")
    theirs = ("httpcore", "asyncio", "uvicorn.error")
    levels: dict[Level, int] = {"debug": 7, "info": 5, "warning": 0}
    for level, expected in levels.items():
        stream = begin(level=level)
        for name in (*ours, *theirs):
            logging.getLogger(name).info("said")
        for name in (*ours, *theirs):
            logging.getLogger(name).debug("whispered")
        found = lines(stream)
        assert len(found) == expected
        assert not any(line["message"] == "whispered" for line in found if line["logger"] in theirs)


def test_warnings_are_lines_too() -> None:
    stream = begin()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        logging.captureWarnings(False)
    (line,) = lines(stream)
    assert line["logger"] == "py.warnings"
    assert "DeprecationWarning: old" in line["message"]


def test_lines_are_not_endless() -> None:
    stream = begin()
    logger.info("%s", "A" * 1_000_000)
    (line,) = lines(stream)
    assert len(line["message"]) < MAX_CHARACTERS + 100
    assert line["message"].endswith("[992000 characters cut]")


def test_the_access_log_has_no_queries() -> None:
    stream = begin()
    access = logging.getLogger("uvicorn.access")
    values = ("127.0.0.1:5", "GET", "/outputs/a.png?key=secret", "1.1", 200)
    access.info('%s - "%s %s HTTP/%s" %d', *values)
    (line,) = lines(stream)
    assert line.pop("time")
    assert line == {
        "level": "info",
        "logger": "uvicorn.access",
        "message": "127.0.0.1:5 GET /outputs/a.png 200",
        "client": "127.0.0.1:5",
        "method": "GET",
        "path": "/outputs/a.png",
        "status": 200,
    }


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("to https://a.example/b?X-Amz-Signature=1#c failed", "to https://a.example/b?... failed"),
        ("'http://u:p@a.example:8080/b'", "'http://a.example:8080/b'"),
        ("<https://a.example?q=1>, b", "<https://a.example?...>, b"),
        ("postgresql+psycopg://u:p@db/name?password=x", "postgresql+psycopg://db/name?..."),
        ("https://u:p@ss@a.example/@b", "https://a.example/@b"),
        ("https://a.example/#token=1", "https://a.example/?..."),
        ("https://a.example/b is fine", "https://a.example/b is fine"),
        ("12:30 a/b?c=d", "12:30 a/b?c=d"),
    ],
)
def test_urls_are_cut(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown


SECRET = "s3cr3t"
PIECE = st.text("abcXYZ019-._~%:=&;@+,", max_size=12)


@given(before=st.text(max_size=5), user=PIECE, path=PIECE, query=PIECE, mark=st.sampled_from("?#"))
def test_no_user_and_no_query_is_left(
    before: str, user: str, path: str, query: str, mark: str
) -> None:
    url = f"https://{user}{SECRET}@a.example/{path}{mark}{query}{SECRET}"
    assert SECRET not in redact(f"{before} {url}")
    assert "a.example" in redact(f"{before} {url}")


def test_a_real_process_logs_nothing_but_objects(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "EDGEFILL_LOG_FORMAT": "json",
        "EDGEFILL_API_KEY": "misspelt",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", WITH_STUB],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    found = []
    try:
        assert process.stderr is not None
        for line in process.stderr:
            found.append(json.loads(line))
            if "startup complete" in found[-1]["message"]:
                process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert found[0]["level"] == "warning"
    assert found[0]["message"].startswith("unknown variable: EDGEFILL_API_KEY;")
    assert {"service.commands.serve", "uvicorn.error"} <= {line["logger"] for line in found}
