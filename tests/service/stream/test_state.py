"""What a stream holds between its messages."""

from __future__ import annotations

from typing import Any

from engine import Bundle, DeadlineMissed, InpaintRequest
from engine.engine import DEFAULT_BUNDLE
from service.runner import LATE
from service.stream.messages import Message, Wishes
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
