"""How a picture is made in time: which of the ways to make it faster is taken first.

Policy only: what a way costs is asked for. A plan for more time is never a worse one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from engine.errors import DeadlineMissed

Vae: TypeAlias = Literal["full", "fast"]

FEWEST_STEPS: Final = 4
"""Below that, a sampler that was not made for few steps leaves noise or mud."""

FEWEST_STEPS_OF: Final = {"lcm": 1, "tcd": 1}
"""The samplers of models that were distilled to few steps."""

SHARES: Final = (1.0, 0.75, 0.5)
"""The sides of smaller working sizes, as shares of what would be taken without a deadline."""

LEAST_SIDE: Final = 64
"""No working size has its longer side brought below that many pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What was chosen so that a picture is done by its deadline.

    Attributes:
        num_inference_steps: Steps of the schedule; never more than were asked for.
        working_size: (width, height) in pixels at which the networks see the region.
        vae: Which decoder of the bundle is used.
        estimated: Seconds that it was thought to take from its beginning; None where nothing was
            measured yet, and all was left as it was asked for.
        reduced: Whether it is less than what was asked for.
    """

    num_inference_steps: int
    working_size: tuple[int, int]
    vae: Vae
    estimated: float | None
    reduced: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One way to make a picture."""

    steps: int
    share: float = 1.0
    vae: Vae = "full"


def fewest_steps(scheduler: str, asked: int) -> int:
    """The least steps that a plan may come down to."""
    return min(asked, FEWEST_STEPS_OF.get(scheduler, FEWEST_STEPS))


def ladder(
    *, asked: int, fewest: int, shares: Sequence[float], vaes: Sequence[Vae]
) -> Iterator[Rung]:
    """Every way to make a picture, the best first.

    Steps go first, down to half of those asked for, which costs least. The fast decoder comes next,
    if there is one, since it blurs a little where still fewer steps change what is seen; then steps
    down to the fewest. A smaller working size comes last, as it loses detail for good, and begins
    again with all steps.
    """
    half = max(fewest, math.ceil(asked / 2))
    for share in shares:
        for steps in (range(asked, half - 1, -1), range(half - 1, fewest - 1, -1)):
            for vae in vaes:
                for count in steps:
                    yield Rung(steps=count, share=share, vae=vae)


def quickest(
    rungs: Sequence[Rung], seconds: Callable[[Rung], float | None]
) -> tuple[Rung, float | None]:
    """The way that takes least; where none is thought to end, the last of them."""
    found = min(reversed(rungs), key=lambda rung: seconds(rung) or 0.0)
    cost = seconds(found)
    return found, None if cost is None or math.isinf(cost) else cost


def choose(
    rungs: Sequence[Rung],
    *,
    seconds: Callable[[Rung], float | None],
    left: float,
    margin: float = 1.0,
) -> tuple[Rung, float | None]:
    """The best way that is in time, and what it is thought to take.

    Where none is in time with the margin, the quickest is tried if it is in time without.

    Args:
        rungs: The best first; the first is what was asked for.
        seconds: What a way takes; None where that is not known, and then the first is taken.
        left: Seconds until the deadline.
        margin: An estimate times this must be in time.

    Raises:
        DeadlineMissed: If not even the quickest is within reach.
    """
    least: tuple[Rung, float] | None = None
    for rung in rungs:
        cost = seconds(rung)
        if cost is None:
            return rungs[0], None
        if cost * margin <= left:
            return rung, cost
        if least is None or cost < least[1]:
            least = rung, cost
    assert least is not None
    if least[1] <= left:
        return least
    takes = "longer" if math.isinf(least[1]) else f"about {least[1]:.3g} s"
    raise DeadlineMissed(
        f"{left:.3g} s are left and the quickest way takes {takes}: "
        "the picture cannot be made before its deadline"
    )
