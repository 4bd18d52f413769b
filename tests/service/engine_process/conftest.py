"""Engine processes on the tiny bundle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import Engine
from service.engine_process import EngineProcess
from tests.engine.tiny import make_bundle
from tests.service.engine_process.helpers import POISON, a_request


@pytest.fixture(scope="package")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="package")
def plain(bundle: Path) -> Iterator[Engine]:
    """The engine in this process, which says what is right."""
    with Engine.open(bundle, device="cpu", threads=1) as engine:
        yield engine


@pytest.fixture(scope="package")
def shared(bundle: Path) -> Iterator[EngineProcess]:
    """One engine process that tests may kill; every test finds it, or its successor, sound."""
    with EngineProcess.open(bundle, device="cpu", threads=1, factory=POISON) as process:
        yield process


@pytest.fixture
def process(shared: EngineProcess) -> EngineProcess:
    shared.inpaint(a_request(), timeout=30)
    return shared
