"""The bodies of requests: read whole, within limits, before anything is known about them.

The key stands in the body, so that a stranger's body is read too. What all bodies take together is
bounded therefore, and whoever sends more slowly than the floor is dropped. What counts is what has
come: to announce much costs nobody anything.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from starlette.requests import ClientDisconnect, Request

from service.errors import BUSY, ApiError
from service.pace import collect

BODY_SECONDS: Final = 30.0
"""Longest time a body may take to arrive."""

GRACE_SECONDS: Final = 5.0
"""Seconds after which a body must come at the floor's rate."""

BUDGET: Final = 8
"""How many of the largest bodies may be in memory at the same time."""


class BodyReader:
    """Reads the bodies of requests.

    Args:
        limit: Largest body in bytes.
        budget: Bytes of all bodies that are being read or parsed; ``BUDGET * limit`` where None.
    """

    def __init__(self, limit: int, *, budget: int | None = None) -> None:
        self._limit = limit
        self._free = BUDGET * limit if budget is None else budget

    @property
    def free(self) -> int:
        """Bytes that may still come before somebody is refused."""
        return self._free

    @contextlib.asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The body of a request; it counts until the context ends.

        Raises:
            ApiError: 413 when it is too large, 503 when all together are, 408 when it is too slow,
                400 when it does not come to its end.
        """
        taken = 0

        def admit(count: int) -> None:
            nonlocal taken
            if taken + count > self._limit:
                raise self._too_large()
            if count > self._free:
                raise ApiError(503, BUSY, headers={"Retry-After": "1"})
            self._free -= count
            taken += count

        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self._limit:
            raise self._too_large()
        try:
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    body = await collect(request.stream(), grace=GRACE_SECONDS, admit=admit)
            except TimeoutError:
                sentence = "The request body took too long to arrive."
                raise ApiError(408, sentence, headers={"Connection": "close"}) from None
            except ClientDisconnect as exc:
                raise ApiError(400, "The request body is not whole.") from exc
            yield body
        finally:
            self._free += taken

    def _too_large(self) -> ApiError:
        return ApiError(413, f"The request body is larger than {self._limit / 1e6:g} MB.")
