"""Rows of the tables of jobs and results, the values they stand for, and what of them cannot be read."""

from __future__ import annotations

import json
import math
import re
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from pahq_server.search.base import SearchProgress
from pahq_server.store.checksums import checksum, damage
from pahq_server.store.records import JobRecord, JobState, NewJob, Outcome, Snapshot, warnings_of

# What changes about a job.
_CHANGING = (
    *("state", "started", "ended", "error", "decided", "kept", "metric", "evaluations"),
    *("dropped", "charged", "deaths"),
)
_FIXED = (
    *("name", "user", "request_id", "payload", "spec", "total", "tokens", "revision"),
    *("content", "log", "created"),
)

# What a record tells of a result; all but the last have a checksum of their own in the last.
_OUTCOME = ("log", "value", "full_model", "empty_circuit", "run", "outcome_sum")
# All that a record needs; prompts may be large, and stay where they are.
COLUMNS = ", ".join(
    (
        *("id", *_FIXED, *_CHANGING, "fixed_sum", "state_sum"),
        *(
            f"(SELECT {column} FROM results WHERE results.log = jobs.log) AS result_{column}"
            for column in _OUTCOME
        ),
    )
)
SET = ", ".join(f"{name} = :{name}" for name in (*_CHANGING, "state_sum"))
SET_FIXED = ", ".join(f"{name} = :{name}" for name in (*_FIXED, "fixed_sum"))
_ALL = ("id", *_FIXED, "prompts", *_CHANGING, "fixed_sum", "prompts_sum", "state_sum")
INSERT = f"INSERT INTO jobs ({', '.join(_ALL)}) VALUES ({', '.join(f':{name}' for name in _ALL)})"

# Of a result, in the order of its columns.
_RESULT = (
    *("log", "value", "full_model", "empty_circuit", "kept", "graph", "metric", "request", "run"),
    *("outcome_sum", "checksum"),
)
INSERT_RESULT = f"INSERT INTO results ({', '.join(_RESULT)}) VALUES ({', '.join('?' for _ in _RESULT)})"

# What a job whose row is damaged says; the user can do nothing else about it.
ADVICE = "delete it, and submit it again"
# Damage may have made the sequence of a job anything: whoever watched it must hear of its end all the same.
_BEYOND_ALL = 1 << 53
_YEAR_10000_S = 253_402_300_800
_STATES = frozenset(state.value for state in JobState)
# Of printable characters, as the server chooses them.
_NAME = re.compile(r"users(/[!-.0-~]+){3}")


def record(row: sqlite3.Row) -> JobRecord:
    """The job of a row, also of one that is damaged; see `JobRecord`."""
    if wrong := _damage(row):
        return _damaged(row, wrong)
    return JobRecord(
        id=row["id"],
        name=row["name"],
        user=row["user"],
        payload=row["payload"],
        spec=row["spec"],
        total=row["total"],
        revision=row["revision"],
        content=row["content"],
        snapshot=_snapshot(row),
        outcome=_outcome(row),
    )


def _outcome(row: sqlite3.Row) -> Outcome | None:
    """Of a job with a result."""
    if row["state"] != JobState.SUCCEEDED.value:
        return None
    try:
        warnings = warnings_of(json.loads(row["result_run"]))
    except (ValueError, TypeError, AttributeError):  # damaged before there were checksums
        warnings = ()
    return Outcome(row["result_value"], row["result_full_model"], row["result_empty_circuit"], warnings)


def condemned(found: JobRecord, reason: str) -> JobRecord:
    """A job that has failed because something of it cannot be read. Says nothing that is not known."""
    before = found.snapshot
    ended = before.ended if before.ended is not None else max(time.time(), before.created)
    error = f"{reason}: {ADVICE}"
    now = replace(before, state=JobState.FAILED, error=error, ended=ended, deaths=0)
    return replace(found, snapshot=now, outcome=None, damage=found.damage or reason)


def snapshot(row: sqlite3.Row) -> Snapshot:
    """Where the job of a row that is not damaged stands."""
    return _snapshot(row)


