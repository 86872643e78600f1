"""The store of jobs in SQLite."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence

from pahq_server.core.errors import AlreadyExistsError, ConflictError, NotFoundError, StorageError
from pahq_server.core.verdict import Verdict
from pahq_server.search.base import SearchProgress
from pahq_server.store import codec, rows
from pahq_server.store.base import Admission
from pahq_server.store.database import Database
from pahq_server.store.records import (
    DiscoveryResult,
    JobRecord,
    JobState,
    NewJob,
    Retention,
    Snapshot,
    Usage,
)

FINAL = JobState.CANCELLED.value
SUCCEEDED = JobState.SUCCEEDED.value
# Jobs that are deleted in one transaction: others wait for it.
PORTION = 100


class SqliteJobStore:
    """A `JobStore`.

    Args:
        database: holds the tables; closed with the store.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def durable(self) -> bool:
        return self._database.path is not None

    def close(self) -> None:
        self._database.close()

    # Creating

    def create(self, new: NewJob, admit: Admission, reuse: bool) -> tuple[JobRecord, bool]:
        with self._database.transaction("create", synced=True) as connection:
            known = _by_request(connection, new.user, new.request_id)
            if known is not None:
                if known.payload != new.payload:
                    raise AlreadyExistsError(f"request id {new.request_id!r} was used for another discovery")
                return known, False
            equal = _equal(connection, new) if reuse else None
            admit(_usage(connection, new.user), equal is None)
            return _insert(connection, new, equal), True

    def by_request(self, user: str, request_id: str) -> JobRecord | None:
        with self._database.reading() as connection:
            return _by_request(connection, user, request_id)

    # Finding

    def find(self, name: str) -> JobRecord:
        with self._database.reading() as connection:
            return _find(connection, name)

    def page(self, user: str | None, size: int, before: int | None) -> list[JobRecord]:
        where, values = ["1"], list[object]()
        if user is not None:
            where, values = ["user = ?"], [user]
        if before is not None:
            where, values = [*where, "id < ?"], [*values, before]
        query = f"SELECT {rows.COLUMNS} FROM jobs WHERE {' AND '.join(where)} ORDER BY id DESC LIMIT ?"
        with self._database.reading() as connection:
            return [rows.record(row) for row in connection.execute(query, (*values, size))]

    def count_by_state(self) -> dict[JobState, int]:
        with self._database.reading() as connection:
            counts = connection.execute("SELECT state, count(*) FROM jobs GROUP BY state")
            return {JobState(state): count for state, count in counts}

    def unfinished(self) -> list[str]:
        with self._database.reading() as connection:
            found = connection.execute("SELECT name FROM jobs WHERE state < ? ORDER BY id", (FINAL,))
            return [name for (name,) in found]

    def prompts(self, job: int) -> str | None:
        with self._database.reading() as connection:
            row = connection.execute("SELECT prompts FROM jobs WHERE id = ?", (job,)).fetchone()
        if row is None:
            raise NotFoundError(f"job {job}")
        text: str | None = row["prompts"]
        return text

    def verdicts(self, job: int) -> list[Verdict]:
        with self._database.reading() as connection:
            log = _log(connection, job)
        return _verdicts(log)

    def result(self, name: str) -> DiscoveryResult | None:
        with self._database.snapshot() as connection:
            job = _find(connection, name)
            row = connection.execute(
                "SELECT results.* FROM jobs JOIN results USING (log) WHERE jobs.id = ?", (job.id,)
            ).fetchone()
            log = [] if row is None else _log(connection, row["log"])
        # Unpacking takes seconds for millions of verdicts: others read meanwhile.
        return None if row is None else _result(row, _verdicts(log), job.id)

    # Changing

    def begin_again(self, job: int, content: bytes, now: Snapshot) -> None:
        with self._database.transaction("advance", synced=False) as connection:
            connection.execute("DELETE FROM verdicts WHERE log = ?", (job,))
            connection.execute("UPDATE jobs SET content = ? WHERE id = ?", (content, job))
            _set(connection, job, now)

    def advance(self, job: int, now: Snapshot, first: int, verdicts: Sequence[Verdict]) -> None:
        with self._database.transaction("advance", synced=False) as connection:
            _set(connection, job, now)
            _append(connection, job, first, verdicts)

    def cancel(self, job: int, now: Snapshot) -> None:
        with self._database.transaction("cancel", synced=True) as connection:
            _set(connection, job, now)

    def finish(
        self, job: int, now: Snapshot, first: int, verdicts: Sequence[Verdict], result: DiscoveryResult | None
    ) -> None:
        with self._database.transaction("finish", synced=False) as connection:
            _set(connection, job, now)
            if result is None:
                connection.execute("DELETE FROM verdicts WHERE log = ?", (job,))
            else:
                _append(connection, job, first, verdicts)
                _keep(connection, job, result)

    # Deleting

    def delete(self, name: str) -> None:
        with self._database.transaction("delete", synced=True) as connection:
            job = _find(connection, name)
            if not job.snapshot.state.final:
                raise ConflictError(f"{name} is {job.snapshot.state.name}: cancel it first")
            _delete(connection, [job.id])

    def prune(self, retention: Retention, now: float, user: str | None = None) -> int:
        with self._database.reading() as connection:
            if not _outdated(connection, retention, now, user):
                return 0
        with self._database.transaction("prune", synced=False) as connection:
            outdated = _outdated(connection, retention, now, user)
            _delete(connection, outdated)
            return len(outdated)


