"""A disk that fills up: what is refused, what fails in words, and that all goes on later."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.app import create_app
from service.settings import Settings
from service.storage.base import FULL, RESERVE
from tests.service.conftest import data_uri
from tests.service.live import serving
from tests.service.stub_engine import StubEngine

PATH = "/api/v6/realtime/inpaint"


@pytest.fixture
def body(photo: bytes, mask: bytes) -> dict[str, Any]:
    pictures = {"init_image": data_uri(photo), "mask_image": data_uri(mask)}
    return {"key": "k", "prompt": "a cat", "width": 96, "height": 64, **pictures}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own: the reserve and 8 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    size = f"size={RESERVE + 8 * 2**20}"
    try:
        command = ["mount", "-t", "tmpfs", "-o", size, "edgefill-test", str(place)]
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("mount is not installed")
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Take all space of a disk but some bytes."""
    ballast = disk / "ballast"
    with ballast.open("ab") as stream:
        while (room := shutil.disk_usage(disk).free - leave) > 0:
            stream.write(bytes(min(room, 2**20)))
            stream.flush()
    return ballast


def refused(response: httpx.Response) -> bool:
    """Whether an answer says that the disk is full."""
    if response.status_code != 503:
        return False
    assert response.json().items() >= {"status": "error", "message": FULL}.items()
    assert int(response.headers["retry-after"]) > 0
    return True


def fetch(client: httpx.Client, job_id: int) -> dict[str, Any]:
    """What there is to say of a job now."""
    response = client.post(f"/api/v6/realtime/fetch/{job_id}", json={"key": "k"})
    assert response.status_code == 200
    return dict(response.json())


def ended(client: httpx.Client, job_id: int) -> dict[str, Any]:
    """The answer of a job once it is not ``processing`` any more."""
    deadline = time.monotonic() + 20
    while (found := fetch(client, job_id))["status"] == "processing":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def test_below_the_reserve_nothing_new_is_taken(disk: Path, body: dict[str, Any]) -> None:
    upload = {"key": "k", "base64_string": body["init_image"]}
    with serving(create_app(Settings(data_dir=disk), StubEngine())) as client:
        link = client.post(PATH, json=body).json()["output"][0]
        ballast = fill(disk, leave=RESERVE - 2**20)
        assert refused(client.get("/readyz"))
        assert refused(client.post(PATH, json=body))
        assert refused(client.post("/api/v6/base64_to_url", json=upload))
        assert client.post(PATH, json=body | {"prompt": ""}).status_code == 400
        assert client.get("/livez").status_code == 200
        assert client.get(link).status_code == 200
        ballast.unlink()
        assert client.get("/readyz").status_code == 200
        assert client.post(PATH, json=body).json()["status"] == "success"
        assert client.post("/api/v6/base64_to_url", json=upload).status_code == 200


def test_a_disk_that_fills_up_during_the_work(
    disk: Path, body: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(data_dir=disk, slots=1)
    stub = StubEngine(delay=60)
    queued = body | {"instant_response": True}
    with serving(create_app(settings, stub)) as client:
        begun, waiting = (client.post(PATH, json=queued).json()["id"] for _ in range(2))
        while not stub.requests:
            time.sleep(0.01)
        ballast = fill(disk, leave=0)
        stub.delay = 0
        deadline = time.monotonic() + 20
        while f"job {begun}: the storage failed: no space left on device" not in caplog.messages:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert client.get("/livez").status_code == 200
        assert refused(client.get("/readyz"))
        ballast.unlink()
        assert ended(client, begun) == {"status": "error", "message": FULL, "id": begun}
        assert ended(client, waiting)["status"] == "success"
        assert client.post(PATH, json=body).json()["status"] == "success"
    assert len(list((disk / "outputs").iterdir())) == 2
