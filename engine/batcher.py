"""Which jobs share the next UNet call: policy only, no state beyond what the jobs carry.

Every call takes rows of one latent shape. The job for which the least was done so far goes first,
whatever its size, and takes along those of its shape that fit, in the same order. So everybody gets
an equal share of the machine, counted in pixels: nobody starves, and a short job does not wait for
a long one to end, nor a small one for a large one.
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
        waiting: Running jobs, the one for which the least was done first.
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
