"""The numbers at ``/metrics`` move by exactly what happened."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine import EngineError, InputError
from service.app import create_app
from service.dispatch import Dispatcher
from service.engine_process import EngineProcess
from service.errors import ApiError
from service.gauges import FRESH_SECONDS, STATES, Gauges
from service.jobs import JobStore, Limits, StoreError, default_url
from service.metrics import STAGES, Metrics
from service.schema import KINDS, Text2ImgBody
from service.settings import Settings
from tests.engine.tiny import make_bundle
from tests.service.conftest import data_uri
from tests.service.engine_process.helpers import kill, until
from tests.service.live import Origin, serving
from tests.service.scrape import moved, series
from tests.service.stub_engine import StubEngine
from tests.service.test_jobs import Clock, new_job

API = "/api/v6/realtime"
NOT_RUN = ("paste", "safety_checker")  # by the stub, which says 0 seconds or nothing
THROUGH = {f"edgefill_stage_seconds_count:{stage}": 1.0 for stage in STAGES if stage not in NOT_RUN}
READ = {f"edgefill_stage_seconds_count:{stage}": 1.0 for stage in ("waiting", "fetch", "decode")}
WAITED = {"edgefill_client_wait_seconds_count": 1.0}


def accepted(kind: str = "inpaint") -> dict[str, float]:
    return {f"edgefill_jobs_accepted_total:{kind}": 1.0}


def ended(outcome: str, kind: str = "inpaint") -> dict[str, float]:
    return {f"edgefill_jobs_ended_total:{kind}:{outcome}": 1.0}


def refused(reason: str, count: float = 1.0) -> dict[str, float]:
    return {f"edgefill_requests_refused_total:{reason}": count}


@pytest.fixture
def body(photo: bytes, mask: bytes) -> dict[str, Any]:
    pictures = {"init_image": data_uri(photo), "mask_image": data_uri(mask)}
    return {"key": "k", "prompt": "a cat", "width": 96, "height": 64, **pictures}


def test_a_picture_that_is_waited_for(settings: Settings, body: dict[str, Any]) -> None:
    with serving(create_app(settings, StubEngine())) as client:
        before = series(client)
        assert client.post(f"{API}/inpaint", json=body).status_code == 200
        after = series(client)
    assert moved(before, after) == THROUGH | WAITED | accepted() | ended("done")
    assert after["edgefill_stage_seconds_sum:engine_queue"] == 1.0
    assert after["edgefill_stage_seconds_sum:unet"] == 0.1


def test_pictures_that_are_fetched_later(settings: Settings, body: dict[str, Any]) -> None:
    with serving(create_app(settings, StubEngine())) as client:
        for kind in KINDS:
            before = series(client)
            asked = client.post(f"{API}/{kind}", json=body | {"instant_response": True}).json()
            done = f"edgefill_jobs_ended_total:{kind}:done"
            until(lambda done=done: series(client)[done] == 1)
            assert client.post(f"{API}/fetch/{asked['id']}", json={"key": "k"}).status_code == 200
            assert moved(before, series(client)) == (THROUGH | accepted(kind) | ended("done", kind))


def test_what_becomes_no_job(settings: Settings, body: dict[str, Any]) -> None:
    keyed = settings.model_copy(update={"api_keys": (), "body_limit_mb": 1})
    path = f"{API}/inpaint"
    with serving(create_app(keyed, StubEngine())) as client:
        client.post(path, json=body)
        before = series(client)
        for _ in range(2):
            assert client.post(path, json=body | {"prompt": ""}).status_code == 400
        assert client.post(path, content=b"{").status_code == 400
        assert client.post(path, json=body | {"key": None}).status_code == 401
        assert client.post(f"{API}/fetch/5", json={"key": "k"}).status_code == 404
        assert client.get("/nothing").status_code == 404
        assert client.get(path).status_code == 405
        assert client.post(path, content=b" " * 1_000_001).status_code == 413
        assert client.post(path, json=body | {"safety_checker": "maybe"}).status_code == 400
        after = series(client)
    assert moved(before, after) == {
        **refused("bad_request", 4),
        **refused("unauthorised"),
        **refused("not_found", 2),
        **refused("method_not_allowed"),
        **refused("too_large"),
    }


@pytest.mark.parametrize(
    ("limits", "status", "reason"),
    [
        ({"queue_limit": 1}, 429, "queue_full_key"),
        ({"queue_total": 1}, 503, "queue_full_all"),
    ],
)
def test_a_full_queue(
    settings: Settings, body: dict[str, Any], limits: dict[str, int], status: int, reason: str
) -> None:
    later = body | {"instant_response": True}
    stub = StubEngine(delay=30)
    full = settings.model_copy(update={"slots": 1, **limits})
    with serving(create_app(full, stub)) as client:
        client.post(f"{API}/inpaint", json=later)
        until(lambda: stub.requests)
        client.post(f"{API}/inpaint", json=later)
        assert client.post(f"{API}/inpaint", json=later).status_code == status
        after = series(client)
        stub.delay = 0
    assert after[f"edgefill_requests_refused_total:{reason}"] == 1
    assert after["edgefill_jobs_accepted_total:inpaint"] == 2
    assert after["edgefill_running_jobs"] == 1
    assert after["edgefill_queue_jobs"] == 1
    assert after["edgefill_queue_limit_jobs"] == full.queue_total
    assert 0 < after["edgefill_queue_oldest_seconds"] < 30
    assert after["edgefill_store_up"] == 1


def test_a_server_that_stops_and_a_store_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = JobStore.open(f"sqlite:///{tmp_path}/jobs.sqlite3")
    body = Text2ImgBody.parse({"prompt": "a cat"})

    def broken(*_: object, **__: object) -> None:
        raise StoreError("disk full")

    async def no_trouble() -> None:
        return None

    async def refusals() -> list[str]:
        found = []
        painter: Any = None  # nothing is painted
        queue = Dispatcher(
            store, painter, slots=1, limits=Limits(per_key=5, total=5), trouble=no_trouble
        )
        for _ in range(2):
            with pytest.raises(ApiError) as caught:
                await queue.accept(body, kind="text2img", key="k", root="", prefix="p")
            found.append(caught.value.reason)
            await queue.drain(0)
        return found

    monkeypatch.setattr(store, "accept", broken)
    assert asyncio.run(refusals()) == ["store", "draining"]
    store.close()


def test_jobs_that_fail_are_not_counted_as_refused_requests(
    settings: Settings, body: dict[str, Any]
) -> None:
    stub = StubEngine()
    with serving(create_app(settings, stub)) as client:
        for error, status, outcome in (
            (EngineError("broken"), 500, "failed"),
            (ZeroDivisionError("a defect"), 500, "failed"),
            (InputError("scheduler", "is unknown"), 400, "refused"),
        ):
            stub.error = error
            before = series(client)
            assert client.post(f"{API}/inpaint", json=body).status_code == status
            found = moved(before, series(client))
            assert found == READ | WAITED | accepted() | ended(outcome)


def leave(client: httpx.Client, body: dict[str, Any]) -> None:
    """Ask for a picture, and go as soon as the request has become a job."""
    name = "edgefill_jobs_accepted_total:inpaint"
    before, raw = series(client)[name], json.dumps(body).encode()
    head = f"POST {API}/inpaint HTTP/1.1\r\nHost: a\r\nContent-Length: {len(raw)}\r\n\r\n"
    where = client.base_url
    with socket.create_connection((where.host, where.port)) as connection:
        connection.sendall(head.encode() + raw)
        until(lambda: series(client)[name] == before + 1)


def test_clients_that_leave_and_deadlines_that_pass(
    settings: Settings, body: dict[str, Any]
) -> None:
    stub = StubEngine(delay=30)
    one = settings.model_copy(update={"slots": 1})
    cancelled = "edgefill_jobs_ended_total:inpaint:cancelled"
    with serving(create_app(one, stub)) as client:
        path = f"{API}/inpaint"
        leave(client, body)  # while it is worked on
        until(lambda: series(client)[cancelled] == 1)
        client.post(path, json=body | {"instant_response": True})
        until(lambda: len(stub.requests) == 2)
        leave(client, body)  # while it waits
        until(lambda: series(client)[cancelled] == 2)
        assert client.post(path, json=body | {"deadline_ms": 100}).status_code == 503
        client.post(path, json=body | {"deadline_ms": 100, "instant_response": True})
        time.sleep(0.15)  # past the deadline
        stub.delay = 0
        until(lambda: series(client)[cancelled] == 4)
        after = series(client)
    assert after["edgefill_jobs_ended_total:inpaint:done"] == 1
    assert after["edgefill_jobs_accepted_total:inpaint"] == 5
    assert after["edgefill_client_wait_seconds_count"] == 3


def test_fetches(settings: Settings, body: dict[str, Any], photo: bytes, pictures: Origin) -> None:
    with serving(create_app(settings, StubEngine())) as client:
        before = series(client)
        here = body | {"init_image": pictures.body("/a.png", photo)}
        assert client.post(f"{API}/inpaint", json=here).status_code == 200
        gone = body | {"init_image": pictures.url + "/gone.png", "mask_image": "http://10.0.0.1/"}
        assert client.post(f"{API}/inpaint", json=gone).status_code == 400
        bad = body | {"init_image": "data:image/png;base64,****"}
        assert client.post(f"{API}/inpaint", json=bad).status_code == 400
        after = series(client)
    found = moved(before, after)
    assert found["edgefill_fetches_total"] == 3
    assert found["edgefill_fetch_errors_total:status"] == 1
    assert found["edgefill_fetch_errors_total:refused_address"] == 1
    assert sum(value for name, value in found.items() if "fetch_errors" in name) == 2
    assert found["edgefill_jobs_ended_total:inpaint:refused"] == 2
    assert found["edgefill_stage_seconds_count:fetch"] == 1
    assert found["edgefill_stage_seconds_count:waiting"] == 3


def test_webhooks(settings: Settings, body: dict[str, Any], pictures: Origin) -> None:
    attempts = "edgefill_webhook_attempts_total"
    with serving(create_app(settings, StubEngine())) as client:
        for status, outcome in ((200, "delivered"), (410, "given_up"), (500, "failed")):
            hook = pictures.body(f"/{status}", b"", status=status)
            before = series(client)
            client.post(f"{API}/inpaint", json=body | {"webhook": hook})
            name = f"{attempts}:{outcome}"
            until(lambda name=name, before=before: series(client)[name] > before[name])
            found = moved(before, series(client))
            assert {n: v for n, v in found.items() if n.startswith(attempts)} == {name: 1.0}
        until(lambda: series(client)["edgefill_pending_webhooks"] == 1)


def test_jobs_that_an_earlier_run_left_over(settings: Settings) -> None:
    asked = Text2ImgBody.parse({"prompt": "a cat", "width": 64, "height": 64})
    document = asked.to_document(root="")
    for name in "abc":  # after which the first has crashed three times, and the others less
        with contextlib.closing(JobStore.open(default_url(settings.data_dir))) as store:
            store.recover()
            job = new_job(kind="text2img", request=document, file_prefix=name * 24)
            store.accept(job, limits=Limits(per_key=9, total=9))
            store.claim(9)
    with serving(create_app(settings, StubEngine())) as client:
        until(lambda: series(client)["edgefill_jobs_ended_total:text2img:done"] == 2)
        after = series(client)
    assert after["edgefill_jobs_recovered_total"] == 3
    assert after["edgefill_jobs_ended_total:text2img:failed"] == 1
    assert after["edgefill_jobs_accepted_total:text2img"] == 0


def test_the_engine_is_watched(settings: Settings, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "tiny")
    with (
        EngineProcess.open(bundle, device="cpu", threads=1) as process,
        serving(create_app(settings, process)) as client,
    ):
        first = series(client)
        assert {name: first[f"edgefill_engine_state:{name}"] for name in STATES} == {
            "starting": 0,
            "ready": 1,
            "restarting": 0,
            "stopped": 0,
        }
        assert first["edgefill_engine_restarts_total"] == 0
        memory = Path(f"/proc/{process.pid}/statm").read_text().split()[1]
        resident = int(memory) * os.sysconf("SC_PAGESIZE")
        seen = first["edgefill_engine_process_resident_memory_bytes"]
        assert 0.5 * resident < seen < 2 * resident
        (info,) = [name for name in first if name.startswith("edgefill_build_info")]
        assert re.fullmatch(r"edgefill_build_info:tiny:cpu:[0-9.]+", info)
        kill(process)
        until(lambda: series(client)["edgefill_engine_restarts_total"] == 1)
        until(lambda: series(client)["edgefill_engine_state:ready"] == 1)
        assert client.get("/livez").status_code == 200
        process.close()
        assert series(client)["edgefill_engine_state:stopped"] == 1
        assert "edgefill_engine_process_resident_memory_bytes" not in series(client)
        assert client.get("/livez").status_code == 503


def test_the_caches_are_counted(settings: Settings, body: dict[str, Any], tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "tiny")
    limits = {"device": "cpu", "threads": 1}
    with (
        EngineProcess.open(bundle, cache_bytes=1 << 20, **limits) as process,
        serving(create_app(settings, process)) as client,
    ):
        for seed in (1, 2):
            answer = client.post(f"{API}/inpaint", json=body | {"seed": seed, "strength": 1.0})
            assert answer.status_code == 200
        seen = series(client)
        assert seen["edgefill_cache_hits_total:masked_picture"] == 1
        assert seen["edgefill_cache_misses_total:picture"] == 0
        assert seen["edgefill_cache_bytes:masked_picture"] > 0
        assert seen["edgefill_cache_hits_total:prompt"] == 4  # two of them of the empty one
    with (
        EngineProcess.open(bundle, cache_bytes=0, **limits) as process,
        serving(create_app(settings, process)) as client,
    ):
        client.post(f"{API}/inpaint", json=body)
        assert series(client)["edgefill_cache_bytes:masked_picture"] == 0


def test_the_store_is_asked_at_most_once_a_second(tmp_path: Path) -> None:
    store = JobStore.open(f"sqlite:///{tmp_path}/jobs.sqlite3")
    clock = Clock()
    gauges = Gauges(clock)
    gauges.watch(store, StubEngine(), queue_limit=7)

    def queued() -> float:
        return next(m for m in gauges.collect() if m.name == "edgefill_queue_jobs").samples[0].value

    assert queued() == 0
    store.accept(new_job(), limits=Limits(per_key=9, total=9))
    clock.now += 0.9 * FRESH_SECONDS
    assert queued() == 0
    clock.now += 0.2 * FRESH_SECONDS
    assert queued() == 1
    gauges.unwatch()
    assert gauges.collect() == []
    store.close()


def test_a_store_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = JobStore.open(f"sqlite:///{tmp_path}/jobs.sqlite3")

    def broken() -> None:
        raise StoreError("disk I/O error")

    monkeypatch.setattr(store, "statistics", broken)
    metrics = Metrics()
    metrics.watch(store, StubEngine(), queue_limit=7)
    text = metrics.render().decode()
    assert "\nedgefill_store_up 0.0\n" in text
    assert "edgefill_queue_jobs" not in text
    store.close()
