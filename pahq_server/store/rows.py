"""Translates rows of the tables ``jobs`` and ``artifacts`` to records and back, and finds damaged rows.

A row of ``jobs`` has three checksums: ``fixed_sum`` of what was asked for, ``state_sum`` of where the job
stands, which changes often, and ``prompts_sum`` of the prompts. A row of ``artifacts`` has two: `checksum` of
all of it, and ``summary_sum`` of what lists of jobs tell, so that they need not read the artifact's bytes.
"""

from __future__ import annotations

import json
import math
import re
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from pahq_server.core.artifact import Artifact, Progress
from pahq_server.store.checksums import checksum, damage
from pahq_server.store.records import (
    ArtifactSummary,
    JobRecord,
    JobState,
    NewJob,
    Snapshot,
    StoredArtifact,
)

# The columns of jobs under each checksum, in the order of the checksum.
_FIXED = (
    *("name", "user", "request_id", "payload", "spec", "total", "unit", "tokens", "revision", "content"),
    *("log", "created"),
)
_CHANGING = (
    *("state", "started", "ended", "error", "done", "stage", "figures", "records", "dropped", "charged"),
    "crash_count",
)
# The columns of artifacts in the order of their checksums, and those that lists of jobs tell.
_ARTIFACT = (
    "log",
    "kind",
    "version",
    "data",
    "figures",
    "warnings",
    "request",
    "run",
    "summary_sum",
    "checksum",
)
_SUMMARY = ("log", "kind", "figures", "warnings", "summary_sum")

# Everything that `record` needs; prompts may be large, so they are read on their own.
COLUMNS = ", ".join(
    (
        *("id", *_FIXED, *_CHANGING, "fixed_sum", "state_sum"),
        *(
            f"(SELECT {column} FROM artifacts WHERE artifacts.log = jobs.log) AS artifact_{column}"
            for column in _SUMMARY
        ),
    )
)
# Assignments of an UPDATE; their parameters come from `changing` and `fixed`.
SET = ", ".join(f"{name} = :{name}" for name in (*_CHANGING, "state_sum"))
SET_FIXED = ", ".join(f"{name} = :{name}" for name in (*_FIXED, "fixed_sum"))
_ALL = ("id", *_FIXED, "prompts", *_CHANGING, "fixed_sum", "prompts_sum", "state_sum")
INSERT = f"INSERT INTO jobs ({', '.join(_ALL)}) VALUES ({', '.join(f':{name}' for name in _ALL)})"
INSERT_ARTIFACT = (
    f"INSERT INTO artifacts ({', '.join(_ARTIFACT)}) VALUES ({', '.join('?' for _ in _ARTIFACT)})"
)

# What the user can do about a job whose row is damaged; part of its error message.
ADVICE = "delete it, and submit it again"
# The sequence number of the last event of a damaged job is above all that a job can reach, so that watchers
# hear of its end whatever number they have seen.
_BEYOND_ALL = 1 << 53
_YEAR_10000_S = 253_402_300_800
_STATES = frozenset(state.value for state in JobState)
# Resource names consist of printable ASCII characters.
_NAME = re.compile(r"users(/[!-.0-~]+){3}")


# Reading


def record(row: sqlite3.Row) -> JobRecord:
    """Returns the job of a row. A damaged row gives a failed job; see `JobRecord.damage`."""
    if wrong := _damage(row):
        return _damaged(row, wrong)
    return JobRecord(
        id=row["id"],
        name=row["name"],
        user=row["user"],
        payload=row["payload"],
        spec=row["spec"],
        total=row["total"],
        unit=row["unit"],
        revision=row["revision"],
        content=row["content"],
        snapshot=snapshot(row),
        summary=_summary(row),
    )


def snapshot(row: sqlite3.Row) -> Snapshot:
    """Returns where the job of an undamaged row stands."""
    return Snapshot(
        state=JobState(row["state"]),
        progress=Progress(row["done"], row["stage"], json.loads(row["figures"])),
        created=row["created"],
        records=row["records"],
        started=row["started"],
        ended=row["ended"],
        error=row["error"],
        dropped=row["dropped"],
        charged=row["charged"],
        crash_count=row["crash_count"],
    )


def _summary(row: sqlite3.Row) -> ArtifactSummary | None:
    """Returns the summary of the artifact of an undamaged row; None for a job without one."""
    if row["state"] != JobState.SUCCEEDED.value:
        return None
    figures, warnings = json.loads(row["artifact_figures"]), json.loads(row["artifact_warnings"])
    return ArtifactSummary(row["artifact_kind"], figures, tuple(warnings))


