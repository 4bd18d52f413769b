"""One 512x512 picture from PNG to PNG, stage by stage, cold and warm, and what its networks reach
of the machine's own matrix product."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

from bench import flops, limit
from bench.cold import peak_mb
from bench.gpu import gpu_memory
from bench.probe import Probe, Run
from bench.report import median, percentile
from bench.sampling import sample
from engine import Engine, EngineError

WARM_UP: Final = 3
COLD_STARTS: Final = 3
COLD_SECONDS: Final = 600


def measure(
    *,
    bundle: Path | None,
    device: str,
    repetitions: int,
    fields: Mapping[str, Any],
    cold_starts: int = COLD_STARTS,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """The figures of a bundle on a device.

    Args:
        bundle: Its folder; the default bundle where None.
        device: See ``Engine.open``.
        repetitions: How often the picture is made, after a warm-up.
        fields: Of ``InpaintRequest``, where not as usual; the cold starts know none.
        cold_starts: Processes that open the bundle and make one picture.
        tell: Called with what is being done.

    Raises:
        EngineError: When it cannot be opened or fails.
    """
    tell("latency: warm")
    begin = time.perf_counter()
    # Without the caches, so that every network runs for every picture.
    with Engine.open(bundle, device=device, cache_bytes=0) as engine:
        opened, probe = time.perf_counter() - begin, Probe(engine)
        warm = [sample(engine, probe, i, fields) for i in range(WARM_UP + repetitions)]
        del warm[:WARM_UP]
        parts = engine.bundle.components
        graphs = {name: engine.bundle.path / parts[name].model.file for name in parts}
        found: dict[str, Any] = {
            "made_by": {"bundle": engine.bundle.path.name, "device": engine.device.name},
            "open_s": {"first": round(opened, 3)},
            "memory": {"peak_mb": peak_mb()},
            "gpu_memory": gpu_memory(),
        }
    result = warm[0].result
    found["made_by"] |= {
        "steps_run": result.steps_run,
        "scheduler": result.scheduler,
        "guidance_scale": result.guidance_scale,
        "working_size": "x".join(map(str, result.working_size)),
    }
    found["stages"] = quantiles([one.stages for one in warm])
    if cold_starts:
        tell("latency: cold")
        found["cold"] = _cold([first_picture(bundle, device) for _ in range(cold_starts)])
    tell("latency: the machine's matrix product")
    runs = [run for one in warm for run in one.runs]
    return found | {"networks": networks(runs, graphs)}


def first_picture(bundle: Path | None, device: str) -> dict[str, Any]:
    """The figures of ``bench.cold``, and the whole process by the clock outside.

    Raises:
        EngineError: When it fails.
    """
    command = [
        sys.executable,
        "-m",
        "bench.cold",
        device,
        *([] if bundle is None else [str(bundle)]),
    ]
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, timeout=COLD_SECONDS)
    process = time.perf_counter() - begin
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise EngineError(f"the process of a first picture ended with {done.returncode}: {last}")
    found = cast(dict[str, Any], json.loads(done.stdout))
    found["stages"]["process"] = process
    return found


def quantiles(samples: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Per stage the 50th, 95th and 99th percentile in milliseconds.

    Args:
        samples: Seconds by stage; all have the same stages.
    """
    found: dict[str, Any] = {}
    for name in samples[0]:
        seconds = [one[name] for one in samples]
        found[name] = {"count": len(seconds), "median_ms": round(median(seconds) * 1e3, 2)} | {
            f"p{share}_ms": round(percentile(seconds, share / 100) * 1e3, 2) for share in (95, 99)
        }
    return found


def networks(runs: Sequence[Run], graphs: Mapping[str, Path]) -> dict[str, Any]:
    """What each network reaches, and what the machine's own matrix product does.

    Args:
        runs: Runs of the networks; of each network those of its commonest shapes count.
        graphs: The graph of each.
    """
    try:
        reached = limit.matrix_product()
    except ImportError as exc:
        return {"share_of_limit": None, "reason": f"{exc}: pip install 'edgefill[bench]'"}
    found: dict[str, Any] = {"matrix_product": reached.figures()}
    for name, graph in graphs.items():
        of_shape: dict[Any, list[float]] = {}
        for run in runs:
            if run.network == name:
                of_shape.setdefault(run.shapes, []).append(run.seconds)
        if not of_shape:
            continue
        shapes, seconds = max(of_shape.items(), key=lambda item: len(item[1]))
        counted = flops.count(graph, dict(shapes))
        rate = counted.plain / median(seconds)
        found[name] = {
            "runs": len(seconds),
            "median_ms": round(median(seconds) * 1e3, 3),
            "gflop": round(counted.plain / 1e9, 3),
            "gflop_done": round(counted.total / 1e9, 3),
            "gflop_per_s": round(rate / 1e9, 1),
            "share_of_limit": round(rate / reached.best, 3),
        }
        if counted.uncounted:
            found[name]["uncounted"] = ", ".join(counted.uncounted)
    return found


def _cold(first: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians of the first pictures of processes, in milliseconds."""
    stages = {
        name: round(median([one["stages"][name] for one in first]) * 1e3, 2)
        for name in first[0]["stages"]
    }
    memory = {"peak_mb": median([one["peak_mb"] for one in first])}
    return {"processes": {"count": len(first)}, "median_ms": stages, "memory": memory}
