"""Provenance of artifacts: what determines them, and what happened while they were made."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from pahq_server.core.engine import Capabilities, ResolvedObjective
from pahq_server.jobs.spec import JobSpec, to_json
from pahq_server.methods import registry


def request_provenance(spec: JobSpec, resolved: ResolvedObjective, version: str) -> dict[str, object]:
    """Returns what determines an artifact, including the method and its parameters.

    Args:
        spec: what was asked for.
        resolved: its objective.
        version: version of the server; empty if another one, or another backend, may have made the artifact:
            then nothing is said of either.
    """
    return {
        "model_revision": resolved.revision,
        "task_hash": resolved.task.hash,
        "parameters": spec.choices(),
        "policy": spec.objective.precision,
        "version": version,
        **(registry.find(spec.method).determinants(spec.parameters, resolved) if version else {}),
    }


def content_key(request: Mapping[str, object], model: str, environment: Mapping[str, object]) -> bytes:
    """Returns the SHA-256 of all that determines the bytes of an artifact.

    Args:
        request: what `request_provenance` returned.
        model: name of the model, since one checkpoint may be served in several ways.
        environment: hardware and settings of the server, since others may round differently.
    """
    content = {"request": dict(request), "model": model, "environment": dict(environment)}
    return hashlib.sha256(to_json(content).encode()).digest()


def run_provenance(
    spec: JobSpec,
    started: float,
    ended: float,
    seconds: float,
    capabilities: Capabilities,
    counts: Mapping[str, int],
    chosen: Mapping[str, str],
    warnings: Sequence[str],
) -> dict[str, object]:
    """Returns what happened in the run that made an artifact.

    Args:
        spec: what was asked for.
        started, ended: seconds since the epoch.
        seconds: how long the run took.
        capabilities: capabilities of the engine.
        counts: counts of the method, such as ``passes``, and how many journal records were ``replayed``.
        chosen: what the method settled by itself, such as what ``auto`` stood for.
        warnings: what may mislead about the artifact, beside what the request shows.
    """
    return {
        "model": spec.objective.model,
        "started": _iso(started),
        "ended": _iso(ended),
        "seconds": round(seconds, 3),
        "device": capabilities.device,
        "hardware": capabilities.hardware,
        "counts": dict(counts),
        **({"chosen": dict(chosen)} if chosen else {}),
        "warnings": list(warnings),
    }


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