def check_artifact(row: sqlite3.Row) -> None:
    """Raises StorageError for a row of artifacts that is not what was written."""
    *values, found = (row[name] for name in _ARTIFACT)
    if found != checksum("artifacts", *values):
        raise damage("the artifact cannot be read")


def artifact(row: sqlite3.Row) -> StoredArtifact:
    """Returns the artifact of a row. Raises StorageError where it is damaged."""
    check_artifact(row)
    figures, warnings = json.loads(row["figures"]), json.loads(row["warnings"])
    found = Artifact(row["kind"], row["version"], row["data"], figures, tuple(warnings))
    return StoredArtifact(found, json.loads(row["request"]), json.loads(row["run"]))


# Writing


def changing(job: int, now: Snapshot) -> dict[str, object]:
    """Returns the parameters of `SET`.

    Raises ValueError for a figure that is not finite.
    """
    values: dict[str, Any] = {
        "state": now.state.value,
        "started": now.started,
        "ended": now.ended,
        "error": now.error,
        "done": now.progress.done,
        "stage": now.progress.stage,
        "figures": _figures_json(now.progress.figures),
        "records": now.records,
        "dropped": now.dropped,
        "charged": now.charged,
        "crash_count": now.crash_count,
    }
    return values | {"id": job, "state_sum": _state_sum(job, values)}


def fixed(job: int, values: Mapping[str, Any]) -> dict[str, object]:
    """Returns the parameters of `SET_FIXED`, from values by the names of columns."""
    return {name: values[name] for name in _FIXED} | {"id": job, "fixed_sum": _fixed_sum(job, values)}


def inserting(job: int, new: NewJob, now: Snapshot, log: int) -> dict[str, object]:
    """Returns the parameters of `INSERT`.

    Args:
        job: the id of the new job.
        new: the job.
        now: where the job stands.
        log: the job whose artifact it has; its own id unless it takes over an equal job's.
    """
    asked = vars(new) | {"request_id": new.request_id or None, "log": log}
    prompts = {"prompts": new.prompts, "prompts_sum": prompts_sum(job, new.prompts)}
    return fixed(job, asked) | prompts | changing(job, now)


def prompts_sum(job: int, text: str | None) -> bytes:
    """Returns the checksum of the prompts of a job."""
    return checksum("jobs.prompts", job, text)


def artifact_values(log: int, stored: StoredArtifact) -> tuple[Any, ...]:
    """Returns the parameters of `INSERT_ARTIFACT`.

    Raises ValueError for a figure that is not finite.
    """
    found = stored.artifact
    figures, warnings = _figures_json(found.figures), _to_json(list(found.warnings))
    provenance = _to_json(stored.request), _to_json(stored.run)
    summary = _summary_sum(log, found.kind, figures, warnings)
    values = (log, found.kind, found.version, found.data, figures, warnings, *provenance, summary)
    return (*values, checksum("artifacts", *values))


def _figures_json(figures: Mapping[str, float]) -> str:
    return _to_json({name: float(value) for name, value in figures.items()})


def _to_json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _fixed_sum(job: int, values: Mapping[str, Any] | sqlite3.Row) -> bytes:
    return checksum("jobs.fixed", job, *(values[name] for name in _FIXED))


def _state_sum(job: int, values: Mapping[str, Any] | sqlite3.Row) -> bytes:
    return checksum("jobs.state", job, *(values[name] for name in _CHANGING))


def _summary_sum(*values: Any) -> bytes:
    return checksum("artifacts.summary", *values)


# Damage


def condemned(found: JobRecord, reason: str) -> JobRecord:
    """Returns the job as one that has failed because something of it cannot be read, without a journal."""
    before = found.snapshot
    now = replace(
        before,
        state=JobState.FAILED,
        error=f"{reason}: {ADVICE}",
        ended=before.ended if before.ended is not None else max(time.time(), before.created),
        records=0,
        dropped=before.dropped + before.records,
        crash_count=0,
    )
    return replace(found, snapshot=now, summary=None, damage=found.damage or reason)


def believed_of(found: JobRecord) -> dict[str, object]:
    """Returns the values of `fixed` for a damaged job: those that can still be trusted.

    It shares no artifact with another job, and its request id, which may be damaged, is forgotten.
    """
    values = {name: value for name, value in vars(found).items() if name not in ("id", "snapshot", "damage")}
    created = found.snapshot.created
    return values | {"request_id": None, "tokens": 0, "log": found.id, "created": created}


