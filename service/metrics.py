"""What the service counts and measures, as Prometheus reads it.

Every application has a registry of its own. Labels are out of fixed lists: never a key, a prompt,
an address or an id. Counting costs a few microseconds; what has to be looked up (the queue, the
outbox, the engine's state) is looked up when somebody reads, the store at most once a second.

    metrics = Metrics()
    metrics.accepted("inpaint")
    with metrics.stage("decode"):
        ...
    metrics.watch(store, engine, queue_limit=100)       # while the application runs
    metrics.render()                                    # the text of GET /metrics
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, ProcessCollector
from prometheus_client.exposition import generate_latest

from engine import Timings
from service.errors import REASONS, FetchError
from service.fetch import Fetcher
from service.fetch_kinds import KINDS as FETCH_KINDS
from service.fetch_kinds import kind_of
from service.gauges import Gauges
from service.jobs import DeliveryState, JobStore
from service.schema import KINDS

STAGES: Final = (
    "waiting",
    "fetch",
    "decode",
    "engine_queue",
    "prepare",
    "text_encoder",
    "vae_encoder",
    "unet",
    "vae_decoder",
    "paste",
    "safety_checker",
    "store",
    "total",
)
OUTCOMES: Final = ("done", "refused", "failed", "cancelled")
REFUSALS: Final = (
    *REASONS.values(),
    "queue_full_all",
    "draining",
    "not_ready",
    "store",
    "other",
)
ATTEMPTS: Final = {
    DeliveryState.DELIVERED: "delivered",
    DeliveryState.PENDING: "failed",
    DeliveryState.GIVEN_UP: "given_up",
}
SECONDS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0, 600.0),
)
"""Bounds of the histograms' buckets: from a fast GPU's decode to a CPU's large picture."""


