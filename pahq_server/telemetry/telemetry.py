"""Metrics, traces and lines of the log about one server, as it was asked for them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import Info, ProcessCollector

from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.observer import Observer
from pahq_server.telemetry.endpoint import MetricsEndpoint
from pahq_server.telemetry.events import Events
from pahq_server.telemetry.fanout import Observers
from pahq_server.telemetry.metrics import Metrics
from pahq_server.telemetry.pulled import PulledMetrics, Sources

if TYPE_CHECKING:
    from pahq_server.telemetry.tracing import Tracing

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TelemetryConfig:
    """What to tell, and where.

    Args:
        metrics_listen: ``host:port`` of the page for Prometheus; None for none.
        tracing: whether to send spans to where the ``OTEL_EXPORTER_OTLP_…`` variables say.
    """

    metrics_listen: str | None = None
    tracing: bool = False


class Telemetry:
    """Listens from the start, so that a bad address is found before models are loaded, until it is closed.

    ``observer`` is to be told what happens.

    Args:
        config: what to tell.
        methods: of the API, as `Observer.call_started` names them.
        build: what the server is made of, by name; its ``version`` among it.

    Raises InvalidRequestError for an address that cannot be bound, and for tracing without its packages.
    """

    def __init__(self, config: TelemetryConfig, methods: Collection[str], build: Mapping[str, str]) -> None:
        self._metrics = Metrics(methods)
        # By convention, metrics of the process have the same names for every program.
        ProcessCollector(registry=self._metrics.registry)
        Info("pahq_build", "What runs.", registry=self._metrics.registry).info(dict(build))
        self._tracing = _tracing(build["version"]) if config.tracing else None
        self._endpoint = self._listen(config.metrics_listen) if config.metrics_listen else None
        observers = (Events(), self._metrics if self._endpoint else None, self._tracing)
        self.observer: Observer = Observers(*(observer for observer in observers if observer))

    def read(self, sources: Sources) -> None:
        """From now on, also tells what these say."""
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
        detail = f"{error.name} is not installed: pip install 'pahq[tracing]', or unset OTEL_EXPORTER_OTLP_*"
        raise InvalidRequestError("tracing", detail) from error
    return otlp_tracing(version)
