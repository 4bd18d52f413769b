"""Alive, ready, who may read the metrics, and that these are well formed and tell no secrets."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from starlette.applications import Starlette

from service.app import create_app
from service.dispatch import Dispatcher
from service.fetch_kinds import KINDS as FETCH_KINDS
from service.gauges import STATES
from service.jobs import JobStore
from service.metrics import ATTEMPTS, OUTCOMES, REFUSALS, STAGES
from service.schema import KINDS
from service.settings import Settings
from service.storage.base import UNUSABLE
from tests.service.conftest import data_uri
from tests.service.engine_process.helpers import until
from tests.service.live import Origin, serving
from tests.service.scrape import families, series
from tests.service.stub_engine import StubEngine

PROBES = ("/livez", "/v2/health/live", "/readyz", "/v2/health/ready")
LABELS = {
    "kind": set(KINDS),
    "outcome": {*OUTCOMES, *ATTEMPTS.values()},
    "reason": {*REFUSALS, *FETCH_KINDS},
    "stage": set(STAGES),
    "state": set(STATES),
}
UNITS = ("_seconds", "_bytes", "_jobs", "_webhooks", "_streams", "_fds", "_info", "_state", "_up")
PATH = "/api/v6/realtime/inpaint"


class StatefulEngine(StubEngine):
    """A stub that says which state it is in."""

    state = "ready"


def ask(app: Starlette, path: str, *, host: str = "127.0.0.1", **values: Any) -> httpx.Response:
    """One request from an address, to an application that was not started."""

    async def answer() -> httpx.Response:
        transport = httpx.ASGITransport(app, client=(host, 1234))
        async with httpx.AsyncClient(transport=transport, base_url="http://fill") as client:
            return await client.get(path, **values)

    return asyncio.run(answer())


def test_before_the_application_is_started(settings: Settings) -> None:
    app = create_app(settings, StubEngine())
    assert ask(app, "/livez").status_code == 200
    ready = ask(app, "/readyz")
    assert (ready.status_code, ready.json()["state"]) == (503, "starting")
    assert ask(app, "/api/v6/realtime/fetch/1").status_code == 503
    assert 'requests_refused_total{reason="not_ready"} 1.0' in ask(app, "/metrics").text


def test_the_state_of_the_engine(settings: Settings) -> None:
    engine = StatefulEngine()
    with serving(create_app(settings, engine)) as client:
        for state, live, ready in (
            ("ready", 200, 200),
            ("starting", 200, 503),
            ("restarting", 200, 503),
            ("stopped", 503, 503),
        ):
            engine.state = state
            answers = [client.get(path) for path in PROBES]
            assert [answer.status_code for answer in answers] == [live, live, ready, ready]
            assert answers[2].json()["state"] == state
            for answer in answers:
                if answer.status_code == 503:
                    assert answer.headers["retry-after"] == "5"
                    assert answer.json()["status"] == "error"
                    assert answer.json()["message"].startswith("The engine ")


def test_a_queue_that_nobody_works_on(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(store: JobStore, limit: int) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(JobStore, "claim", broken)
    with serving(create_app(settings, StubEngine())) as client:
        until(lambda: client.get("/livez").status_code == 503)
        answers = [client.get(path) for path in PROBES]
        assert {answer.status_code for answer in answers} == {503}
        assert {answer.json()["state"] for answer in answers} == {"stuck"}
    (record,) = [r for r in caplog.records if "not worked on any more" in r.getMessage()]
    assert record.levelname == "CRITICAL"
    assert record.exc_info is not None


def test_what_cannot_be_written(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(create_app(settings, StubEngine())) as client:
        monkeypatch.setattr(JobStore, "writable", lambda store: False)
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()["state"]) == (503, "unwritable")
        assert answer.json()["message"] == "The job store cannot be written."
        outputs = settings.data_dir / "outputs"
        outputs.rename(outputs.with_name("elsewhere"))
        answer = client.get("/readyz")
        assert answer.json()["message"] == UNUSABLE
        assert client.get("/livez").status_code == 200


def test_a_server_that_drains(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dispatcher, "draining", property(lambda self: True))
    with serving(create_app(settings, StubEngine())) as client:
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()["state"]) == (503, "stopping")
        assert client.get("/livez").status_code == 200


@pytest.mark.parametrize(
    ("exposure", "host", "headers", "status"),
    [
        ("loopback", "127.0.0.1", {}, 200),
        ("loopback", "::1", {}, 200),
        ("loopback", "192.0.2.1", {}, 403),
        ("loopback", "192.0.2.1", {"Key": "one"}, 403),
        ("loopback", "testclient", {}, 403),
        ("loopback", "127.0.0.1", {"X-Forwarded-For": "127.0.0.1"}, 403),
        ("loopback", "127.0.0.1", {"Forwarded": "for=127.0.0.1"}, 403),
        ("loopback", "127.0.0.1", {"X-Real-IP": "127.0.0.1"}, 403),
        ("loopback", "127.0.0.1", {"Origin": "https://page.example"}, 403),
        ("key", "127.0.0.1", {}, 401),
        ("key", "192.0.2.1", {"Key": "two"}, 401),
        ("key", "192.0.2.1", {"Key": "one"}, 200),
        ("key", "192.0.2.1", {"Authorization": "Bearer one"}, 200),
        ("open", "192.0.2.1", {"X-Forwarded-For": "192.0.2.9"}, 200),
        ("off", "127.0.0.1", {"Key": "one"}, 404),
    ],
)
def test_who_may_read_the_metrics(
    settings: Settings, exposure: str, host: str, headers: dict[str, str], status: int
) -> None:
    keyed = settings.model_copy(update={"metrics": exposure, "api_keys": (SecretStr("one"),)})
    app = create_app(keyed, StubEngine())
    answer = ask(app, "/metrics", host=host, headers=headers)
    assert answer.status_code == status
    if status != 200:
        assert "edgefill_" not in answer.text
        assert answer.json()["status"] == "error"
        open_app = app.state.metrics.render().decode()
        assert 'reason="unauthorised"} 0.0' in open_app  # looking is no request
        assert 'reason="other"} 0.0' in open_app


def test_every_metric_is_well_formed(settings: Settings) -> None:
    with serving(create_app(settings, StubEngine())) as client:
        found = families(client)
    names = [family.name for family in found]
    assert len(set(names)) == len(names) > 20
    for family in found:
        assert re.fullmatch(r"(edgefill|process)_[a-z]+(_[a-z]+)*", family.name)
        assert family.documentation.endswith("."), family.name
        assert family.type in ("counter", "gauge", "histogram"), family.name
        if family.type == "counter":
            assert all(sample.name == family.name + "_total" for sample in family.samples)
        else:
            assert family.name.endswith(UNITS), family.name
        for sample in family.samples:
            for label, value in sample.labels.items():
                if label == "le":
                    assert float(value) > 0
                elif family.name != "edgefill_build_info":
                    assert value in LABELS[label], f"{sample}"


def test_no_series_is_born_late(
    settings: Settings, photo: bytes, mask: bytes, pictures: Origin
) -> None:
    """A rate over a series that begins at 1 does not see that 1."""
    body = {"key": "k", "prompt": "a cat", "width": 96, "height": 64, "mask_image": data_uri(mask)}
    with serving(create_app(settings, StubEngine())) as client:
        before = set(series(client))
        for image in (data_uri(photo), pictures.url, "http://10.0.0.1", "not base64"):
            hook = pictures.url + "/hook"
            client.post(PATH, json=body | {"init_image": image, "webhook": hook})
        client.post(PATH, json={})
        assert set(series(client)) == before


def test_nothing_of_a_request_is_in_the_metrics(
    settings: Settings, photo: bytes, mask: bytes
) -> None:
    secrets = ["very-secret-key", "private wish", "tracked-42", "hook.example", "camera.example"]
    key, prompt, track, hook, camera = secrets
    body = {
        "key": key,
        "prompt": prompt,
        "track_id": track,
        "webhook": f"https://{hook}/",
        "init_image": data_uri(photo),
        "mask_image": data_uri(mask),
        "width": 96,
        "height": 64,
    }
    with serving(create_app(settings, StubEngine())) as client:
        answer = client.post(PATH, json=body).json()
        client.post(PATH, json=body | {"init_image": f"https://{camera}:99999/"})
        text = client.get("/metrics").text
    for secret in (*secrets, str(answer["id"]), answer["meta"]["file_prefix"]):
        assert secret not in text


def test_two_applications_count_for_themselves(tmp_path: Path) -> None:
    apps = [create_app(Settings(data_dir=tmp_path / name), StubEngine()) for name in "ab"]
    with serving(apps[0]) as one, serving(apps[1]) as other:
        one.get("/nothing")
        name = "edgefill_requests_refused_total:not_found"
        assert (series(one)[name], series(other)[name]) == (1, 0)
