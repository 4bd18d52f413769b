"""The whole way with the model that ships with Edgefill: no stub anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from engine.image import decode_mask, decode_picture
from service.app import create_app
from service.cli import main
from service.commands.inpaint import DEMO
from service.settings import Settings
from tests.service.conftest import data_uri
from tests.service.live import serving
from tests.service.test_inpaint import PAGE_EXAMPLE, PATH, check_success


def test_the_pages_own_example(settings: Settings) -> None:
    init, mask = ((DEMO / name).read_bytes() for name in ("photo.png", "mask.png"))
    text = PAGE_EXAMPLE.replace("INIT", data_uri(init)).replace("MASK", data_uri(mask))
    with serving(create_app(settings)) as client:
        response = client.post(PATH, content=text)
        assert response.status_code == 200
        answer = response.json()
        check_success(answer)
        made = decode_picture(client.get(answer["output"][0]).content)
    before, hole = decode_picture(init), decode_mask(mask) >= 128
    assert made.shape == (512, 512, 3)
    assert np.array_equal(made[~hole], before[~hole])
    assert np.abs(made[hole].astype(int) - before[hole]).mean() > 10
    timings = answer["meta"]["timings"]
    assert answer["generationTime"] == pytest.approx(timings["total"] - timings["queue"], abs=1e-3)


def test_the_demo_twice_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    files = []
    for name in ("a.png", "b.png"):
        assert main(["inpaint", "--demo", "--steps", "2", "--output", name, "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        assert record["steps_run"] == 2
        assert record["device"] == "cpu"
        files.append(Path(record["output"][0]).read_bytes())
    assert files[0] == files[1]


def test_unknown_schedulers_are_the_clients_error(settings: Settings) -> None:
    init, mask = ((DEMO / name).read_bytes() for name in ("photo.png", "mask.png"))
    text = PAGE_EXAMPLE.replace("INIT", data_uri(init)).replace("MASK", data_uri(mask))
    with serving(create_app(settings)) as client:
        response = client.post(PATH, json=json.loads(text) | {"scheduler": "abacus"})
    assert response.status_code == 400
    assert response.json()["message"].startswith("The scheduler is 'abacus'; allowed: ddim")


def test_the_doctor_is_content(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["default bundle"]["ok"]
    assert checks["devices"]["ok"]
