"""When a job's steps will be made, by playing the loop with the measured costs.

The same policy chooses who shares a call as in the loop itself. That others may come meanwhile
cannot be known; ``engine.planner`` leaves room for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

from engine.batcher import pick

UnetSeconds = Callable[[int, int], float]
"""Seconds of a UNet call by pixels of a row and rows."""


@dataclass(slots=True, kw_only=True, eq=False)
class Share:
    """What a job asks of the loop.

    Attributes:
        shape_key: Jobs with the same key may share a call.
        row_pixels: Pixels of a row at the working size.
        rows: Rows that it brings to a call.
        steps: Steps that it has still to make.
        before: Seconds that hold everybody up before it joins.
        after: Seconds that hold everybody up when its last step is made.
        waited: See ``engine.batcher``.
        rows_done: Rows of the step under way that were served already.
    """

    shape_key: Hashable
    row_pixels: int
    rows: int
    steps: int
    before: float = 0.0
    after: float = 0.0
    waited: int = 0
    rows_done: int = 0

    @property
    def pixels(self) -> int:
        return self.rows * self.row_pixels

    @property
    def left(self) -> int:
        return self.pixels * self.steps - self.row_pixels * self.rows_done


def step_ends(
    mine: Share,
    *,
    running: Iterable[Share],
    waiting: Iterable[Share],
    unet: UnetSeconds,
    max_pixels: int,
    horizon: float,
) -> list[float]:
    """Seconds from joining to the end of each of a job's steps.

    All of them depend on how many it makes: with fewer left, it goes first more often.

    Args:
        mine: The job that joins now. The shares are used up.
        running: Those that take part already.
        waiting: Those that join after it, one a round.
        unet: What a UNet call takes.
        max_pixels: What one call may carry.
        horizon: Later steps are left out.
    """
    active, coming = list(running), deque(waiting)
    active.append(mine)
    ends: list[float] = []
    now, first = 0.0, True
    while mine.steps and now <= horizon:
        if coming and not first:
            comer = coming.popleft()
            now += comer.before
            if comer.steps:
                active.append(comer)
        first = False
        batch = pick(active, max_pixels=max_pixels)
        active = [share for share in active if share not in batch]
        worked, seconds = _call(batch, unet, max_pixels)
        now += seconds
        for share in active:
            share.waited += worked
        over = [share for share in batch if share.rows_done == 0]
        for share in over:
            share.steps -= 1
        now += sum(share.after for share in over if share is not mine and not share.steps)
        if mine in over:
            ends.append(now)
        active += [share for share in batch if share.steps]
    return [end for end in ends if end <= horizon]


def _call(batch: list[Share], unet: UnetSeconds, max_pixels: int) -> tuple[int, float]:
    """Serve a batch, or a part of the one job that is too much for a call: pixels and seconds."""
    rows, pixels = sum(share.rows for share in batch), sum(share.pixels for share in batch)
    if pixels <= max_pixels or rows == 1:
        return pixels, unet(batch[0].row_pixels, rows)
    (alone,) = batch
    part = min(max(1, max_pixels * rows // pixels), rows - alone.rows_done)
    alone.rows_done = (alone.rows_done + part) % rows
    return alone.row_pixels * part, unet(alone.row_pixels, part)
