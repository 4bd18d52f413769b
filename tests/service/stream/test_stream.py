"""The stream as its clients see it: what is said, what comes back, and who wins."""

from __future__ import annotations

import base64
import dataclasses
import threading
import time
from typing import Any

import httpx
import numpy as np
import pytest

from engine.image import decode_picture, encode_png
from service.app import create_app
from service.runner import LATE
from service.settings import Settings
from tests.service.engine_process.helpers import until
from tests.service.live import Origin, serving
from tests.service.scrape import series
from tests.service.stream.steps import PATH, StepEngine, Talk, talking
from tests.service.stub_engine import COLOUR, StubEngine

INPAINT = "/api/v6/realtime/inpaint"


def test_a_picture_with_its_previews(
    talk: Talk, engine: StepEngine, server: httpx.Client, body: dict[str, Any]
) -> None:
    engine.free()
    talk.say(body)
    shown = []
    while (heard := talk.hear())["type"] == "preview":
        shown.append(heard)
    assert heard["type"] == "result"
    assert heard["edit"] == 1
    steps = [preview["step"] for preview in shown]
    assert steps
    assert steps == sorted(set(steps))
    for preview in shown:
        assert (preview["edit"], preview["steps"], preview["binary"]) == (1, 4, 1)
        (jpeg,) = preview["pictures"]
        assert jpeg.startswith(b"\xff\xd8")
        pixels = decode_picture(jpeg)
        assert pixels.shape == (preview["height"], preview["width"], 3) == (64, 96, 3)
        assert np.abs(pixels[8:-8, 8:40].astype(int) - 99).max() < 8  # the hole as foreseen
    (png,) = heard["pictures"]
    answer = server.post(INPAINT, json=body).json()
    stored = server.get(answer["output"][0]).content
    assert np.array_equal(decode_picture(png), decode_picture(stored))
    told, meta = heard["meta"], answer["meta"]
    for name in ("file_prefix", "timings"):
        told.pop(name)
        meta.pop(name)
    assert told == meta
    assert heard["nsfw_content_detected"] is False
    assert not {"id", "output", "status", "proxy_links"} & set(heard)


@pytest.mark.parametrize("path", ["/api/v6/realtime/stream/", "/api/v1/enterprise/realtime/stream"])
def test_the_other_addresses(
    server: httpx.Client, engine: StepEngine, body: dict[str, Any], path: str
) -> None:
    engine.free()
    with talking(server, path) as talk:
        assert talk.say(body).end(1)["type"] == "result"


def test_later_messages_change_what_they_name(
    talk: Talk, engine: StepEngine, body: dict[str, Any], mask: bytes
) -> None:
    engine.free()
    talk.say(body | {"num_inference_steps": "2", "base64": "yes"}).end(1)
    heard = talk.say({"prompt": "a dog", "seed": None}).end(2)
    assert heard["meta"]["steps"] == 2
    assert heard["meta"]["prompt"] == "a dog"
    (text,) = heard["output"]
    assert "binary" not in heard
    assert decode_picture(base64.b64decode(text)).shape == (64, 96, 3)
    other = encode_png(np.full((64, 96, 3), 255, np.uint8))
    heard = talk.say({"binary": ["mask_image"], "base64": False, "width": 64}, other).end(3)
    assert heard["meta"]["mask_image"].startswith("sha256:")
    assert heard["meta"]["mask_image"] != body["mask_image"]
    assert (decode_picture(heard["pictures"][0]) == COLOUR).all()
    heard = talk.say({"output_format": "jpg", "samples": 2, "num_inference_steps": None}).end(4)
    assert len(heard["pictures"]) == 2
    assert all(picture.startswith(b"\xff\xd8") for picture in heard["pictures"])
    assert heard["meta"]["steps"] == 4
    assert [request.prompt for request in engine.requests] == ["a cat", *["a dog"] * 3]
    assert engine.requests[0].seed == 7


def test_both_pictures_as_bytes(
    talk: Talk, engine: StepEngine, body: dict[str, Any], photo: bytes, mask: bytes
) -> None:
    engine.free()
    fields = {k: v for k, v in body.items() if not k.endswith("_image")}
    talk.say(fields | {"binary": ["mask_image", "init_image"]}, mask, photo)
    assert talk.end(1)["type"] == "result"
    (request,) = engine.requests
    assert np.array_equal(request.image, decode_picture(photo))
    assert (request.mask[:, :48] == 255).all()
    assert not request.mask[:, 48:].any()


def test_the_newest_wins_and_the_older_stops_at_its_next_step(
    talk: Talk, engine: StepEngine, body: dict[str, Any]
) -> None:
    talk.say(body | {"prompt": "one", "num_inference_steps": 20})
    engine.gate.release(3)
    until(lambda: engine.made["one"] == 3)
    talk.say({"prompt": "two"}).say({"prompt": "three"}).say({"prompt": "four"})
    assert talk.ends(3) == [(1, "cancelled"), (2, "cancelled"), (3, "cancelled")]
    engine.free()
    assert talk.end(4)["type"] == "result"
    assert engine.made["one"] <= 4  # the step that was under way
    assert (engine.made["two"], engine.made["three"], engine.made["four"]) == (0, 0, 20)
    assert engine.most == 1