def _find(connection: sqlite3.Connection, name: str) -> JobRecord:
    row = connection.execute(f"SELECT {rows.COLUMNS} FROM jobs WHERE name = ?", (name,)).fetchone()
    if row is None:
        raise NotFoundError(f"discovery {name!r}")
    return rows.record(row)


def _by_request(connection: sqlite3.Connection, user: str, request_id: str) -> JobRecord | None:
    if not request_id:
        return None
    query = f"SELECT {rows.COLUMNS} FROM jobs WHERE user = ? AND request_id = ?"
    row = connection.execute(query, (user, request_id)).fetchone()
    return None if row is None else rows.record(row)


def _equal(connection: sqlite3.Connection, new: NewJob) -> sqlite3.Row | None:
    """The latest job of the user with the result that the new one would have."""
    query = (
        f"SELECT log, {rows.COLUMNS} FROM jobs "
        "WHERE user = ? AND content = ? AND state = ? ORDER BY id DESC LIMIT 1"
    )
    row: sqlite3.Row | None = connection.execute(query, (new.user, new.content, SUCCEEDED)).fetchone()
    return row


def _usage(connection: sqlite3.Connection, user: str) -> Usage:
    # One statement: each waits for the interpreter, which the engine is busy with.
    row = connection.execute(
        "SELECT count(*) FILTER (WHERE state = :queued), "
        "coalesce(sum(tokens) FILTER (WHERE state < :final), 0), "
        "count(*) FILTER (WHERE state < :final OR state = :succeeded) FROM jobs WHERE user = :user",
        {"user": user, "queued": JobState.QUEUED.value, "final": FINAL, "succeeded": SUCCEEDED},
    ).fetchone()
    return Usage(*row)


def _insert(connection: sqlite3.Connection, new: NewJob, equal: sqlite3.Row | None) -> JobRecord:
    now = Snapshot(JobState.QUEUED, SearchProgress(0, 0, 0.0), new.created)
    if equal is not None:
        before = rows.snapshot(equal)
        now = Snapshot(
            before.state,
            before.progress,
            new.created,
            before.evaluations,
            started=new.created,
            ended=new.created,
        )
    log = None if equal is None else equal["log"]
    job = connection.execute(rows.INSERT, rows.inserting(new, now, log)).lastrowid
    assert job is not None
    if log is None:
        connection.execute("UPDATE jobs SET log = id WHERE id = ?", (job,))
    return JobRecord(
        job, new.name, new.user, new.payload, new.spec, new.total, new.revision, new.content, now
    )


