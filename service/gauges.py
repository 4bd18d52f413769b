"""What is looked up when somebody reads the metrics: the queue, the outbox, the engine."""

from __future__ import annotations

import importlib.metadata
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from engine.cache import CacheStatistics
from engine.engine import DEFAULT_BUNDLE
from service.jobs import DeliveryState, JobStore, QueueStatistics, StoreError

logger = logging.getLogger(__name__)

STATES: Final = ("starting", "ready", "restarting", "stopped")
FRESH_SECONDS: Final = 1.0
"""The store is asked no more often than this, whoever reads how often."""


class Gauges(Collector):
    """The values of this moment, for a Prometheus registry.

    Args:
        clock: Seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._store: JobStore | None = None
        self._engine: Any = None
        self._queue_limit = 0
        self._read_at = 0.0
        self._read: tuple[QueueStatistics, int] | None = None

    def engine_pid(self) -> int | str:
        """The process id of the engine's child; where there is none, what names no process."""
        return getattr(self._engine, "pid", None) or "none"

    def watch(self, store: JobStore, engine: Any, *, queue_limit: int) -> None:
        """Look at these from now on."""
        with self._lock:
            self._store, self._engine, self._queue_limit = store, engine, queue_limit
            self._read_at = -FRESH_SECONDS

    def unwatch(self) -> None:
        """Look at nothing; returns once nobody is looking any more."""
        with self._lock:
            self._store = self._engine = None

    def describe(self) -> list[Metric]:
        """Nothing, so that registering asks nobody anything."""
        return []

    def collect(self) -> list[Metric]:
        """The metrics of this moment."""
        with self._lock:
            store, engine = self._store, self._engine
            return [
                *([] if store is None else self._of_store(store)),
                *([] if engine is None else _of_engine(engine)),
            ]

    def _of_store(self, store: JobStore) -> Iterator[Metric]:
        now = self._clock()
        if now - self._read_at >= FRESH_SECONDS:
            self._read_at = now
            try:
                self._read = store.statistics(), store.outbox.count(DeliveryState.PENDING)
            except StoreError as exc:
                logger.error("the queue cannot be read: %s", exc)
                self._read = None
        yield _gauge("edgefill_store_up", "Whether the job store could be read.", bool(self._read))
        limit = "Most jobs that may wait in the queue."
        yield _gauge("edgefill_queue_limit_jobs", limit, self._queue_limit)
        if self._read is None:
            return
        queue, pending = self._read
        yield _gauge("edgefill_queue_jobs", "Jobs that wait in the queue.", queue.queued)
        oldest = "How long the job has waited that waits longest; 0 where none waits."
        yield _gauge("edgefill_queue_oldest_seconds", oldest, queue.oldest_age)
        yield _gauge("edgefill_running_jobs", "Jobs that are worked on.", queue.running)
        yield _gauge("edgefill_pending_webhooks", "Webhooks that are not delivered yet.", pending)


def engine_state(engine: Any) -> str:
    """One of ``STATES``; an engine that does not tell is ready."""
    return str(getattr(engine, "state", "ready"))


def _of_engine(engine: Any) -> Iterator[Metric]:
    now = engine_state(engine)
    state = GaugeMetricFamily(
        "edgefill_engine_state", "1 for the state that the engine is in.", labels=("state",)
    )
    for name in STATES:
        state.add_metric((name,), name == now)
    yield state
    restarts = "Engine processes that were lost and replaced."
    yield CounterMetricFamily(
        "edgefill_engine_restarts", restarts, value=getattr(engine, "restarts", 0)
    )
    yield from _of_caches(getattr(engine, "cache_statistics", {}))
    info = GaugeMetricFamily(
        "edgefill_build_info",
        "1, with the version, the device and the bundle that are in use.",
        labels=("version", "device", "bundle"),
    )
    info.add_metric((_version(), _device(engine), _bundle(engine)), 1)
    yield info


def _of_caches(caches: Mapping[str, CacheStatistics]) -> Iterator[Metric]:
    """What the engine's process had found again, or not, when it last made a picture; its counts
    begin anew when it is replaced."""
    hits = CounterMetricFamily(
        "edgefill_cache_hits", "Network runs saved, as the answer was known.", labels=("cache",)
    )
    misses = CounterMetricFamily(
        "edgefill_cache_misses", "Network runs whose answer was not known.", labels=("cache",)
    )
    size = GaugeMetricFamily("edgefill_cache_bytes", "Memory of known answers.", labels=("cache",))
    for kind, figures in caches.items():
        hits.add_metric((kind,), figures.hits)
        misses.add_metric((kind,), figures.misses)
        size.add_metric((kind,), figures.bytes)
    yield from (hits, misses, size)


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(name, what, value=value)


def _version() -> str:
    try:
        return importlib.metadata.version("edgefill")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _device(engine: Any) -> str:
    return str(getattr(getattr(engine, "device", None), "name", "unknown"))


def _bundle(engine: Any) -> str:
    """The name of the bundle's folder."""
    path = getattr(getattr(engine, "bundle", None), "path", None)
    if path is None:
        return "unknown"
    return "default" if path == DEFAULT_BUNDLE else str(path.name)
