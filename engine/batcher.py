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
    def pixels(self) -> int:
        """What the job adds to a call: its rows times the pixels of each."""


Item = TypeVar("Item", bound=Batchable)


def pick(waiting: Sequence[Item], *, max_pixels: int) -> list[Item]:
    """Choose the jobs of the next UNet call.

    Args:
        waiting: Running jobs, the one that waited longest first.
        max_pixels: What one call may carry, which bounds its memory and how long it takes; a
            single job with more goes alone.
    """
    chosen: list[Item] = []
    pixels = 0
    for job in waiting:
        if chosen and job.shape_key != chosen[0].shape_key:
            continue
        if chosen and pixels + job.pixels > max_pixels:
            continue
        chosen.append(job)
        pixels += job.pixels
    return chosen
