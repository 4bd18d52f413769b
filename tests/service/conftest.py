"""Fixtures of the service's tests: pictures, a clean environment, servers on loopback."""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engine.image import encode_png
from service import logs
from service.settings import Settings
from tests.service.live import Origin, origin


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.upper().startswith("EDGEFILL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("EDGEFILL_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """The command line sets up the logs of a whole process, which here is the tests' own."""
    loggers = [logging.getLogger(name) for name in ("", *logs.OURS)]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    yield
    logging.captureWarnings(False)
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", fetch_allow=("127.0.0.1",))


@pytest.fixture(scope="session")
def photo() -> bytes:
    """A PNG of 96x64 pixels with something in every one of them."""
    return encode_png(np.random.RandomState(0).randint(0, 256, (64, 96, 3)).astype(np.uint8))


@pytest.fixture(scope="session")
def mask() -> bytes:
    """A PNG of 96x64 pixels, its left half white."""
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:, :48] = 255
    return encode_png(pixels)


@pytest.fixture
def pictures() -> Iterator[Origin]:
    with origin() as running:
        yield running


def data_uri(png: bytes) -> str:
    """A PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