def changing(job: int, now: Snapshot) -> dict[str, object]:
    """Parameters of `SET`."""
    values: dict[str, Any] = {
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
    return values | {"id": job, "state_sum": _state_sum(job, values)}


def fixed(job: int, values: Mapping[str, Any]) -> dict[str, object]:
    """Parameters of `SET_FIXED`, from values by the names of columns."""
    return {name: values[name] for name in _FIXED} | {"id": job, "fixed_sum": _fixed_sum(job, values)}


def inserting(job: int, new: NewJob, now: Snapshot, log: int) -> dict[str, object]:
    """Parameters of `INSERT`."""
    asked = vars(new) | {"request_id": new.request_id or None, "log": log}
    sums = {"prompts": new.prompts, "prompts_sum": prompts_sum(job, new.prompts)}
    return fixed(job, asked) | changing(job, now) | sums


def asked_of(found: JobRecord) -> dict[str, Any]:
    """The same of a damaged one: what can still be believed. It shares no result with another job."""
    values = {name: value for name, value in vars(found).items() if name not in ("id", "snapshot", "damage")}
    created = found.snapshot.created
    return values | {"request_id": None, "tokens": 0, "log": found.id, "created": created}


def prompts_sum(job: int, text: str | None) -> bytes:
    """The checksum of the prompts of a job."""
    return checksum("jobs.prompts", job, text)


def result_values(*values: Any) -> tuple[Any, ...]:
    """Parameters of `INSERT_RESULT`, from all but the checksums, in the order of its columns."""
    of = dict(zip(_RESULT, values, strict=False))
    outcome = checksum("results.outcome", *(of[name] for name in _OUTCOME[:-1]))
    return (*values, outcome, checksum("results", *values))


def check_result(row: sqlite3.Row) -> None:
    """Raises StorageError for a row of the table of results that is not what was written."""
    *values, _, found = (row[name] for name in _RESULT)
    if found != checksum("results", *values):
        raise damage("the circuit cannot be read")


# What is wrong with a row


def _damage(row: sqlite3.Row) -> str:
    """Which parts of a row of the table of jobs cannot be read, for people; empty if all can."""
    parts = [what for name, (what, right) in _RIGHT.items() if not right(row[name])]
    if not parts and not row["name"].startswith(f"users/{row['user']}/"):
        parts = ["whose it is"]
    if not parts and row["fixed_sum"] != _fixed_sum(row["id"], row):
        parts = ["what was asked for (its checksum is another one)"]
    if not parts and row["state_sum"] != _state_sum(row["id"], row):
        parts = ["where it stood (its checksum is another one)"]
    if not parts and row["state"] == JobState.SUCCEEDED.value:
        *outcome, found = (row[f"result_{name}"] for name in _OUTCOME)
        if found != checksum("results.outcome", *outcome):
            parts = ["its circuit"]
    return f"the database is damaged: {', '.join(parts)} cannot be read" if parts else ""


def _damaged(row: sqlite3.Row, wrong: str) -> JobRecord:
    job = int(row["id"])
    fixed_right = row["fixed_sum"] == _fixed_sum(job, row)

    def believed(name: str, otherwise: Any) -> Any:
        return row[name] if _RIGHT[name][1](row[name]) else otherwise

    user, name = _whose(row)
    created = believed("created", 0.0)
    now = Snapshot(JobState.FAILED, SearchProgress(0, 0, 0.0), created, dropped=_BEYOND_ALL, ended=created)
    found = JobRecord(
        id=job,
        name=name,
        user=user,
        payload=believed("payload", b""),
        spec=believed("spec", "") if fixed_right else "",
        total=believed("total", 0),
        revision=believed("revision", ""),
        content=believed("content", b""),
        snapshot=now,
        damage=wrong,
    )
    return condemned(found, wrong)


def _whose(row: sqlite3.Row) -> tuple[str, str]:
    """User and name of a damaged row: what fits its checksum, else the user, in whose list it is."""
    right = {column: _RIGHT[column][1](row[column]) for column in ("user", "name")}
    user = row["user"] if right["user"] else None
    _, of_name, *rest = row["name"].split("/") if right["name"] else ("", None, "discoveries", "")
    if of_name is None:
        return user or "unknown", f"users/{user or 'unknown'}/discoveries/damaged-{row['id']}"
    for each in (user, of_name):
        if each is not None:
            guess = {"user": each, "name": "/".join(("users", each, *rest))}
            values = {name: row[name] for name in _FIXED} | guess
            if row["fixed_sum"] == _fixed_sum(row["id"], values):
                return each, guess["name"]
    return user or of_name, "/".join(("users", user or of_name, *rest))


def _fixed_sum(job: int, values: Mapping[str, Any] | sqlite3.Row) -> bytes:
    return checksum("jobs.fixed", job, *(values[name] for name in _FIXED))


def _state_sum(job: int, values: Mapping[str, Any] | sqlite3.Row) -> bytes:
    return checksum("jobs.state", job, *(values[name] for name in _CHANGING))


def _snapshot(row: sqlite3.Row) -> Snapshot:
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


def _text(value: object) -> bool:
    """Whether it can be told to clients: bytes that are no text become lone surrogates when read."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _count(value: object) -> bool:
    return isinstance(value, int) and 0 <= value <= _BEYOND_ALL


def _number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _time(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value < _YEAR_10000_S


def _optional(right: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or right(value)


def _bytes(value: object) -> bool:
    return isinstance(value, bytes)


# Of every column: what it is to people, and whether a value can be one of it.
_RIGHT: dict[str, tuple[str, Callable[[object], bool]]] = {
    "name": ("its name", lambda value: _text(value) and _NAME.fullmatch(str(value)) is not None),
    "user": ("whose it is", lambda value: _text(value) and value != "" and "/" not in str(value)),
    "request_id": ("its request id", _optional(_text)),
    "payload": ("the checksum of what was asked for", _bytes),
    "spec": ("what was asked for", _text),
    "total": ("its number of edges", _count),
    "tokens": ("its number of tokens", _count),
    "revision": ("its model's revision", _text),
    "content": ("the key of its result", _bytes),
    "log": ("where its verdicts are", _optional(_count)),
    "created": ("when it was created", _time),
    "state": ("its state", lambda value: value in _STATES),
    "started": ("when it began", _optional(_time)),
    "ended": ("when it ended", _optional(_time)),
    "error": ("why it failed", _text),
    "decided": ("how many edges were decided", _count),
    "kept": ("how many edges were kept", _count),
    "metric": ("its metric", _number),
    "evaluations": ("its number of evaluations", _count),
    "dropped": ("its number of earlier evaluations", _count),
    "charged": ("what it cost", lambda value: _number(value) and float(str(value)) >= 0),
    "deaths": ("its number of crashes", _count),
}