def test_a_refused_message_changes_nothing(
    talk: Talk, engine: StepEngine, body: dict[str, Any]
) -> None:
    refused = [
        ({"prompt": " "}, "The prompt field is required."),
        ({"prompt": "a dog", "width": 5}, "The width must be between 64 and 1024."),
        ({"mask_image": None}, "The mask image field is required."),
        ({"mask_image": 7}, "The mask image must be a string."),
        ({"webhook": "http://example.com"}, "The webhook cannot be used in a stream."),
        ({"instant_response": True}, "The instant response cannot be used in a stream."),
        ({"binary": ["photo"]}, "The binary field must be a list of init_image and mask_image."),
        ({"binary": ["init_image"] * 2}, "The binary field must be a list of init_image and"),
        ({"safety_checker": True}, "The safety checker is not available on this server"),
    ]
    talk.say(body)
    for wrong, _ in refused:
        talk.say(wrong)
    engine.free()
    assert talk.end(1)["type"] == "result"  # it goes on, and the errors wait for their turn
    for edit, (_, sentence) in enumerate(refused, 2):
        heard = talk.end(edit)
        assert (heard["type"], heard["message"][: len(sentence)]) == ("error", sentence)
    heard = talk.say({"seed": 8}).end(len(refused) + 2)
    assert heard["meta"]["prompt"] == "a cat"
    assert heard["meta"]["seed"] == 8


def test_pictures_that_cannot_be_used(
    talk: Talk, engine: StepEngine, body: dict[str, Any], pictures: Origin, photo: bytes
) -> None:
    engine.free()
    heard = talk.say(body | {"mask_image": "bm90IGEgcGljdHVyZQ=="}).end(1)
    assert heard["message"] == "The mask image is neither a PNG nor a JPEG picture."
    heard = talk.say({"mask_image": "http://10.1.2.3/mask.png"}).end(2)
    assert heard["message"] == "The mask image could not be fetched from its URL."
    url = pictures.body("/mask.png", photo)
    assert talk.say({"mask_image": url}).end(3)["meta"]["mask_image"] == url
    assert talk.say({"width": 80}).end(4)["type"] == "result"
    assert pictures.connections == 1  # it is kept


def test_edits_and_jobs_share_the_slots(settings: Settings, body: dict[str, Any]) -> None:
    """One slot: while an edit has it a job waits, then the job has it and the next edit waits."""
    one, engine = settings.model_copy(update={"slots": 1}), StepEngine()
    with (
        serving(create_app(one, engine), one) as client,
        talking(client) as talk,
        engine.freed(),
    ):
        talk.say(body | {"prompt": "edit one", "num_inference_steps": 4})
        until(lambda: len(engine.requests) == 1)
        job = body | {"prompt": "job", "num_inference_steps": 4}
        asking = threading.Thread(target=client.post, args=(INPAINT,), kwargs={"json": job})
        asking.start()
        until(lambda: series(client)["edgefill_queue_jobs"] == 1)
        talk.say({"prompt": "edit two"})
        assert talk.end(1)["type"] == "cancelled"
        engine.gate.release(1)
        until(lambda: len(engine.requests) == 2)
        assert engine.requests[1].prompt == "job"
        engine.free()
        assert talk.end(2)["type"] == "result"
        asking.join()
        assert engine.most == 1
        counted = series(client)
    assert counted["edgefill_streams"] == 1
    assert counted["edgefill_stream_edits_total:done"] == 1
    assert counted["edgefill_stream_edits_total:cancelled"] == 1
    assert counted["edgefill_jobs_accepted_total:inpaint"] == 1  # an edit is no job


def test_a_deadline(talk: Talk, engine: StepEngine, body: dict[str, Any]) -> None:
    talk.say(body | {"deadline_ms": 50})
    time.sleep(0.3)
    engine.free()
    heard = talk.end(1)
    assert (heard["status"], heard["message"]) == (503, LATE)
    assert engine.made["a cat"] <= 1  # none where its pictures were not even decoded


def test_previews_are_not_checked_and_therefore_not_shown(
    settings: Settings, body: dict[str, Any]
) -> None:
    class Flagging(StubEngine):
        safety_checker = "stub"

        def _fill(self, request: Any) -> Any:
            return dataclasses.replace(super()._fill(request), nsfw=(True,))

    with serving(create_app(settings, Flagging()), settings) as client, talking(client) as talk:
        heard = talk.say(body | {"safety_checker": True}).hear()
        assert (heard["type"], heard["nsfw_content_detected"]) == ("result", True)
        assert not decode_picture(heard["pictures"][0]).any()


def test_the_address_is_for_websockets(server: httpx.Client) -> None:
    assert server.get(PATH).status_code == 404
