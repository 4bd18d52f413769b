"""Who goes into the child next, and who has had enough attempts. Policy only: no processes here.

Requests wait in order and enter while fewer than ``window`` are inside. When the child dies, those
inside become suspects: any of them may be what killed it. Suspects are tried again before
everybody else and one at a time, so that the second and third death are the fault of one request
alone; that one is given up, and its neighbours have lost no more than time.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from engine import InpaintResult, Ticket
from engine.job import Draft
from engine.request import Region
from engine.ticket import OnStep

MAX_ATTEMPTS: Final = 3
"""How often a request may be inside a child that dies."""

_numbers = itertools.count(1)


class ProcessTicket(Ticket):
    """A promise of a result from another process.

    After a crash the steps are counted from 1 again, in a new attempt.

    Attributes:
        number: What the request is called between the processes.
        attempts: How often it was handed to a child so far.
    """

    def __init__(self, notice: Callable[[ProcessTicket], None]) -> None:
        super().__init__()
        self.number: Final = next(_numbers)
        self.attempts = 0
        self._notice: Callable[[ProcessTicket], None] | None = notice
        self._watched = False

    @property
    def watched(self) -> bool:
        """Whether anybody asked for steps."""
        return self._watched

    def cancel(self) -> bool:
        """Ask to stop before the next step; False when it is already done."""
        asked = super().cancel()
        if asked:
            self._tell()
        return asked

    def on_step(self, callback: OnStep) -> None:
        """Call ``callback(step, total, preview)`` after every step; see ``Ticket.on_step``."""
        super().on_step(callback)
        self._watched = True
        self._tell()

    def settle(self, outcome: InpaintResult | BaseException) -> None:
        """For the engine: set the result or the error, once."""
        super().settle(outcome)
        self._notice = None  # so that a ticket which is kept does not keep the engine

    def _tell(self) -> None:
        notice = self._notice
        if notice is not None:
            notice(self)


@dataclass(slots=True, kw_only=True, eq=False)
class Entry:
    """A checked request and its ticket.

    Attributes:
        submitted: ``time.perf_counter()`` when it was handed in.
        prepared: Seconds that its check took.
        handed: ``time.perf_counter()`` when it was last handed to a child.
        told_cancel: Whether the child it is in was told to cancel it.
        told_watch: Whether the child it is in was told to report its steps.
    """

    ticket: ProcessTicket
    draft: Draft
    region: Region
    submitted: float
    prepared: float
    handed: float = 0.0
    told_cancel: bool = False
    told_watch: bool = False


class Line:
    """The requests of one engine process that are not done. For one thread."""

    def __init__(self, *, window: int) -> None:
        self.window: Final = window
        self.inside: Final[dict[int, Entry]] = {}
        self._waiting: dict[int, Entry] = {}
        self._suspects: deque[Entry] = deque()

    def join(self, entry: Entry) -> None:
        """Take a new request."""
        self._waiting[entry.ticket.number] = entry

    def next(self) -> Entry | None:
        """Who may enter now, if anybody; it stays where it is."""
        if self._suspects:
            return None if self.inside else self._suspects[0]
        if len(self.inside) >= self.window or any(e.ticket.attempts > 1 for e in self._in()):
            return None
        return next(iter(self._waiting.values()), None)

    def enter(self, entry: Entry) -> None:
        """It was handed to the child."""
        self.withdraw(entry)
        entry.ticket.attempts += 1
        self.inside[entry.ticket.number] = entry

    def find(self, number: int) -> Entry | None:
        """A request by its number, wherever it stands."""
        if number in self.inside:
            return self.inside[number]
        if number in self._waiting:
            return self._waiting[number]
        return next((e for e in self._suspects if e.ticket.number == number), None)

    def withdraw(self, entry: Entry) -> None:
        """Take it out of the line, wherever it stands."""
        self.inside.pop(entry.ticket.number, None)
        self._waiting.pop(entry.ticket.number, None)
        if entry in self._suspects:
            self._suspects.remove(entry)

    def crash(self) -> list[Entry]:
        """The child died: those inside become suspects.

        Returns:
            Those that have had their attempts or were cancelled, and are out of the line now.
        """
        died = sorted(self._in(), key=lambda entry: entry.ticket.number)
        self.inside.clear()
        out = [e for e in died if e.ticket.attempts >= MAX_ATTEMPTS or e.ticket.cancelled()]
        again = [e for e in died if e not in out]
        for entry in again:
            entry.told_cancel = entry.told_watch = False
        # One that died alone stays first: its neighbours of the first death wait behind it.
        self._suspects.extendleft(reversed(again))
        return out

    def drain(self) -> list[Entry]:
        """Everybody, who are out of the line now."""
        everybody = [*self._in(), *self._suspects, *self._waiting.values()]
        self.inside.clear()
        self._suspects.clear()
        self._waiting.clear()
        return everybody

    def __len__(self) -> int:
        return len(self.inside) + len(self._suspects) + len(self._waiting)

    def _in(self) -> list[Entry]:
        return list(self.inside.values())
