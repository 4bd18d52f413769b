"""Where other threads leave things for the supervisor, with a bell that its poll can hear."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque

from service.engine_process.line import Entry, ProcessTicket


class Door:
    """Requests and notices for one thread, left by any. Nothing is lost: what was taken in before
    the door was shut comes out of ``take`` or of ``shut``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: deque[Entry] = deque()
        self._tickets: deque[ProcessTicket] = deque()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._shut = False

    def fileno(self) -> int:
        """The bell's descriptor: readable when there is something to take."""
        return self._bell

    def bring(self, entry: Entry) -> bool:
        """Leave a request; False where the door is shut."""
        with self._lock:
            if self._shut:
                return False
            self._entries.append(entry)
            os.eventfd_write(self._bell, 1)
            return True

    def notice(self, ticket: ProcessTicket) -> None:
        """Say that a ticket was cancelled, or that its steps were asked for."""
        with self._lock:
            if not self._shut:
                self._tickets.append(ticket)
                os.eventfd_write(self._bell, 1)

    def ring(self) -> None:
        """Wake the supervisor, for nothing else."""
        with self._lock:
            if not self._shut:
                os.eventfd_write(self._bell, 1)

    def take(self) -> tuple[list[Entry], list[ProcessTicket]]:
        """What was left since the last time."""
        with self._lock:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._bell)
            entries, tickets = list(self._entries), list(self._tickets)
            self._entries.clear()
            self._tickets.clear()
        return entries, tickets

    def put_back(self, ticket: ProcessTicket) -> None:
        """A notice that could not be passed on yet; it does not ring."""
        with self._lock:
            self._tickets.append(ticket)

    def shut(self) -> list[Entry]:
        """Take no more; what was left until now."""
        with self._lock:
            self._shut = True
            os.close(self._bell)
            entries = list(self._entries)
            self._entries.clear()
            self._tickets.clear()
        return entries
