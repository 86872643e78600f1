"""The store of jobs in SQLite."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

from pahq_server.core.errors import AlreadyExistsError, ConflictError, NotFoundError, StorageError
from pahq_server.core.verdict import Verdict
from pahq_server.search.base import SearchProgress
from pahq_server.store import checksums, codec, rows
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
        try:
            with self._database.transaction("create", synced=True) as connection:
                known = _by_request(connection, new.user, new.request_id)
                if known is not None:
                    if known.payload != new.payload and not known.damage:
                        detail = f"request id {new.request_id!r} was used for another discovery"
                        raise AlreadyExistsError(detail)
                    return known, False
                equal = _equal(connection, new) if reuse else None
                admit(_usage(connection, new.user), equal is None)
                return _insert(connection, new, equal), True
        except StorageError:
            # It may be there, and only not on the disk for certain: nobody would know of it.
            with suppress(StorageError), self._database.transaction("undo", synced=False) as connection:
                connection.execute("DELETE FROM jobs WHERE name = ?", (new.name,))
            raise

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
            found: dict[JobState, int] = {}
            for value, count in counts:
                # A state that is none is damage, and a damaged job has failed.
                known = isinstance(value, int) and value in JobState._value2member_map_
                state = JobState(value) if known else JobState.FAILED
                found[state] = found.get(state, 0) + count
            return found

    def unfinished(self) -> list[str]:
        with self._database.reading() as connection:
            found = connection.execute("SELECT name FROM jobs WHERE state < ? ORDER BY id", (FINAL,))
            return [name for (name,) in found]

    def left(self) -> list[JobRecord]:
        query = f"SELECT {rows.COLUMNS} FROM jobs WHERE state < ? ORDER BY id"
        with self._database.reading() as connection:
            return [rows.record(row) for row in connection.execute(query, (FINAL,))]

    def after(self, job: int, size: int) -> list[JobRecord]:
        query = f"SELECT {rows.COLUMNS} FROM jobs WHERE id > ? ORDER BY id LIMIT ?"
        with self._database.reading() as connection:
            return [rows.record(row) for row in connection.execute(query, (job, size))]

    def latest(self) -> float | None:
        query = "SELECT created, ended FROM jobs ORDER BY id DESC LIMIT 1000"
        with self._database.reading() as connection:
            times = [time for row in connection.execute(query) for time in row]
        return max((time for time in times if isinstance(time, float)), default=None)

    def usage(self, user: str) -> Usage:
        with self._database.reading() as connection:
            return _usage(connection, user)

    def prompts(self, job: int) -> str | None:
        with self._database.reading() as connection:
            query = "SELECT prompts, prompts_sum FROM jobs WHERE id = ?"
            row = connection.execute(query, (job,)).fetchone()
        if row is None:
            raise NotFoundError(f"job {job}")
        text: str | None = row["prompts"]
        if row["prompts_sum"] != rows.prompts_sum(job, text):
            raise checksums.damage("its prompts cannot be read")
        return text

    def verdicts(self, job: int) -> list[Verdict]:
        with self._database.reading() as connection:
            row = connection.execute("SELECT evaluations FROM jobs WHERE id = ?", (job,)).fetchone()
            runs = _runs(connection, job)
        verdicts = _verdicts(job, runs)
        # There may be more: a process that could not store where a job stood stores its verdicts at the end.
        if row is not None and len(verdicts) < row["evaluations"]:
            raise _too_few(verdicts, row["evaluations"])
        return verdicts

    def result(self, name: str) -> DiscoveryResult | None:
        with self._database.snapshot() as connection:
            job = _find(connection, name)
            row = connection.execute(
                "SELECT results.* FROM jobs JOIN results USING (log) WHERE jobs.id = ?", (job.id,)
            ).fetchone()
            runs = [] if row is None else _runs(connection, row["log"])
        if job.damage:
            raise StorageError(f"{name} has no circuit: {job.snapshot.error}", damaged=True)
        if job.snapshot.state is not JobState.SUCCEEDED:
            return None
        # Unpacking takes seconds for millions of verdicts: others read meanwhile.
        try:
            if row is None:
                raise checksums.damage("the circuit is missing")
            return _result(row, runs, job)
        except StorageError as error:
            why = f"{error}; delete {name}, and submit it again"
            raise StorageError(why, damaged=True) from error

    # Changing

    def begin_again(self, job: int, content: bytes, now: Snapshot) -> None:
        with self._database.transaction("advance", synced=False) as connection:
            row = connection.execute(f"SELECT {rows.COLUMNS} FROM jobs WHERE id = ?", (job,)).fetchone()
            if row is None:
                raise NotFoundError(f"job {job}")
            if damage := rows.record(row).damage:  # must not get the checksum of what it should have been
                raise StorageError(damage, damaged=True)
            values = {name: row[name] for name in row.keys()} | {"content": content}  # noqa: SIM118
            connection.execute("DELETE FROM verdicts WHERE log = ?", (job,))
            connection.execute(f"UPDATE jobs SET {rows.SET_FIXED} WHERE id = :id", rows.fixed(job, values))
            _set(connection, job, now)

    def condemn(self, job: JobRecord, reason: str) -> JobRecord:
        with self._database.transaction("finish", synced=False) as connection:
            return _condemn(connection, job, reason)

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
            if job.damage:  # what it says about where its result is may be wrong
                _condemn(connection, job, job.damage)
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
    """The latest job of the user with the result that the new one would have, if it can be read."""
    query = (
        f"SELECT {rows.COLUMNS} FROM jobs "
        "WHERE user = ? AND content = ? AND state = ? ORDER BY id DESC LIMIT 1"
    )
    row: sqlite3.Row | None = connection.execute(query, (new.user, new.content, SUCCEEDED)).fetchone()
    return row if row is not None and _sound(connection, row) else None


def _sound(connection: sqlite3.Connection, row: sqlite3.Row) -> bool:
    """Whether a job and its result are what was written. What is damaged must not be passed on."""
    if rows.record(row).damage:
        return False
    kept = connection.execute("SELECT * FROM results WHERE log = ?", (row["log"],)).fetchone()
    if kept is None:
        return False
    try:
        rows.check_result(kept)
        runs = _runs(connection, row["log"])
        size = sum(len(checksums.unseal(row["log"], first, data)) for first, data in runs)
    except StorageError:
        return False
    return bool(size == row["evaluations"] * codec.VERDICT_BYTES)


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
    # Its number is part of its checksums. It is the one that SQLite would give it: numbers never come again.
    (job,) = connection.execute(
        "SELECT 1 + max(coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'jobs'), 0), "
        "coalesce((SELECT max(id) FROM jobs), 0))"
    ).fetchone()
    log = job if equal is None else equal["log"]
    connection.execute(rows.INSERT, rows.inserting(job, new, now, log))
    return JobRecord(
        job, new.name, new.user, new.payload, new.spec, new.total, new.revision, new.content, now
    )


def _set(connection: sqlite3.Connection, job: int, now: Snapshot) -> None:
    connection.execute(f"UPDATE jobs SET {rows.SET} WHERE id = :id", rows.changing(job, now))


def _condemn(connection: sqlite3.Connection, job: JobRecord, reason: str) -> JobRecord:
    """Makes a whole row of a damaged one: that of a job that has failed."""
    failed = rows.condemned(job, reason)
    failed = replace(failed, snapshot=replace(failed.snapshot, ended=max(time.time(), job.snapshot.created)))
    asked = rows.fixed(job.id, rows.asked_of(failed))
    connection.execute(f"UPDATE jobs SET {rows.SET_FIXED} WHERE id = :id", asked)
    _set(connection, job.id, failed.snapshot)
    return replace(failed, damage="")


def _append(connection: sqlite3.Connection, log: int, first: int, verdicts: Sequence[Verdict]) -> None:
    if verdicts:
        data = checksums.seal(log, first, codec.pack_verdicts(verdicts))
        connection.execute("INSERT INTO verdicts (log, first, data) VALUES (?, ?, ?)", (log, first, data))


def _runs(connection: sqlite3.Connection, log: int) -> list[tuple[int, bytes]]:
    """Verdicts as they are stored: the number of the first one of each run, and the run."""
    query = "SELECT first, data FROM verdicts WHERE log = ? ORDER BY first"
    return [(first, data) for first, data in connection.execute(query, (log,))]


def _verdicts(log: int, runs: Iterable[tuple[int, bytes]]) -> list[Verdict]:
    """Verdicts from the first one on. Raises StorageError where they are damaged."""
    verdicts: list[Verdict] = []
    for first, sealed in runs:
        if first != len(verdicts):
            raise checksums.damage(f"verdicts before number {first} are missing")
        try:
            verdicts += codec.unpack_verdicts(checksums.unseal(log, first, sealed))
        except (ValueError, TypeError) as error:  # damaged before there were checksums
            raise checksums.damage(f"the verdicts from number {first} on cannot be read") from error
    return verdicts


def _too_few(verdicts: Sequence[Verdict], number: int) -> StorageError:
    return checksums.damage(f"there are {len(verdicts)} verdicts instead of {number}")


def _keep(connection: sqlite3.Connection, log: int, result: DiscoveryResult) -> None:
    found = result.search
    values = rows.result_values(
        *(log, found.metric_value, found.metric_full, found.metric_empty, codec.pack_circuit(found.circuit)),
        *(codec.graph_to_json(result.graph), result.metric),
        *(codec.to_json(result.request), codec.to_json(result.run)),
    )
    connection.execute(rows.INSERT_RESULT, values)


def _result(row: sqlite3.Row, runs: Iterable[tuple[int, bytes]], job: JobRecord) -> DiscoveryResult:
    """Raises StorageError for what cannot be read."""
    rows.check_result(row)
    verdicts = _verdicts(row["log"], runs)
    if len(verdicts) != job.snapshot.evaluations:
        raise _too_few(verdicts, job.snapshot.evaluations)
    try:
        graph = codec.graph_from_json(row["graph"])
        circuit = codec.unpack_circuit(graph, row["kept"])
        request, run = json.loads(row["request"]), json.loads(row["run"])
        metrics = row["value"], row["full_model"], row["empty_circuit"]
        if row["log"] != job.id:
            run["from_cache"] = True
        return DiscoveryResult(graph, row["metric"], codec.found(circuit, verdicts, *metrics), request, run)
    except (ValueError, TypeError, LookupError, RecursionError) as error:  # before there were checksums
        raise checksums.damage(f"the circuit cannot be read ({type(error).__name__})") from error


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