def _damage(row: sqlite3.Row) -> str:
    """Says in words which parts of a row of jobs cannot be read; empty if all can."""
    parts = [what for name, (what, valid) in _VALID.items() if not valid(row[name])]
    if not parts and not row["name"].startswith(f"users/{row['user']}/"):
        parts = ["whose it is"]
    if not parts and row["fixed_sum"] != _fixed_sum(row["id"], row):
        parts = ["what was asked for (its checksum is wrong)"]
    if not parts and row["state_sum"] != _state_sum(row["id"], row):
        parts = ["where it stood (its checksum is wrong)"]
    if not parts and row["state"] == JobState.SUCCEEDED.value:
        *summary, found = (row[f"artifact_{name}"] for name in _SUMMARY)
        if found != _summary_sum(*summary):
            parts = ["its artifact"]
    return f"the database is damaged: {', '.join(parts)} cannot be read" if parts else ""


def _damaged(row: sqlite3.Row, wrong: str) -> JobRecord:
    """Returns the job of a damaged row, with the values that can still be trusted."""
    job = int(row["id"])
    fixed_right = row["fixed_sum"] == _fixed_sum(job, row)

    def believed(name: str, otherwise: Any) -> Any:
        return row[name] if _VALID[name][1](row[name]) else otherwise

    user, name = _owner(row)
    created = believed("created", 0.0)
    now = Snapshot(JobState.FAILED, Progress(), created, dropped=_BEYOND_ALL, ended=created)
    found = JobRecord(
        id=job,
        name=name,
        user=user,
        payload=believed("payload", b""),
        spec=believed("spec", "") if fixed_right else "",
        total=believed("total", 0),
        unit=believed("unit", ""),
        revision=believed("revision", ""),
        content=believed("content", b""),
        snapshot=now,
        damage=wrong,
    )
    return condemned(found, wrong)


def _owner(row: sqlite3.Row) -> tuple[str, str]:
    """Returns user and name of a damaged row, which holds the user in two columns.

    The user that fits the checksum is taken; if none does, that of the column ``user``, by which jobs are
    listed.
    """
    valid = {column: _VALID[column][1](row[column]) for column in ("user", "name")}
    user = row["user"] if valid["user"] else None
    _, of_name, *rest = row["name"].split("/") if valid["name"] else ("", None, "jobs", "")
    if of_name is None:
        return user or "unknown", f"users/{user or 'unknown'}/jobs/damaged-{row['id']}"
    for each in (user, of_name):
        if each is not None:
            guess = {"user": each, "name": "/".join(("users", each, *rest))}
            values = {name: row[name] for name in _FIXED} | guess
            if row["fixed_sum"] == _fixed_sum(row["id"], values):
                return each, guess["name"]
    return user or of_name, "/".join(("users", user or of_name, *rest))


def _is_text(value: object) -> bool:
    """Whether it is text that can be sent: bytes that are not UTF-8 are read as lone surrogates."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and 0 <= value <= _BEYOND_ALL


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value < _YEAR_10000_S


def _is_bytes(value: object) -> bool:
    return isinstance(value, bytes)


def _is_figures(value: object) -> bool:
    try:
        figures = json.loads(value) if isinstance(value, str) else None
    except (ValueError, RecursionError):
        return False
    return isinstance(figures, dict) and all(map(_is_number, figures.values()))


def _optional(valid: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or valid(value)


# Of every column of jobs: its description in error messages, and a check of whether a value is possible.
_VALID: dict[str, tuple[str, Callable[[object], bool]]] = {
    "name": ("its name", lambda value: _is_text(value) and _NAME.fullmatch(str(value)) is not None),
    "user": ("whose it is", lambda value: _is_text(value) and value != "" and "/" not in str(value)),
    "request_id": ("its request id", _optional(_is_text)),
    "payload": ("the checksum of what was asked for", _is_bytes),
    "spec": ("what was asked for", _is_text),
    "total": ("its amount of work", _is_count),
    "unit": ("the unit of its work", _is_text),
    "tokens": ("its number of tokens", _is_count),
    "revision": ("its model's revision", _is_text),
    "content": ("the key of its artifact", _is_bytes),
    "log": ("where its artifact is", _optional(_is_count)),
    "created": ("when it was created", _is_time),
    "state": ("its state", lambda value: value in _STATES),
    "started": ("when it began", _optional(_is_time)),
    "ended": ("when it ended", _optional(_is_time)),
    "error": ("why it failed", _is_text),
    "done": ("how much was done", _is_count),
    "stage": ("what was being done", _is_text),
    "figures": ("the figures of its progress", _is_figures),
    "records": ("its number of journal records", _is_count),
    "dropped": ("its number of earlier records", _is_count),
    "charged": ("what it cost", lambda value: _is_number(value) and float(str(value)) >= 0),
    "crash_count": ("its number of crashes", _is_count),
}
