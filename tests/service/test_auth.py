"""Keys: where they are looked for, and the two sentences."""

from __future__ import annotations

from typing import Any

import pytest

from service.auth import Keys
from service.errors import ApiError


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ({"key": "right"}, {}),
        ({"key": " right "}, {}),
        ({"key": "other"}, {}),
        ({}, {"key": "right"}),
        ({"key": None}, {"key": "right"}),
        ({"key": ""}, {"authorization": "Bearer right"}),
        ({}, {"authorization": "bearer right"}),
        ({"key": "right"}, {"key": "wrong", "authorization": "Bearer wrong"}),
    ],
)
def test_right_keys(body: dict[str, Any], headers: dict[str, str]) -> None:
    Keys(["other", "right"]).check(body, headers)


@pytest.mark.parametrize(
    ("body", "headers", "message"),
    [
        ({}, {}, "API key required"),
        ({"key": None}, {}, "API key required"),
        ({"key": "  "}, {"key": ""}, "API key required"),
        ({}, {"authorization": "Basic cmlnaHQ="}, "API key required"),
        ({}, {"authorization": "Bearer"}, "API key required"),
        ({"key": "wrong"}, {}, "Invalid API key"),
        ({"key": "wrong"}, {"key": "right"}, "Invalid API key"),
        ({"key": "righ"}, {}, "Invalid API key"),
        ({"key": "right2"}, {}, "Invalid API key"),
        ({"key": 5}, {}, "Invalid API key"),
        ({"key": ["right"]}, {}, "Invalid API key"),
        ({"key": "\ud800"}, {}, "Invalid API key"),
    ],
)
def test_wrong_keys(body: dict[str, Any], headers: dict[str, str], message: str) -> None:
    with pytest.raises(ApiError) as caught:
        Keys(["right"]).check(body, headers)
    assert (caught.value.status, caught.value.message) == (401, message)


def test_without_keys_any_non_empty_key_is_taken() -> None:
    Keys([]).check({"key": "anything"}, {})
    with pytest.raises(ApiError, match="API key required"):
        Keys([]).check({"key": ""}, {})


def test_a_wrong_key_in_the_header_is_refused_early() -> None:
    keys = Keys(["right"])
    with pytest.raises(ApiError, match="Invalid API key"):
        keys.refuse_early({"key": "wrong"})
    for headers in ({}, {"key": ""}, {"key": " right "}, {"authorization": "Bearer a-proxys"}):
        keys.refuse_early(headers)
    Keys([]).refuse_early({"key": "anything"})


@pytest.mark.parametrize("name", ["key", "authorization"])
def test_keys_in_headers_are_utf8_too(name: str) -> None:
    sent = ("Bearer " if name == "authorization" else "") + "ключ"
    headers = {name: sent.encode().decode("latin-1")}  # as the framework hands them over
    keys = Keys(["ключ"])
    keys.refuse_early(headers)
    assert keys.check({}, headers) == keys.check({"key": "ключ"}, {}) == "ключ"