def _set(connection: sqlite3.Connection, job: int, now: Snapshot) -> None:
    connection.execute(f"UPDATE jobs SET {rows.SET} WHERE id = :id", rows.changing(now) | {"id": job})


def _append(connection: sqlite3.Connection, log: int, first: int, verdicts: Sequence[Verdict]) -> None:
    if verdicts:
        data = codec.pack_verdicts(verdicts)
        connection.execute("INSERT INTO verdicts (log, first, data) VALUES (?, ?, ?)", (log, first, data))


def _log(connection: sqlite3.Connection, log: int) -> list[tuple[int, bytes]]:
    """Verdicts as they are stored: the number of the first one of each run, and the run."""
    query = "SELECT first, data FROM verdicts WHERE log = ? ORDER BY first"
    return [(first, data) for first, data in connection.execute(query, (log,))]


def _verdicts(log: Iterable[tuple[int, bytes]]) -> list[Verdict]:
    verdicts: list[Verdict] = []
    for first, data in log:
        if first != len(verdicts):
            raise StorageError(f"the database is damaged: verdicts before {first} are missing", damaged=True)
        verdicts += codec.unpack_verdicts(data)
    return verdicts


def _keep(connection: sqlite3.Connection, log: int, result: DiscoveryResult) -> None:
    found = result.search
    values = (
        *(log, found.metric_value, found.metric_full, found.metric_empty, codec.pack_circuit(found.circuit)),
        *(codec.graph_to_json(result.graph), result.metric),
        *(codec.to_json(result.request), codec.to_json(result.run)),
    )
    connection.execute(
        "INSERT INTO results (log, value, full_model, empty_circuit, kept, graph, metric, request, run) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        values,
    )


def _result(row: sqlite3.Row, verdicts: Iterable[Verdict], job: int) -> DiscoveryResult:
    graph = codec.graph_from_json(row["graph"])
    circuit = codec.unpack_circuit(graph, row["kept"])
    metrics = row["value"], row["full_model"], row["empty_circuit"]
    run = json.loads(row["run"])
    if row["log"] != job:
        run["from_cache"] = True
    return DiscoveryResult(
        graph, row["metric"], codec.found(circuit, verdicts, *metrics), json.loads(row["request"]), run
    )


def _outdated(
    connection: sqlite3.Connection, retention: Retention, now: float, user: str | None
) -> list[int]:
    """Ids of finished jobs that need not be kept, not too many."""
    query = (
        "SELECT id FROM (SELECT id, ended, row_number() OVER (PARTITION BY user ORDER BY id DESC) AS place "
        "FROM jobs WHERE state >= ? AND (? IS NULL OR user = ?)) WHERE place > ? OR ended < ? LIMIT ?"
    )
    most = 1 << 62 if retention.jobs is None else retention.jobs
    oldest = 0.0 if retention.seconds is None else now - retention.seconds
    return [job for (job,) in connection.execute(query, (FINAL, user, user, most, oldest, PORTION))]


def _delete(connection: sqlite3.Connection, jobs: Iterable[int]) -> None:
    """Deletes jobs, and the verdicts and results that no other job has."""
    for job in jobs:
        (log,) = connection.execute("SELECT log FROM jobs WHERE id = ?", (job,)).fetchone()
        connection.execute("DELETE FROM jobs WHERE id = ?", (job,))
        if connection.execute("SELECT 1 FROM jobs WHERE log = ?", (log,)).fetchone() is None:
            connection.execute("DELETE FROM verdicts WHERE log = ?", (log,))
            connection.execute("DELETE FROM results WHERE log = ?", (log,))
