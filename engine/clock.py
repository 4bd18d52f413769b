"""How long the stages of one request take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from engine.request import Timings


@dataclass(slots=True, kw_only=True)
class Clock:
    """Seconds spent per stage of one job."""

    submitted: float
    started: float = 0.0
    spent: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time inside the block to a stage."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - begin)

    def add(self, name: str, seconds: float) -> None:
        """Add seconds to a stage."""
        self.spent[name] = self.spent.get(name, 0.0) + seconds

    def timings(self) -> Timings:
        """The stages as they stand now."""
        now, get = time.perf_counter(), self.spent.get
        return Timings(
            queue=self.started - self.submitted,
            prepare=get("prepare", 0.0),
            text_encoder=get("text_encoder", 0.0),
            vae_encoder=get("vae_encoder", 0.0),
            unet=get("unet", 0.0),
            vae_decoder=get("vae_decoder", 0.0),
            paste=get("paste", 0.0),
            safety_checker=get("safety_checker", 0.0),
            total=now - self.submitted,
        )
