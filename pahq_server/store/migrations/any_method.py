"""The conversion from schema 3, whose jobs were searches for circuits, to schema 4, which knows no method.

This module must read what schema 3 stored for ever, so it uses no code that may change: no search, no method,
and no list of the present schema's columns.

A row whose checksum is wrong before the conversion has none afterwards, so that it still counts as damaged.
A circuit that cannot be read does not become an artifact; its job then says that its artifact is damaged.
"""

from __future__ import annotations

import json
import math
import re
import sqlite3
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.artifact import pack
from pahq_server.core.graph import Graph
from pahq_server.store.checksums import SIZE, checksum, seal

# How schema 3 stored a verdict: 26 bytes. A run of verdicts ended with its checksum.
_VERDICT = np.dtype(
    [("gate", "?"), ("index", "<i8"), ("score", "<f8"), ("delta", "<f8"), ("kept", "?")], align=False
)
# The columns under each checksum, by their names in schema 4 where they have other ones there.
_OLD_FIXED = (
    *("name", "user", "request_id", "payload", "spec", "total", "tokens", "revision", "content", "log"),
    "created",
)
_OLD_CHANGING = (
    *("state", "started", "ended", "error", "done", "kept", "metric", "records", "dropped", "charged"),
    "crash_count",
)
_NEW_FIXED = (
    *("name", "user", "request_id", "payload", "spec", "total", "unit", "tokens", "revision", "content"),
    *("log", "created"),
)
_NEW_CHANGING = (
    *("state", "started", "ended", "error", "done", "stage", "figures", "records", "dropped", "charged"),
    "crash_count",
)
_OLD_RESULT = ("log", "value", "full_model", "empty_circuit", "kept", "graph", "metric", "request", "run")
_OLD_NAME = re.compile(rb"(users/[^/]+)/discoveries/([^/]+)")
_FIRST_FINAL, _SUCCEEDED = 4, 5


def convert(connection: sqlite3.Connection) -> None:
    """Converts all rows, after the statements of 0004_any_method.sql. Raises sqlite3.Error."""
    connection.execute("REINDEX")  # an index that does not fit its table would stop the changes below
    before, connection.text_factory = connection.text_factory, bytes  # damage may have made texts undecodable
    try:
        for (job,) in connection.execute("SELECT id FROM jobs").fetchall():
            _convert_job(connection, job)
        for (log,) in connection.execute("SELECT log FROM results").fetchall():
            _convert_result(connection, log)
    finally:
        connection.text_factory = before
    for statement in (
        "DROP TABLE verdicts",
        "DROP TABLE results",
        "ALTER TABLE jobs DROP COLUMN kept",
        "ALTER TABLE jobs DROP COLUMN metric",
    ):
        connection.execute(statement)


def _convert_job(connection: sqlite3.Connection, job: int) -> None:
    columns = dict.fromkeys(
        (*_OLD_FIXED, *_OLD_CHANGING, *_NEW_FIXED, *_NEW_CHANGING, "fixed_sum", "state_sum")
    )
    query = f"SELECT {', '.join(columns)} FROM jobs WHERE id = ?"
    row = dict(zip(columns, connection.execute(query, (job,)).fetchone(), strict=True))
    fixed_right = row["fixed_sum"] == _sum("jobs.fixed", job, row, _OLD_FIXED)
    state_right = row["state_sum"] == _sum("jobs.state", job, row, _OLD_CHANGING)
    if not fixed_right:
        row["user"], row["name"] = _owner(job, row)
    if isinstance(row["name"], bytes):
        row["name"] = _OLD_NAME.sub(rb"\1/jobs/\2", row["name"])
    figures = _figures(row)
    state_right &= figures is not None
    row["figures"] = figures or ""
    if _is_count(row["state"]) and row["state"] < _FIRST_FINAL:
        _keep_journal(connection, job, row)
    elif _is_count(row["state"]) and row["state"] != _SUCCEEDED and state_right and _is_count(row["dropped"]):
        # Schema 3 kept no verdicts of jobs without a circuit. The sequence of events stays the same.
        row["dropped"], row["records"] = row["dropped"] + row["records"], 0
    row["fixed_sum"] = _sum("jobs.fixed", job, row, _NEW_FIXED) if fixed_right else None
    row["state_sum"] = _sum("jobs.state", job, row, _NEW_CHANGING) if state_right else None
    connection.execute(
        "UPDATE OR IGNORE jobs SET name = CAST(:name AS TEXT), user = CAST(:user AS TEXT), "
        "figures = :figures, records = :records, dropped = :dropped, "
        "fixed_sum = :fixed_sum, state_sum = :state_sum WHERE id = :id",
        row | {"id": job},
    )


def _sum(part: str, job: int, row: dict[str, Any], columns: Iterable[str]) -> bytes:
    return checksum(part, job, *(row[name] for name in columns))


def _owner(job: int, row: dict[str, Any]) -> tuple[Any, Any]:
    """User and name of a damaged row, which tells the user twice: those that fit its checksum, if any do."""
    name = row["name"]
    if isinstance(name, bytes) and name.count(b"/") == 3:
        start, of_name, *rest = name.split(b"/")
        for user in (row["user"], of_name):
            if isinstance(user, bytes):
                guess = row | {"user": user, "name": b"/".join((start, user, *rest))}
                if row["fixed_sum"] == _sum("jobs.fixed", job, guess, _OLD_FIXED):
                    return guess["user"], guess["name"]
    return row["user"], name


