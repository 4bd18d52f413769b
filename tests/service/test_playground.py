"""The playground's files: how they are served, and that they hold to their own policy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.schedulers import SCHEDULERS
from service import playground
from service.app import create_app
from service.settings import Settings
from tests.service.conftest import data_uri
from tests.service.live import serving
from tests.service.stub_engine import StubEngine

FOLDER = Path(playground.__file__).parent
FILES = {path.name: path for path in FOLDER.iterdir() if path.suffix in (".css", ".js", ".svg")}
SCRIPTS = {name: path.read_text("utf-8") for name, path in FILES.items() if name.endswith(".js")}
PAGE = (FOLDER / "index.html").read_text("utf-8")
IDS = re.findall(r'\bid="([^"]+)"', PAGE)
TYPES = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "png": "image/png",
    "svg": "image/svg+xml",
}
PATHS = {
    "/": "text/html; charset=utf-8",
    "/favicon.ico": TYPES["svg"],
    **{f"/playground/{name}": TYPES[name.rpartition(".")[2]] for name in FILES},
    "/playground/server.json": TYPES["json"],
    "/playground/demo-photo.png": TYPES["png"],
    "/playground/demo-mask.png": TYPES["png"],
}
POLICY = {
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' blob: data:",
    "connect-src 'self'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "base-uri 'none'",
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"))
    with serving(create_app(settings, StubEngine())) as running:
        yield running


@pytest.mark.parametrize(("path", "media_type"), PATHS.items(), ids=PATHS)
def test_every_file_is_served_with_its_type_and_policy(
    client: httpx.Client, path: str, media_type: str
) -> None:
    for method in ("GET", "HEAD"):
        response = client.request(method, path)
        assert response.status_code == 200
        headers = response.headers
        assert headers["content-type"] == media_type
        assert set(headers["content-security-policy"].split("; ")) == POLICY
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-cache"
        assert int(headers["content-length"]) > 100
        assert (response.content == b"") == (method == "HEAD")


@pytest.mark.parametrize("path", PATHS)
def test_what_the_browser_has_is_not_sent_again(client: httpx.Client, path: str) -> None:
    etag = client.get(path).headers["etag"]
    for kept in (etag, f"W/{etag}", f'"other", {etag}'):
        response = client.get(path, headers={"If-None-Match": kept})
        assert (response.status_code, response.content) == (304, b"")
        assert response.headers["etag"] == etag
        assert "content-security-policy" in response.headers
    assert client.get(path, headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "name",
    ["", "__init__.py", "index.htm", "..%2fapp.py", "%2e%2e", "demo-README.md", "app.js%00", "a/b"],
)
def test_nothing_else_is_served(client: httpx.Client, name: str) -> None:
    response = client.get(f"/playground/{name}")
    assert response.status_code == 404
    assert response.json()["message"] == "There is nothing at this address."


def test_the_page_is_public_and_says_whether_a_key_is_needed(
    client: httpx.Client, settings: Settings
) -> None:
    about = client.get("/playground/server.json").json()
    assert not about["key_required"]
    assert about["default_model"]
    assert tuple(about["schedulers"]) == SCHEDULERS
    assert about["regions"] == ["auto", "full", "mask"]
    changed = Settings(data_dir=settings.data_dir, api_keys=("secret",), bundle=Path("my-bundle"))
    with serving(create_app(changed, StubEngine())) as keyed:
        assert keyed.get("/").status_code == 200
        text = keyed.get("/playground/server.json").text
        assert "secret" not in text
        assert "my-bundle" not in text
        assert keyed.get("/playground/server.json").json()["key_required"]
        assert not keyed.get("/playground/server.json").json()["default_model"]


def test_the_bounds_of_the_form_are_those_of_the_server(
    client: httpx.Client, photo: bytes, mask: bytes
) -> None:
    body: dict[str, Any] = {"key": "k", "prompt": "a cat"}
    body |= {"init_image": data_uri(photo), "mask_image": data_uri(mask)}
    bounds = client.get("/playground/server.json").json()["bounds"]
    hinted = set(re.findall(r"^  (\w+): \(low, high\)", SCRIPTS["form.js"], re.MULTILINE))
    assert hinted <= set(bounds)
    assert {"width", "num_inference_steps", "guidance_scale", "strength", "samples"} == hinted
    for name in hinted:
        low, high = bounds[name]
        for value in (low - 1, high + 1):
            response = client.post("/api/v6/realtime/inpaint", json=body | {name: value})
            assert response.status_code == 400
            assert response.json()["message"].endswith(f"must be between {low} and {high}.")


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", PAGE)
    for attributes, content in re.findall(r"<script([^>]*)>([^<]*)", PAGE):
        assert "src=" in attributes
        assert content == ""
    for link in re.findall(r'\b(?:src|href)="([^"]*)"', PAGE):
        assert re.fullmatch(r"#i-\w+|playground/[\w.-]+", link), link
    for name, path in FILES.items():
        text = path.read_text("utf-8").replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?:|\bwss?:|@import", text), name
        assert name.endswith(".js") or "url(" not in text, name
    for name, text in SCRIPTS.items():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|eval\(|Function\(", text)
        assert not re.search(r"localStorage|document\.cookie", text), name


def test_what_the_page_refers_to_exists() -> None:
    assert len(IDS) == len(set(IDS))
    wanted = set(re.findall(r'\$\("([\w-]+)"\)', "".join(SCRIPTS.values())))
    fields = re.search(r"const FIELDS = \{(.*?)\};", SCRIPTS["form.js"], re.DOTALL)
    clicks = re.search(r"const CLICKS = \{(.*?)\n\};", SCRIPTS["app.js"], re.DOTALL)
    assert fields is not None
    assert clicks is not None
    inputs = re.findall(r': "(\w+)"', fields[1])
    wanted |= {*inputs, *(f"{name}-hint" for name in inputs), "key-hint"}
    wanted |= set(re.findall(r'^  "?([\w-]+)"?[:,]', clicks[1], re.MULTILINE))
    wanted |= set(re.findall(r'(?:for|aria-describedby)="([^"]+)"', PAGE))
    wanted |= set(re.findall(r'href="#([^"]+)"', PAGE))
    assert len(wanted) > 60
    assert wanted <= set(IDS), wanted - set(IDS)
    for label in re.findall(r"<(?:input|select|textarea|canvas)\b[^>]*>", PAGE):
        identity = re.search(r'id="([^"]+)"', label)
        assert identity is not None
        named = f'for="{identity[1]}"' in PAGE or "aria-" in label or identity[1] == "size"
        assert named, label


def test_every_module_is_loaded_at_once() -> None:
    imported = {name for text in SCRIPTS.values() for name in re.findall(r'from "\./(.+?)"', text)}
    preloaded = set(re.findall(r'rel="modulepreload" href="playground/(.+?)"', PAGE))
    assert imported == preloaded == set(SCRIPTS) - {"app.js"}
