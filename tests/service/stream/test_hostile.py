"""Clients that do not keep to it: the wrong key, garbage, floods, no reading, no goodbye."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from websockets.exceptions import ConnectionClosed, InvalidStatus

from service.app import create_app
from service.logs import TextFormatter
from service.settings import Settings
from service.stream.outbox import WINDOW
from tests.service.engine_process.helpers import until
from tests.service.live import serving
from tests.service.scrape import series
from tests.service.stream.steps import PATH, StepEngine, Talk, talking


@contextlib.contextmanager
def running(settings: Settings, **changes: Any) -> Iterator[tuple[httpx.Client, StepEngine]]:
    engine, settings = StepEngine(), settings.model_copy(update=changes)
    with serving(create_app(settings, engine), settings) as client, engine.freed():
        yield client, engine


def closed(talk: Talk) -> tuple[int, str]:
    """The code and the reason that the server closes with, after all that it says before."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            talk.socket.recv(10)
    protocol = talk.socket.protocol
    assert protocol.close_code is not None
    return protocol.close_code, protocol.close_reason or ""


def streams(client: httpx.Client) -> float:
    return series(client)["edgefill_streams"]


def test_keys(settings: Settings, body: dict[str, Any]) -> None:
    nothing = {name: value for name, value in body.items() if name != "key"}
    with running(settings, api_keys=(SecretStr("right"),)) as (client, engine):
        engine.free()
        for said, sentence in [
            (nothing, "API key required"),
            (body | {"key": "wrong"}, "Invalid API key"),
        ]:
            with talking(client) as talk:
                heard = talk.say(said).end(1)
                assert (heard["status"], heard["message"]) == (401, sentence)
                assert closed(talk) == (1008, sentence)
        with (
            pytest.raises(InvalidStatus) as caught,
            talking(client, additional_headers={"key": "wrong"}),
        ):
            pass
        assert caught.value.response.status_code == 401
        assert json.loads(caught.value.response.body)["message"] == "Invalid API key"
        for headers in ({"key": "right"}, {"Authorization": "Bearer right"}):
            with talking(client, additional_headers=headers) as talk:
                assert talk.say(nothing).end(1)["type"] == "result"
        with talking(client) as talk:
            heard = talk.say(body | {"key": "right"}).end(1)
            assert "right" not in json.dumps(heard["meta"])
        assert len(engine.requests) == 3


@pytest.mark.parametrize("first", ["{", "[]", b"\x00\xff", '{"binary": 3}', "\N{SNOWMAN}", ""])
def test_a_stranger_must_begin_with_a_key(talk: Talk, first: str | bytes) -> None:
    talk.socket.send(first)
    heard = talk.end(1)
    assert heard["status"] == 400
    assert closed(talk)[0] == 1008


def test_pages_of_strangers(server: httpx.Client, engine: StepEngine, body: dict[str, Any]) -> None:
    engine.free()
    for origin in ("https://evil.example", "null", "http://127.0.0.1.evil.example"):
        with pytest.raises(InvalidStatus) as caught, talking(server, origin=origin):
            pass
        assert caught.value.response.status_code == 403
    with talking(server, origin="http://localhost:3000") as talk:
        assert talk.say(body).end(1)["type"] == "result"


def test_garbage_does_not_end_a_stream(
    talk: Talk, engine: StepEngine, body: dict[str, Any]
) -> None:
    engine.free()
    talk.say(body).end(1)
    garbage: list[str | bytes] = [
        *("", "{", "nonsense", "[]", "null", "12", '{"seed": NaN}', "[" * 100_000),
        *('{"binary": {}}', '{"binary": "mask_image"}', '{"binary": [[]]}', b"", b"\xff" * 1000),
        *('{"prompt": "\\ud800"}', '{"width": 1e999}', '{"samples": {}}', '{"scheduler": 4}'),
    ]
    for edit, frame in enumerate(garbage, 2):
        talk.socket.send(frame)
        heard = talk.end(edit)
        assert (heard["type"], heard["status"]) == ("error", 400), frame
        assert len(heard["message"]) < 300
    edit = len(garbage) + 2
    assert talk.say({"seed": 5}).end(edit)["meta"]["prompt"] == "a cat"
    talk.say({"binary": ["mask_image", "init_image"]}, b"one").say({"prompt": "a dog"})
    assert talk.end(edit + 1)["message"] == "The init image did not follow its message."
    assert talk.end(edit + 2)["type"] == "result"
    heard = talk.say({"binary": ["mask_image"]}, b"no picture").end(edit + 3)
    assert heard["message"] == "The mask image is neither a PNG nor a JPEG picture."


