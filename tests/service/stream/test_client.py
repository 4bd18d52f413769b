"""The README's client, as it stands there, against a server with the model that ships."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engine.image import decode_picture
from service.app import create_app
from service.commands.inpaint import DEMO
from service.settings import Settings
from tests.service.live import serving

README = Path(__file__).parents[3] / "README.md"
MARK = "<!-- run by tests/service/stream/test_client.py -->"


def test_the_client_of_the_readme(
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = re.search(MARK + r"\n```py\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    client = found[1]
    assert len(client.splitlines()) <= 30
    for name in ("photo.png", "mask.png"):
        (tmp_path / name).write_bytes((DEMO / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    with serving(create_app(settings), settings) as server:
        address = f"ws://127.0.0.1:{server.base_url.port}"
        exec(client.replace("ws://127.0.0.1:8000", address), {})
    said = capsys.readouterr().out.splitlines()
    assert "1 cancelled " in said
    assert "2 preview 1" in said
    assert decode_picture((tmp_path / "preview.jpg").read_bytes()).shape == (256, 256, 3)
    assert decode_picture((tmp_path / "filled.png").read_bytes()).shape == (512, 512, 3)
