"""The measurement of the stream runs on a real server, and its counts count."""

from __future__ import annotations

import pytest

from bench import stream


def test_a_moment_of_it() -> None:
    found = stream.measure(seconds=stream.LEAST_SECONDS, rate=10, repetitions=2)
    few, many, closed = found.values()
    for opened in (few, many):
        assert opened["edits"] == 60 == sum(opened["ends"].values())
        assert opened["memory_of_server"]["first_mb"] > 10
    for figures in (few, many, closed):
        assert figures["without_an_end"] == figures["out_of_order"] == figures["ends"]["error"] == 0
    assert many["ends"]["cancelled"] > 40
    assert closed["ends"] == {"result": 2, "cancelled": 0, "error": 0}
    assert closed["to_result"]["count"] == closed["to_first_preview"]["count"] == 2


def test_what_should_not_be_is_counted() -> None:
    seen = stream.Seen(sent=[0.0, 1.0, 2.0])
    seen.take({"type": "cancelled", "edit": 2}, 2.5)
    seen.take({"type": "preview", "edit": 2}, 2.5)
    seen.take({"type": "result", "edit": 1}, 2.5)
    figures = seen.figures()
    assert figures["out_of_order"] == 3
    assert figures["results_of_stale_edits"] == 1
    assert figures["without_an_end"] == 2
    assert figures["newer_message_to_cancelled"]["median_ms"] == pytest.approx(500)
