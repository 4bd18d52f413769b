"""A server with a stub engine in a process of its own: ``python -m tests.service.stub_server``.

Arguments: the data directory, the port, and the seconds that a picture takes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import uvicorn

from service.app import create_app
from service.settings import Settings
from tests.service.stub_engine import StubEngine


def main(data_dir: str, port: str, delay: str) -> None:
    """Serve until killed."""
    settings = Settings(data_dir=Path(data_dir), slots=4, queue_limit=10_000, queue_total=10_000)
    app = create_app(settings, StubEngine(delay=float(delay)))
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="error", ws="none")


if __name__ == "__main__":
    main(*sys.argv[1:])
