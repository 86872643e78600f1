"""Metrics for Prometheus: what is counted while the server works, and what is read when Prometheus asks.

Labels come from fixed, small sets: methods of the API, codes, reasons, states, numbers of workers. Never
users, jobs or models.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections import Counter as Tally
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pahq_server.core.engine import MemoryUsage, WorkerState, WorkerStatus
from pahq_server.core.observer import Observer

logger = logging.getLogger(__name__)

# The label for everything that is not one of the known names.
OTHER = "other"
# Names of gRPC's status codes; anything else is counted as UNKNOWN.
CODES = frozenset(
    {
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    }
)
ENDS = ("succeeded", "failed", "cancelled")
REASONS = ("auth", "auth_limit", "rate_limit", "quota", "queue_full", "anonymous")
LOSSES = ("ended", "hung", "refused")
# How many different reasons are counted apart: the first ones that come.
MAX_REASONS = 32
WATCH = "pahq.v1.JobService/WatchJob"

_WAITS_S = (0.01, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)
_CALLS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 600)
_BATCHES_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_PASSES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics(Observer):
    """Counts what happens, in a registry of its own.

    ``registry`` is what Prometheus reads.

    Args:
        methods: full names of the API's RPCs, such as ``pahq.v1.JobService/CreateJob``. Others are counted
            together, so that no client can add labels.
    """

    def __init__(self, methods: Collection[str]) -> None:
        self._methods = frozenset(methods)
        self._reasons = set(REASONS)
        self.registry = CollectorRegistry()
        self._add_jobs()
        self._add_work()
        self._add_workers()
        self._add_calls()
        self._add_certificates()

    def _add_jobs(self) -> None:
        self._waits = Histogram(
            "pahq_queue_wait_seconds",
            "Time that a job waited from its submission to its first turn.",
            buckets=_WAITS_S,
            registry=self.registry,
        )
        self._ended = Counter(
            "pahq_jobs_ended",
            "Jobs that reached a final state, since the start.",
            ["state"],
            registry=self.registry,
        )
        self._preemptions = Counter(
            "pahq_job_preemptions",
            "Running jobs that made room for another user's.",
            registry=self.registry,
        )
        for state in ENDS:
            self._ended.labels(state)  # so that a rate over it exists before the first one

    def _add_work(self) -> None:
        self._evaluations = Counter(
            "pahq_evaluations",
            "Records that methods added to the journals of their jobs: of a search, its tests.",
            registry=self.registry,
        )
        passes = Counter(
            "pahq_search_passes",
            "Patched passes that methods asked for, by whether they were needed: wasted ones were "
            "asked for ahead, in vain.",
            ["outcome"],
            registry=self.registry,
        )
        self._accepted, self._wasted = passes.labels("accepted"), passes.labels("wasted")
        self._batch_passes = Histogram(
            "pahq_batch_passes",
            "Patched passes per batch, or what cost as much, of all jobs and sessions together.",
            buckets=_PASSES,
            registry=self.registry,
        )
        self._batch_seconds = Histogram(
            "pahq_batch_duration_seconds",
            "Time that the engine took for a batch.",
            buckets=_BATCHES_S,
            registry=self.registry,
        )

    def _add_workers(self) -> None:
        self._worker_losses = Counter(
            "pahq_worker_losses",
            "Worker processes that could not be reached any more, by reason.",
            ["reason"],
            registry=self.registry,
        )
        for reason in LOSSES:
            self._worker_losses.labels(reason)
        self._worker_seconds = Counter(
            "pahq_worker_busy_seconds",
            "Time that a worker process computed, by its number.",
            ["worker"],
            registry=self.registry,
        )
        self._worker_passes = Counter(
            "pahq_worker_passes",
            "Patched passes that a worker process computed, or what cost as much, by its number.",
            ["worker"],
            registry=self.registry,
        )

    def _add_calls(self) -> None:
        self._rejections = Counter(
            "pahq_rejections", "Calls that were refused, by reason.", ["reason"], registry=self.registry
        )
        for reason in REASONS:
            self._rejections.labels(reason)
        self._calls = Histogram(
            "pahq_rpc_duration_seconds",
            "Time from the arrival of a call to its end, by method and gRPC status code. Of streams: how "
            "long they were open.",
            ["method", "code"],
            buckets=_CALLS_S,
            registry=self.registry,
        )
        self._running = Gauge(
            "pahq_rpcs_in_flight", "Calls that are being answered.", ["method"], registry=self.registry
        )
        self._watchers = Gauge("pahq_watchers", "Streams that watch a job.", registry=self.registry)

    def _add_certificates(self) -> None:
        self._server_expiry = Gauge(
            "pahq_certificate_expiry_timestamp_seconds",
            "When the certificate that the server shows expires, or what signed it, as Unix time; NaN "
            "without TLS.",
            registry=self.registry,
        )
        self._client_ca_expiry = Gauge(
            "pahq_client_ca_expiry_timestamp_seconds",
            "When the last of the authorities of clients' certificates expires, as Unix time; NaN "
            "without any.",
            registry=self.registry,
        )
        self.certificates_expire(math.nan, math.nan)

    def certificates_expire(self, server: float, client_ca: float) -> None:
        self._server_expiry.set(server)
        self._client_ca_expiry.set(client_ca)

    def job_started(self, waited: float) -> None:
        self._waits.observe(waited)

    def job_ended(self, name: str, state: str, seconds: float) -> None:
        self._ended.labels(state if state in ENDS else OTHER).inc()

    def batch(self, passes: float, seconds: float) -> None:
        self._batch_passes.observe(passes)
        self._batch_seconds.observe(seconds)

    def method_advanced(self, records: int, passes: int, wasted: int) -> None:
        self._evaluations.inc(records)
        self._accepted.inc(passes - wasted)
        self._wasted.inc(wasted)

    def preempted(self) -> None:
        self._preemptions.inc()

    def worker_ready(self, worker: int) -> None:
        # So that a rate over them exists before the first call.
        self._worker_seconds.labels(str(worker))
        self._worker_passes.labels(str(worker))

    def worker_lost(self, worker: int, reason: str) -> None:
        self._worker_losses.labels(reason if reason in LOSSES else OTHER).inc()

    def worker_worked(self, worker: int, weight: float, seconds: float) -> None:
        self._worker_seconds.labels(str(worker)).inc(seconds)
        self._worker_passes.labels(str(worker)).inc(weight)

    def rejected(self, reason: str) -> None:
        if reason not in self._reasons and len(self._reasons) >= MAX_REASONS:
            reason = OTHER
        self._reasons.add(reason)
        self._rejections.labels(reason).inc()

    def call_started(self, method: str) -> None:
        self._running.labels(self._method(method)).inc()
        if method == WATCH:
            self._watchers.inc()

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        if method == WATCH:
            self._watchers.dec()
        method = self._method(method)
        self._running.labels(method).dec()
        self._calls.labels(method, code if code in CODES else "UNKNOWN").observe(seconds)

    def _method(self, method: str) -> str:
        return method if method in self._methods else OTHER


@dataclass(frozen=True)
class Sources:
    """Functions that return numbers which are read rather than counted. Called from any thread.

    Args:
        memory: returns the memory usage of the engine.
        jobs: returns how many jobs there are, by the name of their state, for every state.
        sessions: returns how many patching sessions are open.
        workers: returns what is known of each worker.
        unavailable: returns why nothing can be computed at present; empty if it can.
        data_dir: folder of the store; None where nothing is stored.
    """

    memory: Callable[[], MemoryUsage]
    jobs: Callable[[], Mapping[str, int]]
    sessions: Callable[[], int]
    workers: Callable[[], Sequence[WorkerStatus]]
    unavailable: Callable[[], str]
    data_dir: Path | None = None


class PulledMetrics(Collector):
    """Reads `Sources` at every scrape. A source that fails is left out of that scrape and logged."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        for read in (self._jobs, self._sessions, self._available, self._workers, self._memory, self._disk):
            try:
                yield from read()
            except Exception:
                logger.exception("metrics could not be read")

    def _jobs(self) -> Iterable[Metric]:
        jobs = GaugeMetricFamily(
            "pahq_jobs",
            "Jobs that the server knows, by state. Final ones are among them until they are deleted.",
            labels=["state"],
        )
        for state, number in self._sources.jobs().items():
            jobs.add_metric([state], number)
        return [jobs]

    def _sessions(self) -> Iterable[Metric]:
        return [_gauge("pahq_sessions_open", "Patching sessions that are open.", self._sources.sessions())]

    def _available(self) -> Iterable[Metric]:
        available = 0 if self._sources.unavailable() else 1
        return [
            _gauge("pahq_available", "Whether operations can be computed at present: 1, or 0.", available)
        ]

    def _workers(self) -> Iterable[Metric]:
        workers = self._sources.workers()
        states = GaugeMetricFamily("pahq_workers", "Workers by state.", labels=["state"])
        found = Tally(worker.state for worker in workers)
        for state in WorkerState:
            states.add_metric([state.name.lower()], found[state])
        restarts = CounterMetricFamily(
            "pahq_worker_restarts", "How often a worker was started again, by its number.", labels=["worker"]
        )
        for worker in workers:
            restarts.add_metric([str(worker.number)], worker.restarts)
        return [states, restarts]

    def _memory(self) -> Iterable[Metric]:
        now = self._sources.memory()
        pages = GaugeMetricFamily(
            "pahq_pages",
            "Pages of the pool by state: used + free are all; shared ones are used, by several owners.",
            labels=["state"],
        )
        for state, number in (("used", now.used), ("shared", now.shared), ("free", now.pages - now.used)):
            pages.add_metric([state], number)
        return [
            pages,
            _gauge(
                "pahq_pages_peak", "The most pages that were used at a time, since the start.", now.peak_used
            ),
            _gauge("pahq_page_size_bytes", "Size of a page.", now.page_bytes),
            _gauge("pahq_scratch_bytes", "Memory for the values of one batch.", now.scratch_bytes),
            _counter(
                "pahq_memory_preemptions",
                "How often a job's values were dropped to make room, and computed again later.",
                now.preemptions,
            ),
            *_head_store(now),
        ]

    def _disk(self) -> Iterable[Metric]:
        if self._sources.data_dir is None:
            return []
        disk = shutil.disk_usage(self._sources.data_dir)
        return [
            _gauge("pahq_data_dir_free_bytes", "Free space where jobs are stored.", disk.free),
            _gauge("pahq_data_dir_size_bytes", "All space where jobs are stored.", disk.total),
        ]


def _head_store(now: MemoryUsage) -> Iterable[Metric]:
    store = now.head_store
    return [
        _counter("pahq_head_store_hits", "Full-precision heads that were there when wanted.", store.hits),
        _counter("pahq_head_store_misses", "Full-precision heads that had to be read.", store.misses),
        _counter(
            "pahq_head_store_moved_bytes", "Bytes of full-precision heads that were read.", store.bytes_moved
        ),
    ]


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)
