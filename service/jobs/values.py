"""The values that go into the job store and come out of it. Times are seconds since 1970."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

MAX_CRASHES: Final = 3
"""How often a job may take the process that runs it down before it is failed."""


class State(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to the job."""
        return self in ENDED


ENDED: Final = (State.DONE, State.FAILED, State.CANCELLED)


class DeliveryState(StrEnum):
    """Where a webhook stands."""

    PENDING = "pending"
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A checked request that wants to be a job.

    Attributes:
        kind: What is to be done, such as ``"inpaint"``.
        key: The client's API key; only a salted digest of it is kept.
        request: The checked request as JSON text, its seed fixed, without the key.
        file_prefix: The part of the output files' names that cannot be guessed.
        webhook: http or https URL that is told the outcome.
        track_id: The client's own name for the job; need not be unique.
        deadline: Time after which the job is no longer begun.
    """

    kind: str
    key: str
    request: str
    file_prefix: str
    webhook: str | None = None
    track_id: str | int | None = None
    deadline: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How many queued jobs there may be; what runs already does not count.

    Attributes:
        per_key: Of one key.
        total: Of all keys together.
    """

    per_key: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as the store knows it.

    Attributes:
        id: 1 to 2**31 - 1, random.
        attempt: How often it has been claimed; with the id, what an outcome must name.
        crashes: How often it was running when its process went down.
        request: The request as JSON text; None once the job has ended, and in lists.
        answer: The answer of a finished job; None before, and in lists.
        message: Why it failed, as a sentence for the client.
        files: Names of its output files.
        owner: The salted digest of its key, as text: equal for jobs of the same key.
        started_at: When it was last claimed.
        ended_at: When it was finished, failed or cancelled.
    """

    id: int
    kind: str
    state: State
    attempt: int
    crashes: int
    file_prefix: str
    webhook: str | None
    track_id: str | int | None
    deadline: float | None
    accepted_at: float
    started_at: float | None
    ended_at: float | None
    message: str | None
    files: tuple[str, ...]
    owner: str
    request: str | None = None
    answer: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStatistics:
    """How full the queue is.

    Attributes:
        queued: Jobs that wait.
        running: Jobs that are worked on.
        oldest_age: Seconds that the longest waiting one has waited; 0 when none waits.
    """

    queued: int
    running: int
    oldest_age: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What was done about the jobs that an earlier process left running.

    Attributes:
        requeued: Ids of those that will run again.
        failed: Ids of those that were running at ``MAX_CRASHES`` crashes.
    """

    requeued: tuple[int, ...]
    failed: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One webhook.

    Attributes:
        id: The ``webhook-id``, the same in every attempt.
        url: Where it goes. May hold the client's secrets: never log it.
        host: The host in the URL.
        body: The JSON text that is sent.
        attempts: How often it was tried, since it was made or redelivered.
        next_at: When it is tried next, while it is pending.
        last_status: HTTP status of the latest attempt; None where there was no answer.
        last_error: What went wrong in the latest attempt.
    """

    id: str
    job_id: int
    url: str
    host: str
    body: str
    state: DeliveryState
    attempts: int
    next_at: float
    created_at: float
    ended_at: float | None
    last_status: int | None
    last_error: str | None
