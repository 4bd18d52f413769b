"""Learning rate and EMA as functions of the work done.

For: a run that may be stopped, resumed and brought to its end at any time. Everything is counted in
samples, never in seconds, so a paused process loses nothing. Imports the standard library only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Warm-up, constant rate, and a final decay that begins when it is asked for.

    The shape is "WSD" with the 1 - sqrt decay (Haegele et al., "Scaling Laws and Compute-Optimal
    Training Beyond Fixed Training Durations", 2024).

    Attributes:
        peak: Learning rate after warm-up.
        warmup: Samples until the rate is reached.
        anneal_from: Number of samples at which the final decay begins, or None.
        anneal_for: Length of the decay, samples.
    """

    peak: float
    warmup: int
    anneal_from: int | None = None
    anneal_for: int = 0

    def __post_init__(self) -> None:
        if self.peak <= 0:
            raise ValueError(f"peak: {self.peak}; a rate above 0 is needed")
        if self.anneal_from is not None and self.anneal_for <= 0:
            raise ValueError(f"anneal_for: {self.anneal_for}; 1 sample or more is needed")

    def rate(self, samples: int) -> float:
        """The learning rate after a number of samples."""
        rate = self.peak * min(1.0, (samples + 1) / max(1, self.warmup))
        if self.anneal_from is None or samples <= self.anneal_from:
            return rate
        progress = min(1.0, (samples - self.anneal_from) / self.anneal_for)
        return rate * (1 - math.sqrt(progress))

    def finished(self, samples: int) -> bool:
        """Whether the final decay is over."""
        return self.anneal_from is not None and samples >= self.anneal_from + self.anneal_for


def ema_decay(samples: int, *, half_life: int, batch: int) -> float:
    """Decay of the weights' moving average for one step.

    Counted in samples, so that a change of batch size keeps its reach; short at first, so that the
    first weights are soon forgotten.

    Args:
        samples: Samples seen so far.
        half_life: Samples after which a weight counts half.
        batch: Samples of this step.
    """
    reach = min(half_life, max(batch, samples // 10))
    return 0.5 ** (batch / reach)
