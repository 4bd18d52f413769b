"""The playground in a real browser. Needs chromium and playwright's Python package."""

from __future__ import annotations

import base64
import importlib.util
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from engine import EngineError
from engine.image import decode_mask, decode_picture, encode_png
from service.app import create_app
from service.commands.inpaint import DEMO
from service.settings import Settings
from tests.service.live import serving
from tests.service.stub_engine import COLOUR, StubEngine

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None,
    reason="needs chromium on the PATH and the playwright package",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that must end without an error of its own, a broken policy among them."""
    context = browser.new_context(reduced_motion="reduce", viewport={"width": 1200, "height": 800})
    opened = context.new_page()
    opened.set_default_timeout(20_000)
    said: list[str] = []
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("console", lambda message: said.append(message.text))
    opened.requests = []
    opened.on("request", lambda request: opened.requests.append(request))
    yield opened
    context.close()
    assert [text for text in said if not text.startswith("Failed to load resource")] == []


def enter(page: Any, client: httpx.Client) -> None:
    page.goto(str(client.base_url))
    page.wait_for_selector("body[data-ready]")


def enter_with_demo(page: Any, client: httpx.Client) -> None:
    enter(page, client)
    page.click("#demo")
    status(page, "Ready to fill.")


def status(page: Any, text: str) -> None:
    """Wait until the status line holds a text."""
    page.wait_for_function(
        "t => document.getElementById('status').textContent.includes(t)", arg=text
    )


def asked(page: Any) -> list[dict[str, Any]]:
    """The bodies of the inpaint requests that the page has sent."""
    return [
        json.loads(request.post_data)
        for request in page.requests
        if request.url.endswith("/realtime/inpaint")
    ]


def picture(uri: str) -> bytes:
    return base64.b64decode(uri.partition(",")[2])


def test_from_the_demo_to_a_result(page: Any, settings: Settings, tmp_path: Path) -> None:
    with serving(create_app(settings)) as client:
        enter_with_demo(page, client)
        page.click("#clear")
        status(page, "Brush over")
        box = page.locator("#mask").bounding_box()
        points = [(0.35, 0.35), (0.6, 0.35), (0.6, 0.5), (0.35, 0.5)]
        x, y = (
            [box["x"] + box["width"] * p[0] for p in points],
            [box["y"] + box["height"] * p[1] for p in points],
        )
        page.mouse.move(x[0], y[0])
        page.mouse.down()
        for to in zip(x[1:], y[1:], strict=True):
            page.mouse.move(*to, steps=8)
        page.mouse.up()
        page.click("text=a red apple")
        page.keyboard.press("Control+Enter")
        page.wait_for_selector('#viewport[data-mode="compare"]')
        with page.expect_download() as download:
            page.click("#save")
        made = Path(download.value.path()).read_bytes()
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.click("#curl")
        status(page, "Copied")
        command = page.evaluate("navigator.clipboard.readText()")
        (body,) = asked(page)
        (tmp_path / "photo.png").write_bytes(picture(body["init_image"]))
        (tmp_path / "mask.png").write_bytes(picture(body["mask_image"]))
        done = subprocess.run(
            ["bash", "-ec", command], cwd=tmp_path, capture_output=True, check=True
        )
        again = client.get(json.loads(done.stdout)["output"][0]).content
    assert body["prompt"] == "a red apple"
    photo, hole = (DEMO / "photo.png").read_bytes(), decode_mask(picture(body["mask_image"])) >= 128
    before, after = decode_picture(photo), decode_picture(made)
    assert np.array_equal(decode_picture(picture(body["init_image"])), before)
    assert 0.02 < hole.mean() < 0.2
    assert hole[180, 250]
    assert np.array_equal(after[~hole], before[~hole])
    assert np.abs(after[hole].astype(int) - before[hole]).mean() > 5
    assert again == made
    assert page.get_attribute("#save", "download").endswith(".png")
    assert page.locator("#strip li").count() == 1


def test_a_queued_picture_is_waited_for(page: Any, settings: Settings) -> None:
    slow = settings.model_copy(update={"wait_seconds": 0.05})
    with serving(create_app(slow, StubEngine(delay=0.5))) as client:
        enter_with_demo(page, client)
        page.click("#fill")
        status(page, "Not done yet. The server expects about")
        assert page.inner_text("#fill-label") == "Cancel"
        page.wait_for_selector('#viewport[data-mode="compare"]')
        assert any("/realtime/fetch/" in request.url for request in page.requests)
        assert page.inner_text("#fact-server") == "0.50 s"
        assert page.inner_text("#fill-label") == "Fill"


def test_errors_are_shown_where_they_belong(page: Any, settings: Settings) -> None:
    with serving(create_app(settings, StubEngine(error=EngineError("broken")))) as client:
        enter_with_demo(page, client)
        page.fill("#prompt", "")
        page.click("#fill")
        status(page, "see the marked field")
        assert page.inner_text("#prompt-hint") == "The prompt field is required."
        assert page.get_attribute("#prompt", "aria-invalid") == "true"
        page.fill("#prompt", "a cat")
        assert page.get_attribute("#prompt", "aria-invalid") is None
        page.evaluate("document.getElementById('steps').value = 99")
        page.keyboard.press("Control+Enter")
        page.wait_for_selector("#steps:focus")
        assert "must be between 1 and 50" in page.inner_text("#steps-hint")
        page.fill("#steps", "3")
        page.keyboard.press("Control+Enter")
        status(page, "The engine failed to make the picture.")
        assert page.get_attribute("#viewport", "data-mode") == "mask"
    page.click("#fill")
    status(page, "The server cannot be reached.")


def test_leaving_cancels_the_work(page: Any, settings: Settings) -> None:
    stub = StubEngine(delay=30)
    with serving(create_app(settings, stub)) as client:
        enter_with_demo(page, client)
        page.click("#fill")
        while not stub.requests:
            page.wait_for_timeout(10)
        page.keyboard.press("Escape")
        status(page, "Cancelled.")
        assert stub.cancelled.wait(5)


def test_a_key_stays_in_the_tab(page: Any, settings: Settings) -> None:
    keyed = Settings(data_dir=settings.data_dir, api_keys=("secret",))
    with serving(create_app(keyed, StubEngine())) as client:
        enter_with_demo(page, client)
        page.click("#fill")
        page.wait_for_selector("#key:focus")
        assert page.inner_text("#key-hint") == "API key required"
        page.fill("#key", "secret")
        page.keyboard.press("Control+Enter")
        page.wait_for_selector('#viewport[data-mode="compare"]')
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.click("#curl")
        status(page, "Copied")
        assert "secret" not in page.evaluate("navigator.clipboard.readText()")
        page.reload()
        page.wait_for_selector("body[data-ready]")
        assert page.input_value("#key") == "secret"
        assert page.evaluate("localStorage.length") == 0


def test_a_large_photo_by_keyboard(page: Any, settings: Settings) -> None:
    pixels = np.full((1000, 2000, 3), (90, 140, 60), np.uint8)
    photo = {"name": "wide.png", "mimeType": "image/png", "buffer": encode_png(pixels)}
    with serving(create_app(settings, StubEngine())) as client:
        enter(page, client)
        page.set_input_files("#file", photo)
        page.wait_for_selector("#mask:focus")
        assert page.inner_text("#caption").startswith("2000 × 1000, worked on at 1024 × 512")
        page.keyboard.press("]")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Shift+ArrowDown")
        page.keyboard.press("Space")
        page.keyboard.press("Control+z")
        page.fill("#prompt", "a cat")
        page.keyboard.press("Control+Enter")
        page.wait_for_selector('#viewport[data-mode="compare"]')
        page.click("#reuse")
        status(page, "Brush over")
        (body,) = asked(page)
    assert (body["width"], body["height"]) == (1024, 512)
    hole = decode_mask(picture(body["mask_image"])) >= 128
    assert hole.shape == (512, 1024)
    assert 0.005 < hole.mean() < 0.1
    pen = "document.getElementById('photo').getContext('2d')"
    colour = page.evaluate(f"Array.from({pen}.getImageData(530, 270, 1, 1).data)")
    assert tuple(colour[:3]) == COLOUR


def test_live(page: Any, settings: Settings) -> None:
    """Every change is sent over the stream, and what comes back is shown in the photo."""
    hole = np.argwhere(decode_mask((DEMO / "mask.png").read_bytes()) >= 128)
    y, x = (int(at) for at in hole[len(hole) // 2])
    pixel = f"""(() => {{
      const canvas = new OffscreenCanvas(1, 1);
      const pen = canvas.getContext("2d");
      pen.drawImage(document.getElementById("photo"), {-x}, {-y});
      return Array.from(pen.getImageData(0, 0, 1, 1).data).slice(0, 3);
    }})()"""
    coloured = f"colour => String({pixel}) === String(colour)"
    engine = StubEngine()
    with serving(create_app(settings, engine)) as client:
        enter_with_demo(page, client)
        before = page.evaluate(pixel)
        page.check("#live")
        page.wait_for_function(coloured, arg=list(COLOUR))
        status(page, "Live: done.")
        page.click("text=a red apple")
        page.click("#invert")
        page.wait_for_function(coloured, arg=before)
        page.click("#invert")
        page.wait_for_function(coloured, arg=list(COLOUR))
        page.click("#settings summary")
        page.fill("#steps", "99")
        status(page, "The num inference steps must be between 1 and 50.")
        page.uncheck("#live")
        assert page.evaluate(pixel) == before
        assert asked(page) == []
    prompts = [request.prompt for request in engine.requests]
    assert (prompts[0], prompts[-1]) == ("a sunflower", "a red apple")
    assert len({request.seed for request in engine.requests}) == 1
