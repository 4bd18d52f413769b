"""What is known of a full queue without asking the store: refusing must cost little."""

from __future__ import annotations

from service.jobs import QueueFull


class Fullness:
    """The store's last word on a full queue, which holds until a job leaves the queue.

    Attributes:
        departures: How often jobs have left the queue.
    """

    def __init__(self) -> None:
        self.departures = 0
        self._full_for: dict[str | None, QueueFull] = {}  # by key; None: for everybody

    def known(self, key: str | None = None) -> QueueFull | None:
        """Why a request with this key would be refused; without a key, what holds for every key."""
        return self._full_for.get(None) or self._full_for.get(key)

    def note(self, full: QueueFull, *, key: str, departures: int) -> None:
        """The store refused a request of ``key``, asked when there had been so many departures."""
        if departures == self.departures:
            self._full_for[key if full.scope == "key" else None] = full

    def departed(self) -> None:
        """Jobs have left the queue: it may have room."""
        self.departures += 1
        self._full_for.clear()
