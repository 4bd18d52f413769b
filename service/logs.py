"""The service's log: lines for people, or one JSON object per line; which job a line is about.

No line holds a key, a prompt or a picture: nothing that logs is given one. URLs are cut here to
what is no secret, whoever logs them: user information and query (where signatures are) go.

    configure(form="json", level="info")
    bind_job(job.id)          # every line that this task and its threads log from now on has it
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from contextvars import ContextVar
from typing import Any, Final, Literal, TextIO, TypeAlias

Form: TypeAlias = Literal["text", "json"]
Level: TypeAlias = Literal["debug", "info", "warning", "error"]

OURS: Final = ("service", "engine")
"""Whose lines below ``info`` may be asked for; those of libraries show what goes over the wire."""

MAX_CHARACTERS: Final = 8000
"""The longest message or traceback; the rest is cut."""

_job: ContextVar[int | None] = ContextVar("edgefill_job", default=None)

_URL: Final = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]*://)([^\s\"'<>\\]*)")
_CONTROL: Final = {code: f"\\x{code:02x}" for code in (*range(32), 127) if code not in (9, 10)}
_STANDARD: Final = frozenset(
    {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "color_message"}
)
_OWN: Final = frozenset({"time", "level", "logger", "message", "job", "exception"})


def bind_job(job_id: int) -> None:
    """Say which job the current task, and the threads and tasks it starts, work on."""
    _job.set(job_id)


def bound_job() -> int | None:
    """The job that the current task works on."""
    return _job.get()


def configure(*, form: Form, level: Level, stream: TextIO | None = None) -> None:
    """Send every log line and warning of this process to one stream.

    Args:
        form: ``"text"`` for people, ``"json"`` for machines.
        level: What is less important is left out.
        stream: Where to; standard error where None.
    """
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    number: int = logging.getLevelNamesMapping()[level.upper()]
    root.setLevel(max(number, logging.INFO))
    for name in OURS:
        logging.getLogger(name).setLevel(number)
    logging.captureWarnings(True)


def redact(text: str) -> str:
    """The text, its URLs without user information, query and fragment."""
    return _URL.sub(_cut_url, text)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: ``time`` (RFC 3339, UTC), ``level``, ``logger``, ``message``;
    ``job`` where the line is about one, ``exception`` where there was one, and what else the
    record was given by ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        job = bound_job()
        if job is not None:
            line["job"] = job
        for name, value in {**_access(record), **vars(record)}.items():
            if name not in _STANDARD and name not in _OWN:
                plain = value is None or isinstance(value, bool | int | float)
                line[name] = value if plain else _short(redact(str(value)))
        if trace := _trace(self, record):
            line["exception"] = trace
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """``time level logger: message``; further lines of a message are indented, so that none can be
    taken for a line of the log."""

    def format(self, record: logging.LogRecord) -> str:
        message, job = _message(record), bound_job()
        if job is not None and str(job) not in message:
            message = f"job {job}: {message}"
        text = f"{_time(record)} {record.levelname} {record.name}: {message}"
        if trace := _trace(self, record):
            text += "\n" + trace
        return text.translate(_CONTROL).replace("\n", "\n    ")


def _time(record: logging.LogRecord) -> str:
    begin = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{begin}.{int(record.msecs):03d}Z"


def _message(record: logging.LogRecord) -> str:
    access = _access(record)
    if access:
        return "{client} {method} {path} {status}".format_map(access)
    try:
        text = _handshake(record) or record.getMessage()
    except (TypeError, ValueError):  # a defect of who logs must not lose the line
        text = f"{record.msg} {record.args!r}"
    return _short(redact(text))


def _access(record: logging.LogRecord) -> dict[str, Any]:
    """The values of a line of uvicorn's access log; the path without its query."""
    arguments = record.args
    if record.name != "uvicorn.access" or not isinstance(arguments, tuple) or len(arguments) != 5:
        return {}
    client, method, target, _, status = arguments
    path = str(target).partition("?")[0]
    return {"client": client, "method": method, "path": _short(redact(path)), "status": status}


def _handshake(record: logging.LogRecord) -> str:
    """uvicorn's line about the handshake of a WebSocket, the path without its query."""
    arguments, form = record.args, str(record.msg)
    if record.name != "uvicorn.error" or '"WebSocket %s"' not in form:
        return ""
    if not isinstance(arguments, tuple) or len(arguments) < 2:
        return ""
    client, target, *rest = arguments
    return form % (client, str(target).partition("?")[0], *rest)


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = []
    if record.exc_info and record.exc_info[0] is not None:
        parts.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        parts.append(record.stack_info)
    text = redact("\n".join(parts))
    if len(text) > MAX_CHARACTERS:  # the last lines say what it was
        text = f"[{len(text) - MAX_CHARACTERS} characters cut]" + text[-MAX_CHARACTERS:]
    return text


def _short(text: str) -> str:
    if len(text) <= MAX_CHARACTERS:
        return text
    return f"{text[:MAX_CHARACTERS]}[{len(text) - MAX_CHARACTERS} characters cut]"


def _cut_url(match: re.Match[str]) -> str:
    scheme, rest = match.groups()
    cut = re.search(r"[?#]", rest)
    rest = rest if cut is None else rest[: cut.start()] + "?..."
    authority, slash, path = rest.partition("/")
    return scheme + authority.rpartition("@")[2] + slash + path
