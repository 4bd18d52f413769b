"""Fixtures of the engine's tests: tiny bundles, an engine on one, a picture with a hole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engine import Engine, InpaintRequest
from tests.engine.tiny import make_bundle


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny 9-channel bundle; do not write into it."""
    return make_bundle(tmp_path_factory.mktemp("bundles") / "nine")


@pytest.fixture(scope="session")
def plain_bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny 4-channel bundle whose VAE encoder has no variance; do not write into it."""
    folder = tmp_path_factory.mktemp("bundles") / "four"
    return make_bundle(folder, unet_channels=4, gaussian=False)


@pytest.fixture(scope="session")
def engine(bundle_path: Path) -> Iterator[Engine]:
    """An engine on the 9-channel bundle, its loop in a thread."""
    with Engine.open(bundle_path, threads=1) as opened:
        yield opened


@pytest.fixture
def picture() -> npt.NDArray[np.uint8]:
    """(96, 128, 3): a smooth gradient with some grain."""
    y, x = np.mgrid[0:96, 0:128]
    grain = np.random.default_rng(5).integers(0, 20, (96, 128, 3))
    return (np.stack([x, y, (x + y) // 2], -1) + grain).astype(np.uint8)


@pytest.fixture
def hole() -> npt.NDArray[np.uint8]:
    """(96, 128): a white box of 32x40 pixels on black."""
    mask = np.zeros((96, 128), np.uint8)
    mask[30:62, 50:90] = 255
    return mask


@pytest.fixture
def manual(bundle_path: Path) -> Iterator[Engine]:
    """An engine whose loop the test drives."""
    with Engine.open(bundle_path, threads=1, background=False) as opened:
        yield opened


@pytest.fixture
def ask(picture: npt.NDArray[np.uint8], hole: npt.NDArray[np.uint8]) -> Any:
    def make(**changes: Any) -> InpaintRequest:
        values = {"image": picture, "mask": hole, "prompt": "a red apple", "seed": 1}
        return InpaintRequest(**(values | changes))

    return make
