"""Reading ``/metrics`` as Prometheus does."""

from __future__ import annotations

from typing import TypeAlias

import httpx
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

Series: TypeAlias = dict[str, float]


def families(client: httpx.Client) -> list[Metric]:
    """All metrics that are served."""
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return list(text_string_to_metric_families(response.text))


def series(client: httpx.Client) -> Series:
    """Every series of ours by its name and its labels' values, as ``name:one:two``."""
    found = [
        (":".join([sample.name, *sample.labels.values()]), sample.value)
        for family in families(client)
        for sample in family.samples
        if sample.name.startswith("edgefill_")
    ]
    assert len(dict(found)) == len(found)
    return dict(found)


def moved(before: Series, after: Series) -> Series:
    """By how much the counters have grown, of those that have; how long things took left out."""
    return {
        name: after[name] - before.get(name, 0.0)
        for name in after
        if name.partition(":")[0].endswith(("_total", "_count"))
        and not name.startswith("edgefill_engine_process_")
        and after[name] != before.get(name, 0.0)
    }
