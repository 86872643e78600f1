"""Composes what listens to one server (metrics, traces, the log) into one observer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import Info, ProcessCollector

from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.observer import Observer
from pahq_server.telemetry.endpoint import MetricsEndpoint
from pahq_server.telemetry.metrics import Metrics, PulledMetrics, Sources

if TYPE_CHECKING:
    from pahq_server.telemetry.tracing import Tracing

logger = logging.getLogger(__name__)

# gRPC status codes that say that the server is at fault.
FAULT_CODES = ("UNKNOWN", "INTERNAL", "DATA_LOSS")


class Telemetry:
    """The metrics page, the traces and the event log of one server.

    The page is served from the start, so that a bad address is found before models are loaded. ``observer``
    is to be told what happens.

    Args:
        methods: full names of the API's RPCs, as in `Observer.call_started`.
        build: versions of the server and its libraries, by name; ``version`` is the server's.
        metrics_listen: ``HOST:PORT`` of the page for Prometheus; None for no page.
        tracing: whether to send spans to where the ``OTEL_EXPORTER_OTLP_…`` variables say.

    Raises:
        InvalidRequestError: the address cannot be bound, or the packages for tracing are not installed.
    """

    def __init__(
        self,
        methods: Collection[str],
        build: Mapping[str, str],
        metrics_listen: str | None = None,
        tracing: bool = False,
    ) -> None:
        self._metrics = Metrics(methods)
        # By convention, metrics of the process have the same names for every program.
        ProcessCollector(registry=self._metrics.registry)
        Info("pahq_build", "What runs.", registry=self._metrics.registry).info(dict(build))
        self._tracing = _tracing(build["version"]) if tracing else None
        self._endpoint = self._listen(metrics_listen) if metrics_listen else None
        observers = (EventLog(), self._metrics if self._endpoint else None, self._tracing)
        self.observer: Observer = Observers([observer for observer in observers if observer])

    def read(self, sources: Sources) -> None:
        """Adds to the page what is read from these sources at every scrape."""
        self._metrics.registry.register(PulledMetrics(sources))

    def close(self) -> None:
        """Closes the port and sends the spans that are left. May be called more than once."""
        if self._endpoint is not None:
            self._endpoint.close()
            self._endpoint = None
        if self._tracing is not None:
            self._tracing.close()
            self._tracing = None

    def _listen(self, address: str) -> MetricsEndpoint:
        try:
            endpoint = MetricsEndpoint(self._metrics.registry, address)
        except OSError as error:
            raise InvalidRequestError("metrics_listen", f"cannot listen on {address}: {error}") from error
        logger.info("metrics on http://%s/metrics", endpoint.address)
        return endpoint


def _tracing(version: str) -> Tracing:
    try:
        from pahq_server.telemetry.tracing import otlp_tracing
    except ModuleNotFoundError as error:
        advice = "pip install '.[tracing]' in a checkout of PAHQ, or unset OTEL_EXPORTER_OTLP_*"
        detail = f"{error.name} is not installed: {advice}"
        raise InvalidRequestError("tracing", detail) from error
    return otlp_tracing(version)


class Observers(Observer):
    """Passes each call of a method of `Observer` on to several observers, in order."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        for name in vars(Observer):
            if not name.startswith("_"):
                setattr(self, name, _call_each([getattr(observer, name) for observer in observers]))


def _call_each(functions: Sequence[Callable[..., None]]) -> Callable[..., None]:
    def call(*arguments: Any, **named: Any) -> None:
        for function in functions:
            function(*arguments, **named)

    return call


class EventLog(Observer):
    """Writes the events that deserve a line of the log. The context adds which call the line is about."""

    def job_ended(self, name: str, state: str, seconds: float) -> None:
        _, _, rest = name.partition("/")
        fields = {"job": name, "user": rest.partition("/")[0]}
        logger.info("job %s after %.3f s", state, seconds, extra=fields)

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        level = logging.WARNING if code in FAULT_CODES else logging.DEBUG
        logger.log(level, "call ended with %s after %.3f s", code, seconds, extra={"method": method})
