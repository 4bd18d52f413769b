"""What the job store raises on purpose.

ServiceError
├── StoreError    the database cannot be opened, read or written; nothing of the call happened
└── QueueFull     a job was not accepted, because as many as allowed are waiting
"""

from __future__ import annotations

from typing import Literal

from service.errors import ServiceError


class StoreError(ServiceError):
    """The database cannot do it. The message is for the log, not for clients."""


class QueueFull(ServiceError):
    """A job was not accepted.

    Attributes:
        scope: ``"key"`` when the key has too many queued jobs, ``"all"`` when all keys together.
        limit: How many queued jobs that scope may have.
    """

    def __init__(self, scope: Literal["key", "all"], limit: int) -> None:
        super().__init__(f"the queue is full: {limit} queued jobs ({scope})")
        self.scope = scope
        self.limit = limit
