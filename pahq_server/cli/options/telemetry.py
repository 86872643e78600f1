"""Options about what the server tells about itself."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pahq_server.cli import values

if TYPE_CHECKING:
    from pahq_server.telemetry.telemetry import TelemetryConfig

# OpenTelemetry's own names: where spans go to. Without one of them there is no tracing.
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--metrics-listen",
        type=values.address,
        metavar="HOST:PORT",
        help="answer Prometheus there, over plain HTTP, to everybody who reaches it; metrics name no user, "
        "job or model (default: no metrics)",
    )


def config(options: argparse.Namespace, environment: Mapping[str, str]) -> TelemetryConfig:
    from pahq_server.telemetry.telemetry import TelemetryConfig

    return TelemetryConfig(options.metrics_listen, _wants_traces(environment))


def _wants_traces(environment: Mapping[str, str]) -> bool:
    disabled = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    exporter = environment.get("OTEL_TRACES_EXPORTER") or "otlp"
    return not disabled and exporter == "otlp" and any(environment.get(name) for name in _ENDPOINTS)