def _figures(row: dict[str, Any]) -> str | None:
    """The figures of a job's progress as JSON; None where they cannot be read."""
    if not all(map(_is_count, (row["done"], row["kept"], row["records"]))) or not _is_number(row["metric"]):
        return None
    if not row["records"]:
        return "{}"
    figures = {"evaluations": row["records"], "kept": row["kept"], "metric": row["metric"]}
    return _json({name: float(value) for name, value in figures.items()})


def _keep_journal(connection: sqlite3.Connection, job: int, row: dict[str, Any]) -> None:
    """Copies the verdicts of an unfinished job into its journal; a damaged run stays unreadable."""
    records: int | None = 0
    for first, sealed in _runs(connection, job):
        verdicts = _verdicts(job, first, sealed)
        count, data = 0, sealed if isinstance(sealed, bytes) else b""
        if verdicts is not None:
            count, data = len(verdicts), seal(job, first, len(verdicts), verdicts.tobytes())
        records = None if records is None or verdicts is None or first != records else records + count
        connection.execute("INSERT OR IGNORE INTO journal VALUES (?, ?, ?, ?)", (job, first, count, data))
    # A process that could not store where a job stood has stored its verdicts at the end all the same.
    if records is not None and _is_count(row["records"]) and records > row["records"]:
        row["records"] = records


def _convert_result(connection: sqlite3.Connection, log: int) -> None:
    query = f"SELECT {', '.join(_OLD_RESULT)}, checksum FROM results WHERE log = ?"
    *values, found_sum = connection.execute(query, (log,)).fetchone()
    if found_sum != checksum("results", *values):
        return
    row = dict(zip(_OLD_RESULT, values, strict=True))
    runs = [np.empty(0, _VERDICT)]
    for first, sealed in _runs(connection, log):
        verdicts = _verdicts(log, first, sealed)
        if verdicts is None or first != sum(map(len, runs)):
            return
        runs.append(verdicts)
    found = np.concatenate(runs)
    expected = connection.execute(
        "SELECT records FROM jobs WHERE log = ? AND state = ? AND fixed_sum NOTNULL AND state_sum NOTNULL",
        (log, _SUCCEEDED),
    )
    if any(records != len(found) for (records,) in expected):
        return
    try:
        artifact = _artifact(row, found)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return  # it was damaged before there were checksums
    summary = checksum("artifacts.summary", log, artifact["kind"], artifact["figures"], artifact["warnings"])
    whole = (log, *artifact.values(), summary)
    connection.execute(
        f"INSERT INTO artifacts (log, {', '.join(artifact)}, summary_sum, checksum) "
        f"VALUES ({', '.join('?' for _ in range(len(whole) + 1))})",
        (*whole, checksum("artifacts", *whole)),
    )


def _artifact(row: dict[str, Any], verdicts: NDArray[Any]) -> dict[str, Any]:
    """The columns of an artifact of kind circuit, version 1, in the order of their checksum.

    Raises ValueError and others for what cannot be read.
    """
    graph, request, run = (json.loads(row[name].decode()) for name in ("graph", "request", "run"))
    if not isinstance(request, dict):
        raise TypeError("the provenance must be an object")
    edges = Graph(**graph).num_edges
    kept = np.unpackbits(np.frombuffer(row["kept"], dtype=np.uint8))
    if not edges <= len(kept) < edges + 8:
        raise ValueError(f"{len(row['kept'])} bytes are no circuit of {edges} edges")
    value, full, empty = (float(row[name]) for name in ("value", "full_model", "empty_circuit"))
    header = {
        "kind": "circuit",
        "version": 1,
        "graph": graph,
        "metric": {"name": row["metric"].decode(), "value": value, "full": full, "empty": empty},
    }
    arrays = {f"verdict_{name}": verdicts[name] for name in ("gate", "index", "score", "delta", "kept")}
    warnings = run.pop("warnings", None)
    return {
        "kind": "circuit",
        "version": 1,
        "data": pack(header, {"kept": kept[:edges].astype(bool), **arrays}),
        "figures": _json({"metric": value, "metric_full": full, "metric_empty": empty}),
        "warnings": _json([str(each) for each in warnings] if isinstance(warnings, list) else []),
        "request": _json(request),
        "run": _json(run),
    }


def _runs(connection: sqlite3.Connection, log: int) -> Iterable[tuple[Any, Any]]:
    return connection.execute(
        "SELECT first, data FROM verdicts WHERE log = ? ORDER BY first", (log,)
    ).fetchall()


def _verdicts(log: int, first: object, sealed: object) -> NDArray[Any] | None:
    """The verdicts of a run of schema 3; None if they are damaged."""
    if not isinstance(first, int) or not isinstance(sealed, bytes):
        return None
    data, end = sealed[:-SIZE], sealed[-SIZE:]
    if end != checksum("verdicts", log, first, data) or len(data) % _VERDICT.itemsize:
        return None
    return np.frombuffer(data, dtype=_VERDICT)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
