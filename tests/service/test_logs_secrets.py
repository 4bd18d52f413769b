"""Keys, prompts, pictures and signed URLs never reach the log, whatever goes wrong."""

from __future__ import annotations

import base64
import contextlib
import io
import json
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from engine import EngineError
from service.app import create_app
from service.logs import Form, configure
from service.settings import Settings
from tests.service.conftest import data_uri
from tests.service.engine_process.helpers import until
from tests.service.live import Origin, serving
from tests.service.stub_engine import StubEngine

PATH = "/api/v6/realtime/inpaint"
KEY = "very-secret-key"
OTHER_KEY = "a-key-of-nobody"
PROMPT = "a private wish"
NEGATIVE = "a private fear"
SIGNATURE = "s1gn4tur3"
TRACK = "tracked-42"
HOOK_SECRET = "whsec_" + base64.b64encode(b"0" * 31 + b"1").decode()


@pytest.fixture
def body(photo: bytes, mask: bytes) -> dict[str, Any]:
    pictures = {"init_image": data_uri(photo), "mask_image": data_uri(mask)}
    asked = {"key": KEY, "prompt": PROMPT, "negative_prompt": NEGATIVE, "track_id": TRACK}
    return {**asked, "width": 96, "height": 64, **pictures}


def requests(body: dict[str, Any], pictures: Origin) -> list[dict[str, Any]]:
    """Bodies that succeed, and bodies that fail in every way there is."""
    query = f"?X-Amz-Signature={SIGNATURE}"
    moved = pictures.redirect(f"/moved{query}", f"/gone{query}")
    text = str(body["init_image"]).partition(",")[2]
    changes: list[dict[str, Any]] = [
        {},
        {"base64": True},
        {"instant_response": True},
        {"webhook": pictures.url + f"/hook{query}"},
        {"webhook": f"http://10.0.0.1/hook{query}"},
        {"webhook": f"http://user:{SIGNATURE}@hook.example/"},
        {"init_image": pictures.url + f"/gone{query}"},
        {"init_image": moved},
        {"init_image": f"http://10.0.0.1/a.png{query}"},
        {"init_image": f"https://{SIGNATURE}:{SIGNATURE}@camera.example/a.png"},
        {"init_image": f"http://a b/{query}"},
        {"init_image": f"{SIGNATURE}://camera.example/"},
        {"init_image": "file:///etc/" + SIGNATURE},
        {"init_image": text},
        {"init_image": text[:-9] + "*"},
        {"init_image": "data:image/png," + text},
        {"init_image": base64.b64encode(text.encode()).decode()},
        {"mask_image": text[: len(text) // 8 * 4]},
        {"key": OTHER_KEY},
        {"key": [OTHER_KEY]},
        {"prompt": [PROMPT]},
        {"prompt": PROMPT + "\ud800"},
        {"scheduler": PROMPT},
        {"width": PROMPT},
        {"safety_checker": PROMPT},
        {"deadline_ms": 1},
        {"track_id": {"a": TRACK}},
    ]
    return [body | change for change in changes]


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ("json", None),
        ("text", EngineError("no memory")),
        ("json", ZeroDivisionError("a defect")),
    ],
)
def test_no_secret_is_logged(
    settings: Settings,
    body: dict[str, Any],
    pictures: Origin,
    form: Form,
    error: Exception | None,
) -> None:
    stream = io.StringIO()
    configure(form=form, level="info", stream=stream)
    closed = settings.model_copy(
        update={"api_keys": (SecretStr(KEY),), "webhook_secret": SecretStr(HOOK_SECRET)}
    )
    with serving(create_app(closed, StubEngine(error=error))) as client:
        for asked in requests(body, pictures):
            raw = json.dumps(asked)
            client.post(PATH + f"?key={KEY}", content=raw)
        client.post(PATH, content=json.dumps(body)[:-20])
        client.post(PATH, content=json.dumps(body), headers={"Authorization": f"Bearer {KEY}"})
        client.get(f"/api/v6/realtime/fetch/1?key={KEY}", headers={"key": OTHER_KEY})
        client.get(f"/outputs/{SIGNATURE}?key={KEY}")
        client.get("/metrics", headers={"key": KEY})
        with contextlib.suppress(httpx.TimeoutException):
            client.post(PATH, json=body, timeout=0.001)
        until(lambda: "attempt 1" in stream.getvalue() and "10.0.0.1" in stream.getvalue())
    text = stream.getvalue()
    texts = [str(body[name]).partition(",")[2] for name in ("init_image", "mask_image")]
    pieces = [piece[at : at + 24] for piece in texts for at in (0, 100, len(piece) // 2)]
    secrets = [KEY, OTHER_KEY, PROMPT, NEGATIVE, TRACK, HOOK_SECRET, *pieces]
    assert [secret for secret in secrets if secret and secret in text] == []
    shown = [line for line in text.splitlines() if SIGNATURE in line]
    assert all(f"/outputs/{SIGNATURE}" in line for line in shown), shown


def test_lines_about_a_job_carry_it(
    settings: Settings, body: dict[str, Any], pictures: Origin
) -> None:
    stream = io.StringIO()
    configure(form="json", level="info", stream=stream)
    hook = pictures.body("/hook", b"", status=410)
    failing = StubEngine(error=EngineError("no memory"))
    with serving(create_app(settings, failing)) as client:
        client.post(PATH, json=body | {"webhook": hook})
        client.post(PATH, json=body | {"init_image": pictures.url + "/gone"})
        until(lambda: "given up after attempt 1" in stream.getvalue())
        client.get("/livez")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    lines = [line for line in lines if line["logger"] != "httpx"]  # the test's own client
    about = {
        words: [line for line in lines if words in line["message"]]
        for words in ("the engine failed", "init_image:", "given up after", "/inpaint", "/livez")
    }
    (failed,), (fetch,), (webhook,), asked, (probe,) = about.values()
    assert failed["job"] == webhook["job"] != fetch["job"]
    assert failed["exception"].endswith("EngineError: no memory")
    assert [line["job"] for line in asked] == [failed["job"], fetch["job"]]
    assert "job" not in probe
    assert (probe["method"], probe["path"], probe["status"]) == ("GET", "/livez", 200)
