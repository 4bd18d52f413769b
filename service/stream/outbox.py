"""The order of what a stream's client is told.

Edits end in any order; they are told in the order of their numbers. Previews are of the edit whose
turn it is, and only the newest is kept: whoever reads slowly gets fewer of them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

WINDOW: Final = 64
"""Edits whose end is not told yet; at so many, no more are read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A message to the client.

    Attributes:
        values: The JSON object, without ``binary``.
        pictures: What follows in binary frames.
        outcome: What the edit is counted as; empty for a preview.
    """

    values: dict[str, Any]
    pictures: Sequence[bytes] = field(default=())
    outcome: str = ""

    def text(self) -> str:
        """The text frame."""
        follows = {"binary": len(self.pictures)} if self.pictures else {}
        return json.dumps(self.values | follows, separators=(",", ":"))


def cancelled(edit: int) -> Told:
    """The end of an edit that is not wanted any more."""
    return Told(values={"type": "cancelled", "edit": edit}, outcome="cancelled")


class Outbox:
    """What is still to be told. For one event loop."""

    def __init__(self) -> None:
        self._ends: dict[int, Told] = {}
        self._preview: tuple[int, Callable[[], Told]] | None = None
        self._begun = 0  # edits that there are
        self._told = 0  # edits whose end was handed to the socket
        self._changed = asyncio.Condition()
        self._ended = False

    def begin(self) -> int:
        """There is another edit; its number."""
        self._begun += 1
        return self._begun

    @property
    def open(self) -> bool:
        """Whether an edit has no end yet."""
        return self._told + len(self._ends) < self._begun

    async def end(self, edit: int, told: Told) -> bool:
        """An edit has ended; False where it had ended before, which then holds."""
        if edit <= self._told or edit in self._ends:
            return False
        self._ends[edit] = told
        await self._notify()
        return True

    async def preview(self, edit: int, make: Callable[[], Told]) -> None:
        """Show how far an edit is, unless it has ended; ``make`` is called if there is time."""
        if edit > self._told and edit not in self._ends:
            self._preview = edit, make
            await self._notify()

    async def close(self) -> list[int]:
        """Nothing more comes: what is open ends as cancelled. Returns which edits those were."""
        left = [n for n in range(self._told + 1, self._begun + 1) if n not in self._ends]
        self._ends |= {edit: cancelled(edit) for edit in left}
        self._ended = True
        await self._notify()
        return left

    async def room(self) -> None:
        """Wait until there are not too many edits whose end is not told."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._begun - self._told < WINDOW)

    async def told(self, edit: int) -> None:
        """Wait until the end of an edit was handed to the socket."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._told >= edit)

    async def take(self) -> Told | None:
        """The next message, as soon as there is one; None when there will be none any more."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._ready() or self._ended)
        end = self._ends.get(self._told + 1)
        if end is not None:
            return end
        if self._preview is None:
            return None
        _, make = self._preview
        self._preview = None
        return make()

    async def done(self, told: Told) -> None:
        """What ``take`` gave is with the socket."""
        if told.outcome:
            self._told += 1
            del self._ends[self._told]
            if self._preview is not None and self._preview[0] <= self._told:
                self._preview = None
            await self._notify()

    def _ready(self) -> bool:
        following = self._told + 1
        if following in self._ends:
            return True
        return self._preview is not None and self._preview[0] == following

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
