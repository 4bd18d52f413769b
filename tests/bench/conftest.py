"""Fixtures of the benchmarks' tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.tiny import make_bundle


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny 9-channel bundle; do not write into it."""
    return make_bundle(tmp_path_factory.mktemp("bundles") / "nine")
