"""Which jobs share the next UNet call: policy only, no state beyond what the jobs carry.

Every call takes rows of one latent shape. The job with the least left to do goes first and takes
along those of its shape that fit, in the same order. That is shortest remaining processing time
(Schrage 1968): of all orders the one with the least mean latency, where not all fit into a call.

What others had done meanwhile counts against what is left, so that nobody starves: a job with
``left`` pixels to do is passed by newcomers until ``left / AGEING`` pixels were worked on without
it, and no longer.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Final, Protocol, TypeVar

AGEING: Final = 0.1
"""What a pixel of waiting counts against one that is left to do. With more, short jobs wait for
long ones that came before them; with less, the longest jobs wait longer."""


class Batchable(Protocol):
    """What the policy needs to know of a job."""

    @property
    def shape_key(self) -> Hashable:
        """Jobs with the same key may share a call."""

    @property
    def pixels(self) -> int:
        """What the job adds to a call: its rows times the pixels of each."""

    @property
    def left(self) -> int:
        """What the job has still to add to calls, in pixels."""

    @property
    def waited(self) -> int:
        """Pixels of the calls it was no part of since it joined."""


Item = TypeVar("Item", bound=Batchable)


def pick(running: Iterable[Item], *, max_pixels: int) -> list[Item]:
    """Choose the jobs of the next UNet call.

    Args:
        running: All that take part; of equals, the first goes first.
        max_pixels: What one call may carry, which bounds its memory and how long it takes; a
            single job with more goes alone.
    """
    chosen: list[Item] = []
    pixels = 0
    for job in sorted(running, key=_rank):
        if chosen and job.shape_key != chosen[0].shape_key:
            continue
        if chosen and pixels + job.pixels > max_pixels:
            continue
        chosen.append(job)
        pixels += job.pixels
    return chosen


def _rank(job: Batchable) -> float:
    return job.left - AGEING * job.waited
