"""Where a result comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime

from pahq_server.core.engine import Capabilities, Prepared
from pahq_server.jobs.spec import DiscoverySpec
from pahq_server.search.base import SearchStatistics
from pahq_server.store.codec import to_json
from pahq_server.store.records import DiscoveryResult

__all__ = ["DiscoveryResult", "content_key", "request_provenance", "run_provenance"]


def request_provenance(spec: DiscoverySpec, prepared: Prepared, version: str) -> dict[str, object]:
    return {
        "model_revision": prepared.revision,
        "task_hash": prepared.task.hash,
        "parameters": spec.parameters(),
        "policy": spec.measurement.precision,
        "version": version,
    }


def content_key(request: Mapping[str, object], model: str, environment: Mapping[str, object]) -> bytes:
    """SHA-256 of all that determines the bytes of a result.

    Args:
        request: see `request_provenance`.
        model: name of the model: one checkpoint may be served in several ways.
        environment: what computes it: other hardware or libraries may round in another way.
    """
    content = {"request": dict(request), "model": model, "environment": dict(environment)}
    return hashlib.sha256(to_json(content).encode()).digest()


def run_provenance(
    spec: DiscoverySpec,
    started: float,
    ended: float,
    capabilities: Capabilities,
    statistics: SearchStatistics,
    replayed: int,
) -> dict[str, object]:
    """What happened in this run. ``replayed`` evaluations were stored by an earlier process."""
    return {
        "model": spec.measurement.model,
        "started": _iso(started),
        "ended": _iso(ended),
        "seconds": round(ended - started, 3),
        "device": capabilities.device,
        "hardware": capabilities.hardware,
        "counts": asdict(statistics) | {"replayed": replayed},
    }


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
