"""Who waits for which job, and what they are to be told."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from service.errors import ApiError


class Waiters:
    """Clients that wait for jobs of this process. A restart loses them, never a job."""

    def __init__(self) -> None:
        self._ended: dict[int, asyncio.Event] = {}
        self._refusals: dict[int, ApiError] = {}
        self._answers: dict[int, Mapping[str, Any]] = {}

    def expect(self, job_id: int) -> None:
        """Somebody waits for a job from now on."""
        self._ended[job_id] = asyncio.Event()

    async def ended(self, job_id: int) -> None:
        """Wait until a job of this process has ended, or will not run here any more."""
        event = self._ended.get(job_id)
        if event is not None:
            await event.wait()

    def refuse(self, job_id: int, error: ApiError) -> None:
        """Keep why a job failed, with its status code, until it is told."""
        self._refusals[job_id] = error

    def answer(self, job_id: int, answer: Mapping[str, Any]) -> None:
        """Keep the answer of a job that is done and in the store, if anybody waits for it."""
        if job_id in self._ended:
            self._answers[job_id] = answer

    def tell(self, job_id: int) -> None:
        """A job has ended: wake who waits for it."""
        event = self._ended.get(job_id)
        if event is not None:
            event.set()
        else:
            self._refusals.pop(job_id, None)

    def refusal_of(self, job_id: int) -> ApiError | None:
        """Why a job failed, while its client still waits."""
        return self._refusals.get(job_id)

    def answer_of(self, job_id: int) -> Mapping[str, Any] | None:
        """The answer of a job that is done, while its client still waits."""
        return self._answers.get(job_id)

    def forget(self, job_id: int) -> None:
        """Nobody waits for a job any longer."""
        self._ended.pop(job_id, None)
        self._refusals.pop(job_id, None)
        self._answers.pop(job_id, None)
