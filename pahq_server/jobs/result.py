"""What a discovery yields, with its provenance."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from pahq_server.core.engine import Capabilities, Prepared
from pahq_server.core.verdict import SearchResult
from pahq_server.jobs.spec import DiscoverySpec
from pahq_server.search.base import SearchStatistics


@dataclass(frozen=True)
class DiscoveryResult:
    """A circuit and where it comes from.

    Args:
        prepared: what was measured.
        search: what was found.
        request: determines the result; equal requests give equal results.
        run: what happened in this run.
    """

    prepared: Prepared
    search: SearchResult
    request: dict[str, object]
    run: dict[str, object]


def request_provenance(spec: DiscoverySpec, prepared: Prepared, version: str) -> dict[str, object]:
    return {
        "model_revision": prepared.revision,
        "task_hash": prepared.task.hash,
        "parameters": spec.parameters(),
        "policy": spec.measurement.precision,
        "version": version,
    }


def run_provenance(
    spec: DiscoverySpec,
    started: float,
    ended: float,
    capabilities: Capabilities,
    statistics: SearchStatistics,
) -> dict[str, object]:
    return {
        "model": spec.measurement.model,
        "started": _iso(started),
        "ended": _iso(ended),
        "seconds": round(ended - started, 3),
        "device": capabilities.device,
        "hardware": capabilities.hardware,
        "counts": asdict(statistics),
    }


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
