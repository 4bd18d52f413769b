"""The parts of the engine process that need no process: line, patience, wire, errors."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engine import (
    BundleError,
    DeviceLost,
    EngineError,
    InputError,
    RequestCancelled,
    RuntimeUnavailable,
    SessionError,
    TensorMismatch,
)
from engine.bundle import Bundle
from engine.engine import DEFAULT_BUNDLE
from engine.job import draft
from service.engine_process.crossing import describe_error, restore_error
from service.engine_process.line import Entry, Line, ProcessTicket
from service.engine_process.patience import BACK_OFF, FIRST_STARTS, LATER_STARTS, Patience
from service.engine_process.wire import Link, WireError, unwrap, wrap
from tests.service.engine_process.helpers import a_request

MADE = draft(a_request(), Bundle.open(DEFAULT_BUNDLE))


def an_entry() -> Entry:
    ticket = ProcessTicket(lambda ticket: None)
    return Entry(ticket=ticket, draft=MADE, region="auto", submitted=0.0, prepared=0.0)


def enter_all(line: Line) -> list[Entry]:
    entered = []
    while (entry := line.next()) is not None:
        line.enter(entry)
        entered.append(entry)
    return entered


def test_the_line_keeps_its_order_and_its_window() -> None:
    line, entries = Line(window=3), [an_entry() for _ in range(5)]
    for entry in entries:
        line.join(entry)
    assert enter_all(line) == entries[:3]
    line.withdraw(entries[1])
    assert enter_all(line) == [entries[3]]
    assert line.find(entries[4].ticket.number) is entries[4]
    assert line.find(entries[1].ticket.number) is None
    assert line.drain() == [entries[0], entries[2], entries[3], entries[4]]
    assert line.next() is None


def test_suspects_are_tried_alone_and_the_poisonous_one_is_found() -> None:
    line, (first, poison, third, late) = Line(window=8), [an_entry() for _ in range(4)]
    for entry in (first, poison, third):
        line.join(entry)
    enter_all(line)
    assert line.crash() == []
    line.join(late)
    assert enter_all(line) == [first]
    line.withdraw(first)
    assert enter_all(line) == [poison]
    assert line.crash() == []
    assert enter_all(line) == [poison]
    assert line.crash() == [poison]
    assert poison.ticket.attempts == 3
    assert enter_all(line) == [third]
    line.withdraw(third)
    assert enter_all(line) == [late]
    assert late.ticket.attempts == 1


def test_the_last_suspect_has_no_company() -> None:
    line, (suspect, late) = Line(window=8), [an_entry() for _ in range(2)]
    line.join(suspect)
    enter_all(line)
    line.crash()
    line.join(late)
    assert enter_all(line) == [suspect]
    assert line.next() is None


def test_a_cancelled_suspect_leaves() -> None:
    line, entry = Line(window=1), an_entry()
    line.join(entry)
    enter_all(line)
    entry.ticket.cancel()
    assert line.crash() == [entry]


def test_back_off_grows_until_something_is_finished() -> None:
    patience = Patience(hang_seconds=1, start_seconds=60)
    waits = []
    for _ in range(len(BACK_OFF) + 1):
        patience.started(100.0)
        patience.ready(100.0, "cpu")
        waits.append(patience.died(101.0) - 101.0)
    assert waits == [*BACK_OFF, BACK_OFF[-1]]
    patience.finished()
    assert patience.died(101.0) == 101.0
    patience.ready(200.0, "cpu")
    assert patience.died(300.0) == 300.0  # it was sound for long


def test_starts_are_not_tried_for_ever() -> None:
    patience = Patience(hang_seconds=None, start_seconds=60)
    for i in range(FIRST_STARTS):
        assert not patience.exhausted(), i
        patience.died(1.0)
    assert patience.exhausted()
    patience.ready(2.0, "cpu")
    for i in range(LATER_STARTS + 1):
        assert not patience.exhausted(), i
        patience.died(3.0)
    assert patience.exhausted()


def test_silence_is_judged_only_with_requests_inside() -> None:
    patience = Patience(hang_seconds=2.0, start_seconds=5.0)
    patience.started(0.0)
    for i in range(1, 50):
        assert patience.overdue(i / 10, busy=False) is None
    assert patience.overdue(5.1, busy=False) == "was not ready after 5 s"
    patience.ready(6.0, "cuda")
    patience.alive(6.0)
    for i in range(60, 80):
        assert patience.overdue(i / 10, busy=True) is None
    assert patience.overdue(8.1, busy=False) is None
    assert patience.overdue(8.2, busy=True) == "gave no sign of life for 2 s"


def test_a_watcher_that_was_stopped_blames_nobody() -> None:
    patience = Patience(hang_seconds=2.0, start_seconds=5.0)
    patience.started(0.0)
    assert patience.overdue(0.2, busy=False) is None
    assert patience.overdue(100.0, busy=False) is None
    patience.ready(100.0, "cpu")
    patience.alive(100.0)
    assert patience.overdue(200.0, busy=True) is None
    assert patience.overdue(200.5, busy=True) is None


@pytest.fixture
def links() -> Iterator[tuple[Link, Link, socket.socket]]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        yield Link(left), Link(right), left


def test_messages_and_parcels_cross(links: tuple[Link, Link, socket.socket]) -> None:
    left, right, _ = links
    arrays: dict[str, npt.NDArray[Any]] = {
        "images": np.arange(24, dtype=np.uint8).reshape(2, 3, 4)[:, ::-1],
        "latents": np.linspace(-1, 1, 8, dtype=np.float32),
        "nothing": np.zeros((0, 3), np.uint8),
    }
    fd = wrap({"prompt": "\N{CAT FACE}", "number": 0.1}, {**arrays, "left out": None})
    left.send({"kind": "run"}, [fd])
    os.close(fd)
    received = right.receive()
    assert received is not None
    message, (other,) = received
    assert message == {"kind": "run"}
    assert not os.get_inheritable(other)
    values, found = unwrap(other)
    os.close(other)
    assert values == {"prompt": "\N{CAT FACE}", "number": 0.1}
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    left.close()
    assert right.receive() is None


def test_what_a_dead_peer_said_is_still_heard(links: tuple[Link, Link, socket.socket]) -> None:
    left, right, _ = links
    right.send({"kind": "run"})  # never read: the kernel tells so when the peer goes
    left.send({"kind": "done"})
    left.close()
    assert right.receive() == ({"kind": "done"}, [])
    assert right.receive() is None


def test_nonsense_is_refused(links: tuple[Link, Link, socket.socket]) -> None:
    left, right, raw = links
    for packet in (b"\x00", b"[1]"):
        raw.send(packet)
        with pytest.raises(WireError):
            right.receive()
    with pytest.raises(WireError, match="at most"):
        left.send({"text": "x" * 200_000})


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ({"values": {}, "arrays": [["a", "uint8", [1000, 1000]]]}, b"\0" * 10),
        ({"values": {}, "arrays": [["a", "object", [1]]]}, b"\0" * 8),
        ({"values": {}}, b""),
        (None, b""),
    ],
)
def test_a_parcel_that_is_not_whole_is_refused(head: object, body: bytes) -> None:
    text = json.dumps(head).encode()
    fd = os.memfd_create("test")
    try:
        with pytest.raises(WireError):
            unwrap(fd)
        os.pwrite(fd, struct.pack("<Q", len(text)) + text + body, 0)
        with pytest.raises(WireError):
            unwrap(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "kind",
    [
        EngineError,
        BundleError,
        RequestCancelled,
        SessionError,
        RuntimeUnavailable,
        TensorMismatch,
        DeviceLost,
    ],
)
def test_errors_keep_their_type(kind: type[EngineError]) -> None:
    restored = restore_error(describe_error(kind("what was wrong")))
    assert type(restored) is kind
    assert str(restored) == "what was wrong"


def test_input_errors_keep_their_field_and_strangers_are_named() -> None:
    restored = restore_error(describe_error(InputError("strength", "is 2")))
    assert isinstance(restored, InputError)
    assert (restored.field, restored.message) == ("strength", "is 2")

    class OurOwn(TensorMismatch):
        pass

    assert type(restore_error(describe_error(OurOwn("x")))) is TensorMismatch
    stranger = restore_error(describe_error(ZeroDivisionError("x")))
    assert type(stranger) is SessionError
    assert "ZeroDivisionError('x')" in str(stranger)
