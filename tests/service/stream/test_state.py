"""What a stream holds between its messages."""

from __future__ import annotations

from typing import Any

import pytest

from engine import Bundle, DeadlineMissed, InpaintRequest
from engine.engine import DEFAULT_BUNDLE
from service.runner import LATE
from service.stream.messages import Message, Wishes
from tests.service.engine_process.helpers import until
from tests.service.stream.steps import StepEngine, Talk


def test_after_an_edit_that_cannot_be_done_the_last_result_counts(
    talk: Talk, engine: StepEngine, body: dict[str, Any]
) -> None:
    engine.free()
    talk.say(body)
    first = talk.end(1)
    assert first["type"] == "result"
    talk.say({"prompt": "lost", "binary": ["mask_image"]}, b"no picture")
    heard = talk.end(2)
    assert (heard["type"], heard["status"]) == ("error", 400)
    heard = talk.say({"seed": 8}).end(3)
    assert heard["type"] == "result"
    assert heard["meta"]["mask_image"] == first["meta"]["mask_image"]
    assert [request.prompt for request in engine.requests] == ["a cat", "a cat"]


def test_before_there_is_a_result_what_is_wrong_may_be_mended(
    talk: Talk, engine: StepEngine, body: dict[str, Any]
) -> None:
    engine.free()
    talk.say(body | {"mask_image": "data:image/png;base64,AAAA"})
    assert talk.end(1)["type"] == "error"
    assert talk.say({"seed": 8}).end(2)["type"] == "error"
    assert talk.say({"mask_image": body["mask_image"]}).end(3)["type"] == "result"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"decoder": "fast"}, "The decoder is 'fast', but the model has no fast decoder"),
        ({"deep_cache_interval": 2}, "The deep cache interval is 2, but"),
        ({"text_layers_skipped": 1}, "The text layers skipped is 1, but the model was made"),
        ({"prompt_syntax": "a1111", "prompt": "[a|b]"}, "The prompt holds [a|b], but words"),
        ({"working_size": 136}, "The working size is 136; this model allows"),
    ],
)
def test_what_the_model_does_not_have_stops_no_edit(
    talk: Talk, engine: StepEngine, body: dict[str, Any], change: dict[str, Any], words: str
) -> None:
    talk.say(body | {"working_size": 64, "guidance_share": 0.5})
    until(lambda: engine.requests)
    talk.say(change)
    engine.free()
    assert talk.end(1)["type"] == "result"
    refused = talk.end(2)
    assert (refused["type"], refused["status"]) == ("error", 400)
    assert refused["message"].startswith(words)
    assert talk.say({"seed": 8}).end(3)["type"] == "result"
    asked = [(request.working_size, request.guidance_share) for request in engine.requests]
    assert asked == [(64, 0.5)] * 2
    assert {request.vae for request in engine.requests} == {"full"}


def test_what_no_request_knows_is_not_kept() -> None:
    wishes = Wishes(None, Bundle.open(DEFAULT_BUNDLE))
    pictures = {"init_image": "AAAA", "mask_image": "AAAA"}
    values = {"key": "k", "prompt": "a", "junk": "x" * 1000, **pictures}
    wishes.change(Message(values=values, pictures={}))
    assert set(wishes._values) == {"prompt"}


def test_the_engine_is_told_the_deadline(
    talk: Talk, engine: StepEngine, body: dict[str, Any]
) -> None:
    engine.free()
    talk.say(body | {"deadline_ms": 5000})
    assert talk.end(1)["type"] == "result"
    (request,) = engine.requests
    assert request.deadline is not None
    assert 4 < request.deadline < 5


def test_what_the_engine_cannot_make_in_time_is_late(
    talk: Talk, engine: StepEngine, body: dict[str, Any]
) -> None:
    def refuse(request: InpaintRequest, **_: Any) -> None:
        raise DeadlineMissed("no")

    engine.submit = refuse  # type: ignore[assignment,method-assign]
    heard = talk.say(body | {"deadline_ms": 5000}).end(1)
    assert (heard["type"], heard["status"], heard["message"]) == ("error", 503, LATE)
