"""Deadlines over HTTP: what was chosen is told, and what cannot be in time is refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from engine import DeadlineMissed, Engine, InpaintRequest, Plan
from engine.job import draft
from engine.planner import Margin
from engine.ticket import Ticket
from service.app import create_app
from service.engine_process import EngineProcess
from service.engine_process.crossing import (
    describe_error,
    restore_error,
    unwrap_request,
    unwrap_result,
    wrap_request,
    wrap_result,
)
from service.engine_process.wire import close_all
from service.settings import Settings
from tests.service.conftest import data_uri
from tests.service.engine_process.helpers import a_request, same
from tests.service.live import Origin, serving
from tests.service.stub_engine import StubEngine, fill
from tests.service.test_queue import PATH, Receiver, fetched

REFUSED = "the quickest way takes about"


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine.open(threads=1) as opened:
        opened.inpaint(a_request(side=128))
        yield opened


@pytest.fixture
def body(photo: bytes, mask: bytes) -> dict[str, Any]:
    pictures = {"init_image": data_uri(photo), "mask_image": data_uri(mask)}
    sizes = {"width": 128, "height": 128, "strength": 1, "region": "full"}
    return {"key": "k", "prompt": "a cat", "seed": 7, **sizes, **pictures}


def plant(engine: Engine, seconds: float, *sides: int) -> None:
    """Make the engine believe that a UNet call takes so long, whatever went before."""
    engine._loop._planner._margin = Margin()
    for side in sides:
        for _ in range(16):
            engine.costs.add("unet", pixels=side * side, rows=2, seconds=seconds)


def test_a_loose_deadline_changes_no_pixel(
    settings: Settings, body: dict[str, Any], engine: Engine
) -> None:
    with serving(create_app(settings, engine)) as client:
        without = client.post(PATH, json=body).json()
        loose = client.post(PATH, json=body | {"deadline_ms": 600_000}).json()
        pictures = [client.get(a["output"][0]).content for a in (without, loose)]
    assert pictures[0] == pictures[1]
    assert without["meta"]["deadline_ms"] is None
    assert "plan" not in without["meta"]
    assert loose["meta"]["deadline_ms"] == 600_000
    plan = loose["meta"]["plan"]
    assert plan.pop("estimated_ms") >= 1
    assert plan == {"steps": 8, "working_size": [128, 128], "vae": "full", "reduced": False}


@pytest.mark.parametrize("asked", [None, 20])
def test_a_tight_deadline_is_kept_with_fewer_steps(
    settings: Settings, body: dict[str, Any], engine: Engine, asked: int | None
) -> None:
    plant(engine, 1.0, 128)
    with serving(create_app(settings, engine)) as client:
        asks = body | {"deadline_ms": 7000, "num_inference_steps": asked}
        response = client.post(PATH, json=asks)
    assert response.status_code == 200
    meta = response.json()["meta"]
    assert 4 <= meta["steps"] == meta["plan"]["steps"] < 7
    assert meta["plan"]["reduced"]
    assert meta["plan"]["estimated_ms"] <= 7000


@pytest.mark.parametrize("waits", [True, False])
def test_what_cannot_be_in_time_is_told_at_once(
    settings: Settings, body: dict[str, Any], pictures: Origin, engine: Engine, waits: bool
) -> None:
    plant(engine, 1000.0, 64, 96, 128)
    receiver = Receiver(pictures)
    asks = {"deadline_ms": 60_000, "webhook": receiver.url, "instant_response": not waits}
    begin = time.monotonic()
    with serving(create_app(settings, engine)) as client:
        response = client.post(PATH, json=body | asks)
        if waits:
            assert response.status_code == 503
            assert response.headers["retry-after"]
            told = response.json()
        else:
            told = fetched(client, response.json())
        assert receiver.taken.wait(10)
        metrics = client.get("/metrics").text
    assert time.monotonic() - begin < 30
    assert REFUSED in told["message"]
    assert told["message"].endswith("the picture cannot be made before its deadline.")
    ended = 'edgefill_jobs_ended_total{kind="inpaint",outcome="cancelled"} '
    assert f"{ended}1.0" in metrics


def test_the_engine_gets_what_is_left(settings: Settings, body: dict[str, Any]) -> None:
    """Not what the queue has used up, and not what storing an answer will take."""
    stub = StubEngine(delay=0.3)
    one = settings.model_copy(update={"slots": 1})
    with serving(create_app(one, stub)) as client:
        client.post(PATH, json=body)
        client.post(PATH, json=body | {"instant_response": True})
        answer = client.post(PATH, json=body | {"deadline_ms": 20_000}).json()
    assert answer["status"] == "success"
    first, _, last = stub.requests
    assert first.deadline is None
    assert last.deadline is not None
    assert 5 < last.deadline < 20 - 0.2


class LateEngine(StubEngine):
    """Says that it cannot."""

    def submit(self, request: InpaintRequest, **options: Any) -> Ticket:
        ticket = Ticket()
        ticket.settle(DeadlineMissed("the picture was not made before its deadline"))
        return ticket


def test_the_engines_own_words_are_the_services(settings: Settings, body: dict[str, Any]) -> None:
    with serving(create_app(settings, LateEngine())) as client:
        response = client.post(PATH, json=body | {"deadline_ms": 5000})
    assert response.status_code == 503
    assert response.json()["message"] == "The picture was not made before its deadline."


def test_deadlines_and_plans_cross() -> None:
    with EngineProcess.open(threads=1) as process:
        request = a_request(side=128)
        alone, loose = process.inpaint(request), process.inpaint(replace(request, deadline=500.0))
        same(loose, alone)
        assert alone.plan is None
        assert loose.plan is not None
        assert (loose.plan.working_size, loose.plan.reduced) == (loose.working_size, False)
        with pytest.raises(DeadlineMissed, match="before its deadline$"):
            process.inpaint(replace(request, deadline=0.004))


def test_what_crosses_comes_out_as_it_went_in() -> None:
    bundle = StubEngine().bundle
    made = draft(a_request(deadline=3.0), bundle)
    for left in (None, 2.5):
        fd = wrap_request(made, "auto", left=left)
        assert unwrap_request(fd).deadline == left
        close_all([fd])
    plan = Plan(
        num_inference_steps=4, working_size=(96, 64), vae="fast", estimated=0.25, reduced=True
    )
    for chosen in (None, plan):
        fd = wrap_result(replace(fill(a_request()), plan=chosen))
        assert unwrap_result(fd, submitted=0.0, prepared=0.0).plan == chosen
        close_all([fd])
    error = restore_error(describe_error(DeadlineMissed("too late")))
    assert (type(error), str(error)) == (DeadlineMissed, "too late")
