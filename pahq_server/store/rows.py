"""Rows of the table of jobs, and the values they stand for."""

from __future__ import annotations

import sqlite3

from pahq_server.search.base import SearchProgress
from pahq_server.store.records import JobRecord, JobState, NewJob, Snapshot

# All that a record needs; prompts may be large, and stay where they are.
COLUMNS = (
    "id, name, user, payload, spec, total, revision, content, state, created, started, ended, error, "
    "decided, kept, metric, evaluations, dropped, charged, deaths"
)
# What changes.
SET = (
    "state = :state, started = :started, ended = :ended, error = :error, decided = :decided, kept = :kept, "
    "metric = :metric, evaluations = :evaluations, dropped = :dropped, charged = :charged, "
    "deaths = :deaths"
)
INSERT = (
    "INSERT INTO jobs (name, user, request_id, payload, spec, prompts, total, tokens, revision, content, "
    "log, state, created, started, ended, error, decided, kept, metric, evaluations, dropped, charged, "
    "deaths) VALUES (:name, :user, :request_id, :payload, :spec, :prompts, :total, :tokens, :revision, "
    ":content, :log, :state, :created, :started, :ended, :error, :decided, :kept, :metric, :evaluations, :dropped, "
    ":charged, :deaths)"
)


def record(row: sqlite3.Row) -> JobRecord:
    return JobRecord(
        id=row["id"],
        name=row["name"],
        user=row["user"],
        payload=row["payload"],
        spec=row["spec"],
        total=row["total"],
        revision=row["revision"],
        content=row["content"],
        snapshot=snapshot(row),
    )


def snapshot(row: sqlite3.Row) -> Snapshot:
    return Snapshot(
        state=JobState(row["state"]),
        progress=SearchProgress(row["decided"], row["kept"], row["metric"]),
        created=row["created"],
        evaluations=row["evaluations"],
        started=row["started"],
        ended=row["ended"],
        error=row["error"],
        dropped=row["dropped"],
        charged=row["charged"],
        deaths=row["deaths"],
    )


def changing(now: Snapshot) -> dict[str, object]:
    """Parameters of `SET`."""
    return {
        "state": now.state.value,
        "started": now.started,
        "ended": now.ended,
        "error": now.error,
        "decided": now.progress.decided,
        "kept": now.progress.kept,
        "metric": now.progress.metric,
        "evaluations": now.evaluations,
        "dropped": now.dropped,
        "charged": now.charged,
        "deaths": now.deaths,
    }


def inserting(new: NewJob, now: Snapshot, log: int | None) -> dict[str, object]:
    """Parameters of `INSERT`."""
    return vars(new) | changing(now) | {"request_id": new.request_id or None, "log": log}
