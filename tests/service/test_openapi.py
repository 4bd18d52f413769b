"""The description of the HTTP face holds the contract's page, and describes the code there is."""

from __future__ import annotations

import re
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.routing import WebSocketRoute

from service import openapi
from service.app import create_app
from service.errors import ApiError
from service.openapi import patterns
from service.openapi.requests import REQUESTS
from service.schema import KINDS
from service.settings import Settings
from tests.service.contract import EXAMPLE, OURS, PAGE, validator
from tests.service.live import serving
from tests.service.stub_engine import StubEngine
from tests.service.test_schema import ANYTHING

INPAINT = "RealtimeInpaintRequest"
UNDESCRIBED = {
    *("/", "/favicon.ico", "/playground/{file}"),
    *("/metrics", "/v2/health/live", "/v2/health/ready"),
}
"""Routes that are not for the contract's clients."""

NARROWER = {
    "key": {"pattern"},
    "prompt": {"pattern", "maxLength"},
    "negative_prompt": {"maxLength"},
    "init_image": {"pattern"},
    "mask_image": {"pattern"},
    "width": {"minimum", "pattern"},
    "height": {"minimum", "pattern"},
    "samples": {"minimum", "pattern"},
    "seed": {"minimum", "maximum", "pattern"},
    "strength": {"default", "pattern"},
    "safety_checker": {"minimum", "maximum", "pattern"},
    "instant_response": {"minimum", "maximum", "pattern"},
    "base64": {"minimum", "maximum", "pattern"},
    "webhook": {"pattern", "maxLength"},
    "track_id": {"minimum", "maximum", "maxLength"},
}
"""What we say where the page is silent: blank is missing, the too small or too long is refused.
Patterns of fields that are numbers or booleans there concern only the text that is taken too."""

WIDER = {("init_image", "format"), ("mask_image", "format"), ("output", "format")} | {
    ("proxy_links", "format")
}
"""Where the page says URI and base64 text is possible too."""

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def flat(document: dict[str, Any], name: str) -> dict[str, Any]:
    """All properties of a component schema, those it takes from others included."""
    schema = document["components"]["schemas"][name]
    found = {}
    for part in schema.get("allOf", []):
        found |= flat(document, part["$ref"].rpartition("/")[2])
    return found | schema["properties"]


def resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The schema itself, or the component that it names."""
    if "$ref" not in schema:
        return schema
    found: dict[str, Any] = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return found


def types(schema: dict[str, Any]) -> set[str]:
    if "oneOf" in schema:
        return set().union(*(types(part) for part in schema["oneOf"]))
    found = schema["type"]
    return {found} if isinstance(found, str) else set(found)


@pytest.mark.parametrize("name", PAGE["components"]["schemas"])
def test_every_field_of_the_page_is_there_and_compatible(name: str) -> None:
    request = "Response" not in name
    theirs, ours = flat(PAGE, name), flat(OURS, name)
    assert set(theirs) <= set(ours)
    for field, their in theirs.items():
        our = resolved(OURS, ours[field])
        assert types(their) <= types(our) if request else types(our) <= types(their), field
        for key in {*their, *our} - {"type", "oneOf", "description", "additionalProperties"}:
            if (field, key) in WIDER:
                continue
            if key == "items":
                items = {k: v for k, v in their[key].items() if (field, k) not in WIDER}
                assert items.items() <= our[key].items(), field
            elif key in their:
                assert our[key] == their[key], (field, key)
            elif request:
                assert key in NARROWER[field], f"{field} has {key}, which the page has not"
        assert their.get("additionalProperties") in (None, our.get("additionalProperties"))
    page, mine = (doc["components"]["schemas"][name] for doc in (PAGE, OURS))
    assert page["type"] == mine["type"]
    assert page.get("allOf") == mine.get("allOf")
    if request:
        assert page.get("required") == mine.get("required")
    else:
        assert set(page.get("required", ())) <= set(mine["required"])


def test_every_answer_of_the_page_is_there() -> None:
    theirs = PAGE["paths"]["/realtime/inpaint"]["post"]
    ours = OURS["paths"]["/api/v6/realtime/inpaint"]["post"]
    assert ours["requestBody"] == theirs["requestBody"]
    assert set(theirs["responses"]) <= set(ours["responses"])
    assert ours["responses"]["200"]["content"] == theirs["responses"]["200"]["content"]
    for status in ("400", "401", "500"):
        assert ours["responses"][status] == theirs["responses"][status]
    standard = PAGE["components"]["responses"]["StandardErrorResponse"]
    assert (
        OURS["components"]["responses"]["StandardErrorResponse"]["content"] == standard["content"]
    )
    assert OURS["openapi"] == PAGE["openapi"]
    assert OURS["info"]["version"] == PAGE["info"]["version"]


def test_the_pages_example_is_valid() -> None:
    INPAINT_HERE.validate(EXAMPLE)
    assert KINDS["inpaint"].parse(EXAMPLE).width == 512


TEXT = st.text(min_size=1).filter(str.strip)
VALID = {
    "negative_prompt": st.text(),
    "width": st.integers(64, 1024),
    "height": st.integers(64, 1024),
    "samples": st.integers(1, 4),
    "safety_checker": st.booleans(),
    "seed": st.integers(-1, 2**53 - 1) | st.none(),
    "instant_response": st.booleans(),
    "base64": st.booleans(),
    "webhook": st.just("https://a.example/hook?a=%20"),
    "track_id": st.text(max_size=1024),
    "strength": st.floats(0, 1),
    "anything": st.none() | st.text(),
}


@UNHURRIED
@given(st.fixed_dictionaries(dict.fromkeys(("key", "prompt", "init_image"), TEXT), optional=VALID))
def test_what_is_valid_there_is_valid_here(values: dict[str, Any]) -> None:
    values["mask_image"] = values["init_image"]
    assert INPAINT_THERE.is_valid(values)
    assert INPAINT_HERE.is_valid(values)
    KINDS["inpaint"].parse(values)


NEAR = st.sampled_from(["yes", "No", "TRUE", "0", "1", "png", "JPEG", "auto", "full ", "pndm"])
SPACES = st.text("\t\v\x1c\x1f \x85\xa0\u200a\u200b\u2028\u3000\ufeff", max_size=3)
NUMERIC = st.text("0123456789.+- ", max_size=8)
INPAINT_HERE = validator(OURS, INPAINT)
INPAINT_THERE = validator(PAGE, INPAINT)
REQUIRED = {"key": "k", "prompt": "p", "init_image": "i", "mask_image": "m"}


@pytest.mark.parametrize("field", sorted({*KINDS["inpaint"].model_fields} - {"webhook"}))
@settings(UNHURRIED, max_examples=150)
@given(value=ANYTHING | NEAR | NUMERIC | SPACES | st.integers(-5, 1100) | st.floats(-1, 25))
def test_what_is_described_is_what_is_taken(field: str, value: Any) -> None:
    try:
        KINDS["inpaint"].parse(REQUIRED | {field: value})
        taken = True
    except ApiError:
        taken = False
    try:
        described = INPAINT_HERE.is_valid(REQUIRED | {field: value})
    except (ValueError, TypeError):  # no JSON: a lone surrogate, an infinity
        return
    assert described == taken


@pytest.mark.parametrize(
    "webhook", [None, "", "http://a", "HTTPS://a.example:8443/b?c", 5, "ftp://a", "a", "http:/"]
)
def test_webhooks_as_described(webhook: Any) -> None:
    try:
        KINDS["text2img"].parse({"prompt": "p", "webhook": webhook})
        taken = True
    except ApiError:
        taken = False
    body = {"key": "k", "prompt": "p", "webhook": webhook}
    assert validator(OURS, REQUESTS["text2img"]).is_valid(body) == taken


@pytest.mark.parametrize(
    ("low", "high"), [(64, 1024), (1, 4), (1, 50), (0, 7), (-1, 999), (5, 5), (95, 105)]
)
def test_patterns_of_integers(low: int, high: int) -> None:
    pattern = re.compile(patterns.whole(patterns.integers(low, high), optional=False))
    for number in range(-120, 1200):
        assert (pattern.match(f" {number}.0 ") is not None) == (low <= number <= high)
        assert not pattern.match(f"{number}.5")
    assert not pattern.match("")


def test_patterns_of_multiples() -> None:
    pattern = re.compile(patterns.whole(patterns.multiples(64, 1024, 8), optional=False))
    for number in range(-120, 1200):
        fits = 64 <= number <= 1024 and number % 8 == 0
        assert (pattern.match(f" {number}.0 ") is not None) == fits
        assert not pattern.match(f"{number}.5")
    assert not pattern.match("")


def test_the_schemas_are_schemas() -> None:
    for schema in OURS["components"]["schemas"].values():
        jsonschema_rs.meta.validate({**schema, "components": OURS["components"]})


def test_every_route_is_described_and_every_description_a_route() -> None:
    app = create_app(Settings(), StubEngine())
    routes: dict[str, set[str]] = {}
    for route in app.routes:
        if isinstance(route, WebSocketRoute):  # of which OpenAPI knows nothing
            continue
        path = route.path.removesuffix("/") or "/"  # type: ignore[attr-defined]
        routes.setdefault(path, set()).update(route.methods)  # type: ignore[attr-defined]
    described = {
        path: {method.upper() for method in item if method != "parameters"}
        for path, item in OURS["paths"].items()
    }
    assert set(routes) - UNDESCRIBED == set(described)
    for path, methods in described.items():
        assert methods <= routes[path]
        assert routes[path] - methods <= {"HEAD"}
    names = [
        op["operationId"]
        for item in OURS["paths"].values()
        for op in item.values()
        if "operationId" in op
    ]
    assert len(names) == len(set(names))


def test_the_document_is_served_to_everybody(settings: Settings) -> None:
    public = settings.model_copy(update={"public_url": "https://fill.example/base"})
    for given_settings, server in ((settings, "/"), (public, "https://fill.example/base")):
        with serving(create_app(given_settings, StubEngine())) as client:
            response = client.get(openapi.PATH, headers={"Origin": "https://app.example"})
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
        assert response.headers["access-control-allow-origin"] == "*"
        assert response.json() == {**OURS, "servers": [{"url": server}]}
