"""Which jobs share the next UNet call: policy only, no state beyond what the jobs carry.

Every call takes rows of one latent shape. Among the shapes that have work, the one that waited
longest goes first; within it, jobs go in order of waiting too, as many as fit. So nobody starves,
and a short job never waits for a long one to end.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol, TypeVar


class Batchable(Protocol):
    """What the policy needs to know of a job."""

    @property
    def shape_key(self) -> Hashable:
        """Jobs with the same key may share a call."""

    @property
    def row_count(self) -> int:
        """Rows the job brings."""


Item = TypeVar("Item", bound=Batchable)


def pick(waiting: Sequence[Item], *, max_rows: int) -> list[Item]:
    """Choose the jobs of the next UNet call.

    Args:
        waiting: Running jobs, the one that waited longest first.
        max_rows: Rows one call may carry; a single job with more goes alone.
    """
    chosen: list[Item] = []
    rows = 0
    for job in waiting:
        if chosen and job.shape_key != chosen[0].shape_key:
            continue
        if chosen and rows + job.row_count > max_rows:
            continue
        chosen.append(job)
        rows += job.row_count
    return chosen
