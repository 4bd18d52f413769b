"""schemathesis drives a running server with what /openapi.json describes, and what it does not.

All of its checks are on. ``EDGEFILL_TEST_CASES=2000`` makes it a long run, and takes in the
addresses that go the same way through the code as others do.
"""

from __future__ import annotations

import base64
import copy
import os
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.config import SchemathesisConfig

from engine.image import encode_jpeg, encode_png
from service import openapi
from service.app import create_app
from service.openapi.requests import request_schemas
from service.settings import Settings
from tests.service.conftest import data_uri
from tests.service.live import serving
from tests.service.stub_engine import StubEngine

CASES = int(os.environ.get("EDGEFILL_TEST_CASES", "20"))
PIXELS = np.random.RandomState(0).randint(0, 256, (16, 24, 3)).astype(np.uint8)
PICTURES = (data_uri(encode_png(PIXELS)), base64.b64encode(encode_jpeg(PIXELS)).decode())
RECEIVERS = ("http://127.0.0.1:9/hook", "HTTPS://[::1]/?a=%20", "http://10.0.0.1")
"""Where nothing is sent to: the server does not permit these addresses."""

MAY_FAIL = {
    "The safety checker is not available on this server.": "no checker can be loaded",
    "was cancelled.": "a deadline of a few milliseconds",
    "before its deadline.": "the same, while it was queued",
}
"""The ends of sentences that come with 503 and are no defect."""


def guided(document: dict[str, Any]) -> dict[str, Any]:
    """The document, with what JSON Schema cannot say: which text is a picture, and which address
    a test may name."""
    document = copy.deepcopy(document)
    for request in request_schemas():
        fields = document["components"]["schemas"][request]["properties"]
        for name in {"init_image", "mask_image", "base64_string"} & set(fields):
            fields[name] = {"enum": list(PICTURES)}
        if "webhook" in fields:
            absent = {"type": ["string", "null"], "pattern": r"^\s*$"}
            fields["webhook"] = {"anyOf": [{"enum": list(RECEIVERS)}, absent]}
    return document


CONFIG = SchemathesisConfig.from_dict(
    {"checks": {"not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", 503]}}}
)
api = schemathesis.openapi.from_dict(guided(openapi.document()), config=CONFIG)
if CASES < 100:
    api = api.exclude(path_regex="enterprise|img2img|text2img")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    many = Settings(data_dir=tmp_path_factory.mktemp("data"), queue_limit=10_000)
    with serving(create_app(many, StubEngine())) as running:
        yield running


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as opened:
        opened.trust_env = False
        yield opened


@api.parametrize()
@settings(
    max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
def test_every_operation(
    case: schemathesis.Case, client: httpx.Client, session: requests.Session
) -> None:
    response = case.call_and_validate(base_url=str(client.base_url), session=session, timeout=60)
    if response.status_code == 503:
        assert response.json()["message"].endswith(tuple(MAY_FAIL))
