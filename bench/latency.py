"""One 512x512 picture from decoded arrays to decoded arrays, stage by stage."""

from __future__ import annotations

import dataclasses
import resource
import time
from pathlib import Path
from typing import Any, Final

from bench import material
from bench.report import spread
from engine import Engine, Timings

WARM_UP: Final = 3
KILOBYTE: Final = 1024


def measure(*, bundle: Path | None, device: str, repetitions: int) -> dict[str, Any]:
    """The figures of a bundle on a device.

    Args:
        bundle: Its folder; the default bundle where None.
        device: See ``Engine.open``.
        repetitions: How often the picture is made, after a warm-up.

    Raises:
        EngineError: When it cannot be opened or fails.
    """
    begin = time.perf_counter()
    with Engine.open(bundle, device=device) as engine:
        opened = time.perf_counter() - begin
        request = material.direct()
        results = [engine.inpaint(request) for _ in range(WARM_UP + repetitions)][WARM_UP:]
        made_by = {"bundle": str(engine.bundle.path.name), "device": engine.device.name}
    stages = {
        field.name: spread([getattr(result.timings, field.name) for result in results])
        for field in dataclasses.fields(Timings)
    }
    first = results[0]
    how = {
        "steps_run": first.steps_run,
        "scheduler": first.scheduler,
        "guidance_scale": first.guidance_scale,
        "working_size": "x".join(map(str, first.working_size)),
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KILOBYTE
    return {
        "made_by": made_by | how,
        "open_s": {"first": round(opened, 3)},
        "stages": stages,
        "memory": {"peak_mb": round(peak / 1e6, 1)},
    }
