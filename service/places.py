"""Places among the dispatcher's slots for work that is no job: edits take turns with the jobs."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable


class Places:
    """Slots that edits take. Where both wait, a slot that becomes free goes to an edit and to a job
    by turns; among themselves, edits come in the order in which they asked.

    Args:
        free: How many slots nobody has.
        jobs_wait: Whether a job may be waiting.
        changed: Called when a place was given back.

    Attributes:
        taken: Slots that edits have now.
    """

    def __init__(
        self,
        *,
        free: Callable[[], int],
        jobs_wait: Callable[[], bool],
        changed: Callable[[], None],
    ) -> None:
        self.taken = 0
        self._free = free
        self._jobs_wait = jobs_wait
        self._changed = changed
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._jobs_turn = False

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a slot, and have it until the context ends."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self.deal()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._waiting.remove(turn)
            else:
                self._give_back()
            raise
        try:
            yield
        finally:
            self._give_back()

    def deal(self) -> None:
        """Give free slots to the edits that wait, as far as it is their turn."""
        while self._free() > 0:
            # one that is cancelled is taken out by its own task, which has not run since
            turn = next((turn for turn in self._waiting if not turn.cancelled()), None)
            if turn is None or (self._jobs_turn and self._jobs_wait()):
                return
            self._jobs_turn = True
            self._waiting.remove(turn)
            self.taken += 1
            turn.set_result(None)

    def jobs_were_served(self) -> None:
        """Jobs had their turn: all that fitted were begun."""
        self._jobs_turn = False
        self.deal()

    def _give_back(self) -> None:
        self.taken -= 1
        self.deal()
        self._changed()
