"""Turns: nobody has more than so many at a time, and the others wait in the order they came."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass


@dataclass(slots=True)
class _Gate:
    """The places of one name, and how many have or want one."""

    places: asyncio.Semaphore
    users: int = 0


class Turns:
    """Places by name, the same number for each; a name that nobody uses takes no memory.

    Args:
        each: Places per name.
    """

    def __init__(self, each: int) -> None:
        self._each = each
        self._gates: dict[str, _Gate] = {}

    def __len__(self) -> int:
        """How many names have or want a place."""
        return len(self._gates)

    @contextlib.asynccontextmanager
    async def of(self, name: str) -> AsyncIterator[None]:
        """Wait for a place of ``name``, and have it until the context ends."""
        gate = self._gates.setdefault(name, _Gate(asyncio.Semaphore(self._each)))
        gate.users += 1
        try:
            async with gate.places:
                yield
        finally:
            gate.users -= 1
            if not gate.users:
                del self._gates[name]
