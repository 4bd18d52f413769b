"""SIGKILL at random moments under load: what was answered ``processing`` is never lost.

``EDGEFILL_TEST_KILLS`` says how often the server with a stub engine is killed, a hundred in a long
run; ``EDGEFILL_TEST_KILLS_REAL`` how often the one with the model that ships, twenty in a long run.
``pytest -s`` shows the account.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import Engine, InpaintRequest
from engine.image import decode_mask, decode_picture
from tests.service.conftest import data_uri
from tests.service.kills import Receiver, Server, settle, survive
from tests.service.live import Origin
from tests.service.stub_server import colour

KILLS = int(os.environ.get("EDGEFILL_TEST_KILLS", "4"))
KILLS_REAL = int(os.environ.get("EDGEFILL_TEST_KILLS_REAL", "1"))
CLIENTS = 3
ASKS = {"key": "k", "prompt": "a red apple", "width": 96, "height": 64, "num_inference_steps": 2}


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def body(photo: bytes, mask: bytes) -> dict[str, Any]:
    return ASKS | {"init_image": data_uri(photo), "mask_image": data_uri(mask), "strength": 1}


def test_nothing_accepted_is_lost(
    tmp_path: Path, body: dict[str, Any], photo: bytes, mask: bytes, pictures: Origin
) -> None:
    kept, hole = decode_picture(photo), decode_mask(mask) >= 128

    def check(seed: int, picture: bytes) -> None:
        made = decode_picture(picture)
        assert (made[hole] == colour(seed)).all()
        assert np.array_equal(made[~hole], kept[~hole])

    receiver = Receiver()
    hook = receiver.listen(pictures)
    stub = [sys.executable, "-m", "tests.service.stub_server", str(tmp_path)]
    server = Server(lambda port: [*stub, str(port), "0.05"], {"EDGEFILL_FETCH_ALLOW": "127.0.0.1"})
    bodies = [body | {"webhook": hook, "seed": i} for i in range(CLIENTS)]
    try:
        promised = survive(server, bodies, kills=KILLS, longest=0.8)
        account = settle(server, promised, receiver, kills=KILLS, check=check)
    finally:
        server.kill()
    print(f"\nstub engine: {account}")
    assert account.accepted >= KILLS
    assert (account.lost, account.twice) == (0, 0)
    assert account.done >= account.accepted // 2


def test_nothing_accepted_is_lost_with_the_model_that_ships(
    tmp_path: Path, body: dict[str, Any], photo: bytes, mask: bytes, pictures: Origin
) -> None:
    receiver = Receiver()
    hook = receiver.listen(pictures)
    settings = {"EDGEFILL_FETCH_ALLOW": "127.0.0.1", "EDGEFILL_DATA_DIR": str(tmp_path)}
    serve = [sys.executable, "-m", "service.cli", "serve", "--port"]
    server = Server(lambda port: [*serve, str(port)], settings)
    bodies = [body | {"webhook": hook, "seed": i} for i in range(CLIENTS)]
    with Engine.open() as engine:

        def check(seed: int, picture: bytes) -> None:
            request = InpaintRequest(
                image=decode_picture(photo),
                mask=decode_mask(mask),
                prompt=ASKS["prompt"],  # type: ignore[arg-type]
                width=96,
                height=64,
                seed=seed,
                num_inference_steps=2,
            )
            wanted = engine.inpaint(request).images[0]
            # one of them may have been made in company
            assert np.abs(decode_picture(picture).astype(int) - wanted).max() <= 1

        try:
            promised = survive(server, bodies, kills=KILLS_REAL, longest=1.5)
            account = settle(server, promised, receiver, kills=KILLS_REAL, check=check)
        finally:
            server.kill()
    print(f"\nmodel that ships: {account}")
    assert account.accepted >= KILLS_REAL
    assert (account.lost, account.twice) == (0, 0)
    assert account.done >= account.accepted // 2
