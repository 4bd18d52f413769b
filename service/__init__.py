"""The service: the HTTP contract over the engine, and the command line.

May import: starlette, uvicorn, pydantic, httpx, httpcore, sqlalchemy, fsspec, prometheus_client,
rich, and ``engine``. It turns bytes from the network into arrays for the engine, and the engine's
arrays into answers; model maths stays in ``engine``. ``export`` and ``bench`` are reached by the
command line alone, and only when their command is given.

    from service import Settings, create_app

    app = create_app(Settings.load())          # an ASGI application
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.app import create_app
    from service.settings import Settings

__all__ = ["Settings", "create_app"]


def __getattr__(name: str) -> object:
    """Import the two public names when they are asked for, so that the command line starts fast."""
    if name == "create_app":
        from service.app import create_app

        return create_app
    if name == "Settings":
        from service.settings import Settings

        return Settings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