class Metrics:
    """The counters and histograms of one application, and the way to read them all."""

    def __init__(self) -> None:
        self.registry: Final = CollectorRegistry()
        self._gauges: Final = Gauges()
        self.registry.register(self._gauges)
        ProcessCollector(registry=self.registry)
        ProcessCollector("edgefill_engine", self._gauges.engine_pid, registry=self.registry)
        self._accepted: Final = self._counter(
            "edgefill_jobs_accepted", "Requests that became a job.", {"kind": tuple(KINDS)}
        )
        self._ended: Final = self._counter(
            "edgefill_jobs_ended",
            "Jobs that ended: done; refused, as their pictures could not be used; failed, by our "
            "fault; cancelled, as their client left or their deadline passed.",
            {"kind": tuple(KINDS), "outcome": OUTCOMES},
        )
        self._recovered: Final = self._counter(
            "edgefill_jobs_recovered", "Jobs that an earlier run of the server left over.", {}
        )
        self._refused: Final = self._counter(
            "edgefill_requests_refused",
            "Requests that were answered with an error and became no job.",
            {"reason": tuple(dict.fromkeys(REFUSALS))},
        )
        self._stages: Final = Histogram(
            "edgefill_stage_seconds",
            "Time that jobs spent in a stage, of those that came through it.",
            ("stage",),
            buckets=SECONDS,
            registry=self.registry,
        )
        for stage in STAGES:
            self._stages.labels(stage)
        self._waited: Final = Histogram(
            "edgefill_client_wait_seconds",
            "Time that clients were kept waiting for their picture.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self._fetches: Final = self._counter("edgefill_fetches", "Pictures fetched by URL.", {})
        self._fetch_errors: Final = self._counter(
            "edgefill_fetch_errors",
            "Pictures that could not be fetched by URL.",
            {"reason": FETCH_KINDS},
        )
        self._attempts: Final = self._counter(
            "edgefill_webhook_attempts",
            "Attempts to deliver a webhook: delivered; failed, to be tried again; given up.",
            {"outcome": tuple(ATTEMPTS.values())},
        )

        self._streams: Final = Gauge(
            "edgefill_streams", "Realtime streams that are open.", registry=self.registry
        )
        self._edits: Final = self._counter(
            "edgefill_stream_edits",
            "Edits of realtime streams that ended: done; refused, as their message could not be "
            "used; failed, by our fault; cancelled, as a newer one came or the stream ended.",
            {"outcome": OUTCOMES},
        )

    @contextlib.contextmanager
    def streaming(self) -> Iterator[None]:
        """A realtime stream is open."""
        with self._streams.track_inprogress():
            yield

    def edited(self, outcome: str) -> None:
        """An edit of a stream has ended with one of ``OUTCOMES``."""
        self._edits.labels(outcome).inc()

    def accepted(self, kind: str) -> None:
        """A request has become a job."""
        self._accepted.labels(kind).inc()

    def ended(self, kind: str, outcome: str) -> None:
        """A job has ended with one of ``OUTCOMES``."""
        self._ended.labels(kind, outcome).inc()

    def recovered(self, count: int) -> None:
        """So many jobs were found that an earlier run left over."""
        self._recovered.inc(count)

    def refused(self, reason: str) -> None:
        """A request was answered with an error for one of ``REFUSALS``."""
        self._refused.labels(reason if reason in REFUSALS else "other").inc()

    def took(self, stage: str, seconds: float) -> None:
        """A job has come through one of ``STAGES``."""
        self._stages.labels(stage).observe(max(0.0, seconds))

    @contextlib.contextmanager
    def stage(self, stage: str) -> Iterator[None]:
        """Measure one of ``STAGES``; nothing is counted where it raises."""
        begin = time.perf_counter()
        yield
        self.took(stage, time.perf_counter() - begin)

    def engine_took(self, timings: Timings) -> None:
        """Count the stages that the engine has measured itself; one of 0 seconds did not run."""
        for name, seconds in dataclasses.asdict(timings).items():
            if name != "total" and seconds > 0:
                self.took("engine_queue" if name == "queue" else name, seconds)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Measure how long a client is kept waiting."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._waited.observe(time.perf_counter() - begin)

    def attempted(self, state: DeliveryState) -> None:
        """A webhook was tried, and this is where it stands now."""
        self._attempts.labels(ATTEMPTS[state]).inc()

    def counted(self, fetcher: Fetcher) -> Fetcher:
        """The same fetcher, whose fetches and errors are counted."""
        return _CountedFetcher(fetcher, self)

    def fetching(self) -> None:
        """A picture is fetched by URL."""
        self._fetches.inc()

    def not_fetched(self, error: FetchError) -> None:
        """A picture could not be fetched."""
        self._fetch_errors.labels(kind_of(error)).inc()

    def watch(self, store: JobStore, engine: Any, *, queue_limit: int) -> None:
        """Read the queue and the engine from now on whenever somebody reads the metrics.

        Args:
            store: Where jobs and webhooks are kept.
            engine: What makes the pictures; what it does not tell is left out.
            queue_limit: How many jobs may wait.
        """
        self._gauges.watch(store, engine, queue_limit=queue_limit)

    def unwatch(self) -> None:
        """The store and the engine are closed from now on."""
        self._gauges.unwatch()

    def render(self) -> bytes:
        """All metrics in Prometheus' text format. It reads the store: call it in a thread."""
        return generate_latest(_WithoutBirthdays(self.registry))

    def _counter(self, name: str, what: str, labels: dict[str, tuple[str, ...]]) -> Counter:
        """A counter, all of whose series are there from the start, so that rates are right."""
        counter = Counter(name, what, tuple(labels), registry=self.registry)
        combinations: list[tuple[str, ...]] = [()]
        for values in labels.values():
            combinations = [(*head, value) for head in combinations for value in values]
        for combination in combinations if labels else ():
            counter.labels(*combination)
        return counter


class _CountedFetcher:
    def __init__(self, fetcher: Fetcher, metrics: Metrics) -> None:
        self._fetcher = fetcher
        self._metrics = metrics

    async def fetch(self, url: str, *, owner: str = "") -> bytes:
        self._metrics.fetching()
        try:
            return await self._fetcher.fetch(url, owner=owner)
        except FetchError as exc:
            self._metrics.not_fetched(exc)
            raise


class _WithoutBirthdays:
    """A registry without the times at which its series began, which nobody asks for and which
    would be as many series again."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
            yield metric
