"""The playground: one static page at ``/`` that asks this server as any other client does.

It may import the settings, the schema and starlette; it never touches jobs or the engine. The page
is public, with API keys or without, since it holds nothing secret: no framework, no build step,
nothing loaded from elsewhere, and a content security policy that holds it to that.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from engine.request import Region
from engine.schedulers import SCHEDULERS
from service.errors import ApiError
from service.schema import InpaintBody
from service.settings import Settings

__all__ = ["HEADERS", "routes"]

HEADERS: Final = {
    "Cache-Control": "no-cache",  # kept, and asked for again by its ETag
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; form-action 'none'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""What every file of the page is answered with."""

_HERE: Final = Path(__file__).parent
_DEMO: Final = _HERE.parent / "demo"
_PAGE: Final = "index.html"
_ICON: Final = "favicon.svg"
_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """A file as it is answered."""

    content: bytes
    media_type: str
    etag: str

    @classmethod
    def make(cls, name: str, content: bytes) -> _File:
        etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        return cls(content=content, media_type=_TYPES[Path(name).suffix], etag=etag)

    def answer(self, request: Request) -> Response:
        """The file, or 304 where the browser has it."""
        headers = {**HEADERS, "ETag": self.etag}
        asked = request.headers.get("if-none-match", "")
        if self.etag in (tag.strip().removeprefix("W/") for tag in asked.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)


def routes(settings: Settings) -> list[Route]:
    """The page at ``/``, its files under ``/playground/`` and its icon.

    Everything is read once, here: later requests touch no disk and no name of theirs is ever a
    path.
    """
    files = {
        path.name: _File.make(path.name, path.read_bytes())
        for path in _HERE.iterdir()
        if path.suffix in _TYPES
    }
    for name in ("photo.png", "mask.png"):
        files[f"demo-{name}"] = _File.make(name, (_DEMO / name).read_bytes())
    about = json.dumps(_about(settings), separators=(",", ":")).encode()
    files["server.json"] = _File.make("server.json", about)

    async def page(request: Request) -> Response:
        return files[_PAGE].answer(request)

    async def icon(request: Request) -> Response:
        return files[_ICON].answer(request)

    async def file(request: Request) -> Response:
        found = files.get(request.path_params["file"])
        if found is None:
            raise ApiError(404, "There is nothing at this address.")
        return found.answer(request)

    return [
        Route("/", page, methods=["GET"]),
        Route("/favicon.ico", icon, methods=["GET"]),
        Route("/playground/{file}", file, methods=["GET"]),
    ]


def _about(settings: Settings) -> dict[str, Any]:
    """What the page must know of this server, all of it public."""
    return {
        "bounds": _bounds(),
        "default_model": settings.bundle is None,
        "key_required": bool(settings.api_keys),
        "regions": get_args(Region),
        "retention_hours": settings.retention_hours,
        "schedulers": SCHEDULERS,
    }


def _bounds() -> dict[str, tuple[int, int]]:
    """Lowest and highest value of each number that a request may hold, from the schema itself."""
    found = {}
    for name, field in InpaintBody.model_fields.items():
        for part in field.metadata:
            check = getattr(part, "func", None)
            low, high = getattr(check, "low", None), getattr(check, "high", None)
            if low is not None and high is not None:
                found[name] = (low, high)
    return found
