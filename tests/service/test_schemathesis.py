"""schemathesis drives a running server with what /openapi.json describes, and what it does not.

All of its checks are on. ``EDGEFILL_TEST_CASES=2000`` makes it a long run, and takes in the
addresses that go the same way through the code as others do.
"""

from __future__ import annotations

import base64
import copy
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from schemathesis.config import SchemathesisConfig

from engine.image import encode_jpeg, encode_png
from service import openapi
from service.openapi import patterns
from service.openapi.requests import request_schemas
from tests.service.conftest import data_uri

ROOT = Path(__file__).parents[2]
CASES = int(os.environ.get("EDGEFILL_TEST_CASES", "20"))
PIXELS = np.random.RandomState(0).randint(0, 256, (16, 24, 3)).astype(np.uint8)
PICTURES = (data_uri(encode_png(PIXELS)), base64.b64encode(encode_jpeg(PIXELS)).decode())
RECEIVERS = ("http://127.0.0.1:9/hook", "HTTPS://[::1]/?a=%20", "http://10.0.0.1")
"""Where nothing is sent to: the server does not permit these addresses."""

MAY_FAIL = {
    "and a restart mend that.": "no checker can be loaded",
    "was cancelled.": "a deadline of a few milliseconds",
    "before its deadline.": "the same, while it was queued",
}
"""The ends of sentences that come with 503 and are no defect."""


FITTING = {
    "decoder": ["full", "FULL", None],
    "deep_cache_interval": [1, "1", None],
    "working_size": [64, "128", None],
    "prompt_syntax": ["plain", None],
    "text_layers_skipped": [0, "0", None],
}
"""What the model that ships can do; the rest is refused with a 400 that depends on the model, or on
the prompt."""


def guided(document: dict[str, Any]) -> dict[str, Any]:
    """The document, with what JSON Schema cannot say: which text is a picture, which address a
    test may name, and what the model can do."""
    document = copy.deepcopy(document)
    for request in request_schemas():
        fields = document["components"]["schemas"][request]["properties"]
        for name in {"init_image", "mask_image", "base64_string"} & set(fields):
            fields[name] = {"type": "string", "format": "edgefill-picture"}
        for name in FITTING.keys() & set(fields):
            fields[name] = {"enum": FITTING[name]}
        if "webhook" in fields:
            absent = {"type": ["string", "null"], "pattern": f"^{patterns.SPACE}$"}
            fields["webhook"] = {"anyOf": [{"enum": list(RECEIVERS)}, absent]}
    return document


schemathesis.openapi.format("edgefill-picture", st.sampled_from(PICTURES))
CONFIG = SchemathesisConfig.from_dict(
    {"checks": {"not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", 503]}}}
)
api = schemathesis.openapi.from_dict(guided(openapi.document()), config=CONFIG)
if CASES < 100:
    api = api.exclude(path_regex="enterprise|img2img|text2img")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server in a process of its own: its use of ``random`` would confuse hypothesis here."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = str(sock.getsockname()[1])
    folder = str(tmp_path_factory.mktemp("data"))
    command = [sys.executable, "-m", "tests.service.stub_server", folder, port, "0"]
    environment = {name: value for name, value in os.environ.items() if "EDGEFILL" not in name}
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        deadline = time.monotonic() + 30
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            while not answers(client):
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").is_success
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as opened:
        opened.trust_env = False
        yield opened


@api.parametrize()
@settings(
    max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
def test_every_operation(case: schemathesis.Case, url: str, session: requests.Session) -> None:
    response = case.call_and_validate(base_url=url, session=session, timeout=60)
    if response.status_code == 503:
        assert response.json()["message"].endswith(tuple(MAY_FAIL))
