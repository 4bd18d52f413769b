"""A decoder with the service's own limits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engine.header import PictureLimits
from service.decoding import PictureDecoder
from service.settings import Settings


@pytest.fixture(scope="session")
def limits() -> PictureLimits:
    return Settings(_env_file=None).picture_limits


@pytest.fixture(scope="session")
def decoder(limits: PictureLimits) -> Iterator[PictureDecoder]:
    opened = PictureDecoder.open(limits=limits)
    yield opened
    opened.close()
