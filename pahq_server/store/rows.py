"""Rows of the table of jobs, and the values they stand for."""

from __future__ import annotations

import json
import sqlite3

from pahq_server.search.base import SearchProgress
from pahq_server.store.records import JobRecord, JobState, NewJob, Outcome, Snapshot, warnings_of

# What changes about a job.
_CHANGING = (
    *("state", "started", "ended", "error", "decided", "kept", "metric", "evaluations"),
    *("dropped", "charged", "deaths"),
)
_FIXED = ("name", "user", "payload", "spec", "total", "revision", "content", "created")
_CREATED = ("request_id", "prompts", "tokens", "log")

# All that a record needs; prompts may be large, and stay where they are.
COLUMNS = ", ".join(
    (
        *("id", *_FIXED, *_CHANGING),
        *(
            f"(SELECT {column} FROM results WHERE results.log = jobs.log) AS result_{column}"
            for column in ("value", "full_model", "empty_circuit", "run")
        ),
    )
)
SET = ", ".join(f"{name} = :{name}" for name in _CHANGING)
INSERT = (
    f"INSERT INTO jobs ({', '.join(_FIXED + _CREATED + _CHANGING)}) "
    f"VALUES ({', '.join(f':{name}' for name in _FIXED + _CREATED + _CHANGING)})"
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
        outcome=_outcome(row),
    )


def _outcome(row: sqlite3.Row) -> Outcome | None:
    """Of a job with a result; while another job with the same log runs, there is none."""
    metrics = row["result_value"], row["result_full_model"], row["result_empty_circuit"]
    if None in metrics:
        return None
    try:
        warnings = warnings_of(json.loads(row["result_run"]))
    except ValueError:  # damaged: whoever asks for the result is told; a list of jobs has more to tell
        warnings = ()
    return Outcome(*metrics, warnings)


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