def test_messages_that_are_too_large(settings: Settings, body: dict[str, Any]) -> None:
    with running(settings, body_limit_mb=1, picture_limit_mb=1) as (client, engine):
        engine.free()
        with talking(client) as talk:
            talk.say(body).end(1)
            talk.say({"binary": ["mask_image"]}, b"x" * 999_999)
            assert talk.end(2)["status"] == 400
            with contextlib.suppress(ConnectionClosed):  # it may close while we are sending
                talk.socket.send(b"x" * 1_000_001)
            assert closed(talk)[0] == 1009
        until(lambda: streams(client) == 0)


@pytest.mark.parametrize(
    ("keys", "headers", "status"),
    [(["right"], {"key": "wrong"}, 401), ([], {"Origin": "https://elsewhere.test"}, 403)],
)
def test_a_refused_handshake_is_no_error_of_the_server(
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
    keys: list[str],
    headers: dict[str, str],
    status: int,
) -> None:
    caplog.set_level("INFO", logger="uvicorn.error")
    with running(settings, api_keys=tuple(SecretStr(key) for key in keys)) as (client, _):
        with pytest.raises(InvalidStatus) as caught, talking(client, additional_headers=headers):
            pass
        assert caught.value.response.status_code == status
    assert f'"WebSocket {PATH}" {status}' in caplog.text
    assert [record.message for record in caplog.records if record.levelname != "INFO"] == []


def test_no_query_is_logged(server: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="uvicorn.error")
    for path in (PATH, "/nothing"):
        with contextlib.suppress(InvalidStatus), talking(server, path + '?key=se"cret&x=1'):
            pass
    lines = [TextFormatter().format(record) for record in caplog.records]
    assert len([line for line in lines if '"WebSocket ' in line]) == 2
    assert not [line for line in lines if "cret" in line]


def test_a_flood(talk: Talk, engine: StepEngine, body: dict[str, Any]) -> None:
    """Every message has its end, in order; what the engine gets is the first and the newest."""
    talk.say(body)
    until(lambda: engine.requests)
    for i in range(300):
        talk.say({"seed": i} if i % 7 else {"width": 1})
    heard = [(edit, talk.end(edit)["type"]) for edit in range(1, 251)]
    assert len(engine.requests) == engine.most == 1  # it has not stopped yet: nothing else begins
    talk.say({"prompt": "the last"})
    engine.free()
    heard += [(edit, talk.end(edit)["type"]) for edit in range(251, 303)]
    kinds = [kind for _, kind in heard]
    assert kinds[-1] == "result"
    assert kinds.count("error") == 43
    assert set(kinds[:-1]) <= {"cancelled", "error", "result"}
    assert engine.most == 1
    assert engine.requests[-1].prompt == "the last"


def test_who_does_not_read_gets_fewer_previews_and_every_end(
    settings: Settings, body: dict[str, Any], photo: bytes
) -> None:
    with running(settings) as (client, engine):
        engine.free()
        small = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)]
        raw = socket.socket()
        for option in small:
            raw.setsockopt(*option)
        raw.connect((client.base_url.host, client.base_url.port))
        large = body | {"width": 1024, "height": 1024, "num_inference_steps": 50, "samples": 4}
        with talking(client, sock=raw, max_queue=1) as talk:
            talk.say(large)
            until(lambda: engine.made["a cat"] == 50)
            for i in range(20):
                talk.say({"seed": i, "num_inference_steps": 50})
            heard, previews = [], 0
            while len(heard) < 21:
                message = talk.hear()
                if message["type"] == "preview":
                    previews += 1
                else:
                    heard.append((message["edit"], message["type"]))
                    assert len(message["pictures"]) == (4 if message["type"] == "result" else 0)
            assert [edit for edit, _ in heard] == list(range(1, 22))
            assert heard[-1][1] == "result"
            assert previews < sum(engine.made.values())


