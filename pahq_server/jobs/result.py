"""Where a result comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime

from pahq_server.core.engine import Capabilities, ResolvedObjective
from pahq_server.jobs.spec import DiscoverySpec, RequestFacts
from pahq_server.search.base import SearchStatistics
from pahq_server.store.codec import to_json
from pahq_server.store.records import DiscoveryResult

__all__ = ["DiscoveryResult", "content_key", "of_job", "request_provenance", "run_provenance"]


def request_provenance(spec: DiscoverySpec, resolved: ResolvedObjective, version: str) -> dict[str, object]:
    return {
        "model_revision": resolved.revision,
        "task_hash": resolved.task.hash,
        "parameters": spec.parameters(),
        "policy": spec.objective.precision,
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
    seconds: float,
    capabilities: Capabilities,
    statistics: SearchStatistics,
    replayed: int,
    warnings: Sequence[str],
) -> dict[str, object]:
    """What happened in this run.

    Args:
        spec: what was asked for.
        started, ended: seconds since the epoch.
        seconds: how long it took.
        capabilities: of the engine.
        statistics: of the search.
        replayed: evaluations that were stored by an earlier process.
        warnings: what may mislead about the result, beside what the request shows.
    """
    return {
        "model": spec.objective.model,
        "started": _iso(started),
        "ended": _iso(ended),
        "seconds": round(seconds, 3),
        "device": capabilities.device,
        "hardware": capabilities.hardware,
        "counts": asdict(statistics) | {"replayed": replayed},
        "warnings": list(warnings),
    }


def of_job(
    result: DiscoveryResult, spec: DiscoverySpec, facts: RequestFacts, prompts: str | None
) -> DiscoveryResult:
    """A stored result as the answer to one job: the result may be another job's as well.

    Args:
        result: as it is stored.
        spec, facts: of the job.
        prompts: of the job, where it asked to have them.
    """
    about = {
        "task": spec.task(facts.num_prompts),
        "warnings": list(dict.fromkeys((*facts.warnings, *result.warnings))),
    }
    return replace(result, run=result.run | about, prompts=prompts)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
