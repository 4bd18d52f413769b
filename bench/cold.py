"""A process that opens an engine and makes one picture: what the first request of all costs.

``python -m bench.cold DEVICE [BUNDLE]`` prints the figures as one line of JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Final

KILOBYTE: Final = 1024


def peak_mb() -> float:
    """The most resident memory this process has had."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KILOBYTE / 1e6, 1)


def main(device: str, bundle: str | None = None) -> None:
    """Import, open, make one picture, and print ``stages`` in seconds and ``peak_mb``."""
    begin = time.perf_counter()
    from bench.probe import Probe
    from bench.sampling import sample
    from engine import Engine

    imported = time.perf_counter()
    with Engine.open(bundle, device=device) as engine:
        opened = time.perf_counter()
        made = sample(engine, Probe(engine), 0)
        stages = {"import": imported - begin, "open": opened - imported} | made.stages
        print(json.dumps({"stages": stages, "peak_mb": peak_mb()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