def test_who_never_reads_is_dropped(
    settings: Settings, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.stream.connection.SEND_SECONDS", 0.3)
    monkeypatch.setattr("service.stream.connection.END_SECONDS", 0.1)
    monkeypatch.setattr("service.stream.protocol.LINGER_SECONDS", 0.1)
    large = body | {"width": 1024, "height": 1024, "samples": 4}
    with running(settings) as (client, engine), talking(client, max_queue=1) as talk:
        engine.free()
        ends = (client.base_url.port, talk.socket.socket.getsockname()[1])
        talk.say(large)  # some megabytes come back each time, and the library takes a frame or two
        with contextlib.suppress(ConnectionClosed):
            for seed in range(20):
                until(lambda made=seed: len(engine.requests) > made or not streams(client), 10)
                talk.say({"seed": seed})
        until(lambda: streams(client) == 0)
        until(lambda: not established(*ends))  # though there was more to read
        assert closed(talk)[0] == 1006  # no goodbye: the socket was dropped


def established(ours: int | None, theirs: int) -> bool:
    """Whether the server's end of a connection is open still."""
    wanted = [f":{port:04X}" for port in (ours, theirs) if port is not None]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state = line.split()[:4]
        if [local[8:], remote[8:]] == wanted:
            return state == "01"
    return False


def test_no_more_is_read_than_can_be_told(
    talk: Talk, server: httpx.Client, engine: StepEngine, body: dict[str, Any]
) -> None:
    def refused() -> float:
        return series(server)["edgefill_stream_edits_total:refused"]

    before = refused()
    talk.say(body)
    for _ in range(100):
        talk.say({"width": 1})
    until(lambda: refused() == before + WINDOW - 1)
    time.sleep(0.3)
    assert refused() == before + WINDOW - 1
    engine.free()
    assert [kind for _, kind in talk.ends(101)] == ["result"] + ["error"] * 100


def test_a_client_that_leaves_cancels_its_edit(
    server: httpx.Client, engine: StepEngine, body: dict[str, Any]
) -> None:
    before = series(server)["edgefill_stream_edits_total:cancelled"]
    with talking(server) as talk:
        talk.say(body | {"num_inference_steps": 50})
        engine.gate.release(2)
        until(lambda: engine.made["a cat"] == 2)

    def stopped() -> bool:  # a step more, since it is between two steps that it looks
        engine.gate.release(1)
        return engine.cancelled.wait(0.2)

    until(stopped)
    assert engine.made["a cat"] < 50
    until(lambda: streams(server) == 0)
    assert series(server)["edgefill_stream_edits_total:cancelled"] == before + 1


def test_how_many_streams(settings: Settings, body: dict[str, Any]) -> None:
    with running(settings, streams=4, streams_per_key=2) as (client, engine):
        engine.free()
        with contextlib.ExitStack() as stack:
            for _ in range(2):
                stack.enter_context(talking(client)).say(body).end(1)
            third = stack.enter_context(talking(client)).say(body)
            assert third.end(1)["status"] == 429
            assert closed(third) == (1013, "Rate limit exceeded. Maximum 2 streams allowed.")
            until(lambda: streams(client) == 2)
            for _ in range(2):  # strangers, who have shown no key
                stack.enter_context(talking(client))
            with pytest.raises(InvalidStatus) as caught, talking(client):
                pass
            assert caught.value.response.status_code == 503
            assert caught.value.response.headers["Retry-After"] == "1"
        until(lambda: streams(client) == 0)
        with talking(client) as talk:
            assert talk.say(body).end(1)["type"] == "result"


def test_strangers_do_not_keep_out_everybody(settings: Settings, body: dict[str, Any]) -> None:
    with (
        running(settings, streams=4) as (client, engine),
        talking(client),
        talking(client),
        pytest.raises(InvalidStatus),
        talking(client),
    ):
        pass


def test_idle(settings: Settings, body: dict[str, Any]) -> None:
    with running(settings, stream_idle_seconds=0.2) as (client, engine), talking(client) as talk:
        talk.say(body)
        until(lambda: engine.requests)
        assert pytest.raises(TimeoutError, talk.hear, 0.5)  # what is made is waited for
        engine.free()
        assert talk.end(1)["type"] == "result"
        assert closed(talk) == (1000, "idle")


def test_http_is_not_disturbed(server: httpx.Client) -> None:
    for path in ("/readyz", "/api/v6/realtime/inpaint", "/outputs/x", PATH + "/more"):
        with pytest.raises(InvalidStatus) as caught, talking(server, path):
            pass
        assert caught.value.response.status_code == 403
    assert server.get("/readyz").status_code == 200
