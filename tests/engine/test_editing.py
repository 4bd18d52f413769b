"""Editing sessions: the newest wins, and every edit ends once and in order."""

from __future__ import annotations

import contextlib
import gc
import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engine import Engine, EngineError, InpaintRequest, InputError, RequestCancelled, Ticket
from engine.editing import EditEvent, EditingSession
from engine.ticket import OnStep

Picture = npt.NDArray[np.uint8]


def drive(engine: Engine) -> None:
    while engine.step():
        pass


def ends(events: list[EditEvent]) -> list[tuple[int, str]]:
    return [(event.edit, event.kind) for event in events if event.kind != "preview"]


def test_a_newer_edit_stops_the_older_one_at_its_next_step(
    manual: Engine, picture: Picture, hole: Picture
) -> None:
    events: list[EditEvent] = []
    with manual.edit(picture, on_event=events.append) as session:
        first = session.change(mask=hole, prompt="a red apple", seed=1, num_inference_steps=20)
        for _ in range(3):
            manual.step()
        second = session.change(prompt="the blue sky", num_inference_steps=4)
        drive(manual)
        with pytest.raises(RequestCancelled):
            first.result(0)
        assert session.result(0) is second.result(0)
    assert [(e.edit, e.step, e.steps) for e in events if e.kind == "preview"] == [
        *((1, step, 20) for step in (1, 2, 3)),
        *((2, step, 4) for step in (1, 2, 3, 4)),
    ]
    assert ends(events) == [(1, "cancelled"), (2, "result")]
    kinds = [(event.edit, event.kind) for event in events]
    assert kinds.index((1, "cancelled")) == 3


def test_what_is_not_changed_stays(
    engine: Engine, ask: Any, picture: Picture, hole: Picture
) -> None:
    with engine.edit(picture) as session:
        session.change(mask=hole, prompt="a blue dog", seed=1, num_inference_steps=4).result(20)
        made = session.change(prompt="a red apple").result(20)
    wanted = engine.inpaint(ask(prompt="a red apple", seed=1, num_inference_steps=4))
    assert np.array_equal(made.images, wanted.images)


def test_a_refused_change_changes_nothing(manual: Engine, picture: Picture, hole: Picture) -> None:
    events: list[EditEvent] = []
    with manual.edit(picture, on_event=events.append) as session:
        with pytest.raises(InputError, match="mask: is needed"):
            session.change(prompt="a cat")
        session.change(mask=hole, prompt="a cat", seed=3)
        for bad in ({"strength": 2.0}, {"scheduler": "none such"}):
            with pytest.raises(InputError):
                session.change(**bad)  # type: ignore[arg-type]
        drive(manual)
        assert session.result(0).seed == 3
    assert ends(events) == [(1, "result")]


def test_a_listener_may_change(manual: Engine, picture: Picture, hole: Picture) -> None:
    events: list[EditEvent] = []

    def on_event(event: EditEvent) -> None:
        events.append(event)
        if event.kind == "preview" and event.edit < 3:
            session.change(prompt=f"edit {event.edit + 1}")

    with manual.edit(picture, on_event=on_event) as session:
        session.change(mask=hole, prompt="edit 1", seed=1)
        drive(manual)
    assert ends(events) == [(1, "cancelled"), (2, "cancelled"), (3, "result")]


def test_events_can_be_read(manual: Engine, picture: Picture, hole: Picture) -> None:
    with manual.edit(picture) as session:
        events = session.events()
        for prompt in ("a cat", "a dog", "a red apple"):
            session.change(mask=hole, prompt=prompt, seed=1, num_inference_steps=6)
            manual.step()
            manual.step()
        drive(manual)
    seen = list(events)
    assert ends(seen) == [(1, "cancelled"), (2, "cancelled"), (3, "result")]
    assert [event.edit for event in seen if event.kind == "preview"] == []  # nobody read in time


def test_events_can_be_read_meanwhile(engine: Engine, picture: Picture, hole: Picture) -> None:
    with engine.edit(picture) as session:
        events = session.events()
        session.change(mask=hole, prompt="a cat", seed=1, num_inference_steps=200)
        first = next(events)
        assert (first.edit, first.kind, first.steps) == (1, "preview", 200)
        assert first.preview is not None
        assert first.preview().dtype == np.uint8


def test_events_that_nobody_reads_any_more_are_not_kept(
    manual: Engine, picture: Picture, hole: Picture
) -> None:
    def kept(seed: int) -> int:
        gc.collect()
        events = [thing for thing in gc.get_objects() if type(thing) is EditEvent]
        return sum(event.result is not None and event.result.seed == seed for event in events)

    with manual.edit(picture) as session:
        read, dropped = session.events(), session.events()
        del dropped
        session.change(mask=hole, prompt="a cat", seed=47111, num_inference_steps=2)
        drive(manual)
        assert kept(47111) == 1
        assert next(read).kind == "result"
        del read
        session.change(seed=47112)
        drive(manual)
        assert kept(47112) == 0


def test_an_engine_that_is_faster_than_who_asks(picture: Picture, hole: Picture) -> None:
    class Eager:
        def submit(self, request: InpaintRequest, *, on_step: OnStep | None = None) -> Ticket:
            assert on_step is not None
            on_step(1, 2, lambda: picture)
            return Ticket()

    events: list[EditEvent] = []
    with EditingSession(Eager(), picture, on_event=events.append) as session:
        session.change(mask=hole, prompt="a cat")
        session.change(prompt="a dog")
    kinds = [(event.edit, event.kind) for event in events]
    assert kinds == [(1, "preview"), (1, "cancelled"), (2, "preview"), (2, "cancelled")]


def test_closing_cancels(manual: Engine, picture: Picture, hole: Picture) -> None:
    events: list[EditEvent] = []
    session = manual.edit(picture, on_event=events.append)
    with pytest.raises(EngineError, match="nothing was asked for"):
        session.result(0)
    ticket = session.change(mask=hole, prompt="a cat", seed=1)
    manual.step()
    session.close()
    session.close()
    drive(manual)
    assert ends(events) == [(1, "cancelled")]
    with pytest.raises(RequestCancelled):
        ticket.result(0)
    with pytest.raises(EngineError, match="session is closed"):
        session.change(prompt="a dog")


def test_many_threads_at_once(engine: Engine, picture: Picture, hole: Picture) -> None:
    hammer(engine.edit, picture, hole)


def hammer(edit: Any, picture: Picture, hole: Picture) -> None:
    """Changes from four threads: each edit ends once, the ends are in order, the last one wins."""
    events: list[EditEvent] = []
    session: EditingSession = edit(picture, on_event=events.append)

    def change(name: int) -> None:
        for i in range(15):
            ticket = session.change(mask=hole, prompt=f"{name} {i}", seed=i, num_inference_steps=4)
            if i % 5 == 4:
                with contextlib.suppress(RequestCancelled):
                    ticket.result(20)

    threads = [threading.Thread(target=change, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = session.result(20)
    session.close()
    ended = ends(events)
    assert [number for number, _ in ended] == list(range(1, 61))
    assert ended[-1] == (60, "result")
    assert events[-1].result is last
    over: set[int] = set()
    for event in events:
        assert event.edit not in over
        if event.kind != "preview":
            over.add(event.edit)
