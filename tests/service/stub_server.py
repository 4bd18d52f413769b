"""A server with a stub engine in a process of its own: ``python -m tests.service.stub_server``.

Arguments: the data directory, the port, and the seconds that a picture takes. The hole's colour is
the seed, so that a picture tells with which one it was made.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import uvicorn

from engine import InpaintRequest, InpaintResult
from service.app import create_app
from service.settings import Settings
from tests.service.stub_engine import COLOUR, StubEngine, fill


class SeedEngine(StubEngine):
    def _fill(self, request: InpaintRequest) -> InpaintResult:
        result = fill(request)
        hole = (result.images == np.array(COLOUR, np.uint8)).all(axis=-1)
        images = result.images.copy()
        images[hole] = colour(result.seed)
        return dataclasses.replace(result, images=images)


def colour(seed: int) -> tuple[int, int, int]:
    """The last 24 bits of a seed as a colour."""
    return (seed >> 16 & 255, seed >> 8 & 255, seed & 255)


def main(data_dir: str, port: str, delay: str) -> None:
    """Serve until killed."""
    settings = Settings(data_dir=Path(data_dir), slots=4, queue_limit=10_000, queue_total=10_000)
    app = create_app(settings, SeedEngine(delay=float(delay)))
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="error", ws="none")


if __name__ == "__main__":
    main(*sys.argv[1:])
