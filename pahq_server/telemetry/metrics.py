"""What is counted while the server works, for Prometheus.

Labels come from fixed, small sets: methods of the API, codes, reasons, states. Never users, jobs or models.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from pahq_server.core.observer import Observer

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
# Of this many different reasons, the first ones that come are told apart.
MAX_REASONS = 32
WATCH = "pahq.v1.DiscoveryService/WatchDiscovery"

_WAITS_S = (0.01, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)
_CALLS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 600)
_BATCHES_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics(Observer):
    """Counts in a registry of its own, ``registry``.

    Args:
        methods: the API's, such as ``pahq.v1.DiscoveryService/CreateDiscovery``; others are counted together.
    """

    def __init__(self, methods: Collection[str]) -> None:
        self._methods = frozenset(methods)
        self._reasons = set(REASONS)
        self.registry = CollectorRegistry()
        self._add_jobs()
        self._add_work()
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
            "Running jobs that gave their place to another user's.",
            registry=self.registry,
        )
        for state in ENDS:
            self._ended.labels(state)  # so that a rate over it exists before the first one

    def _add_work(self) -> None:
        self._evaluations = Counter(
            "pahq_evaluations",
            "Edges and gates that searches have decided.",
            registry=self.registry,
        )
        rows = Counter(
            "pahq_search_rows",
            "Rows that searches asked for, by whether a verdict needed them: wasted ones were asked for "
            "ahead, in vain.",
            ["outcome"],
            registry=self.registry,
        )
        self._accepted, self._wasted = rows.labels("accepted"), rows.labels("wasted")
        self._batch_rows = Histogram(
            "pahq_batch_rows",
            "Rows per batch of the executor, of all jobs and sessions together.",
            buckets=_ROWS,
            registry=self.registry,
        )
        self._batch_seconds = Histogram(
            "pahq_batch_duration_seconds",
            "Time that the executor took for a batch.",
            buckets=_BATCHES_S,
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
        self._watchers = Gauge("pahq_watchers", "Streams that watch a discovery.", registry=self.registry)

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
        self._batch_rows.observe(passes)
        self._batch_seconds.observe(seconds)

    def method_advanced(self, records: int, passes: int, wasted: int) -> None:
        self._evaluations.inc(records)
        self._accepted.inc(passes - wasted)
        self._wasted.inc(wasted)

    def preempted(self) -> None:
        self._preemptions.inc()

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
