"""The store of jobs in SQLite."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

from pahq_server.core.artifact import Progress
from pahq_server.core.errors import AlreadyExistsError, ConflictError, NotFoundError, StorageError
from pahq_server.store import checksums, rows
from pahq_server.store.base import Admission
from pahq_server.store.database import Database
from pahq_server.store.records import (
    JobRecord,
    JobState,
    NewJob,
    Retention,
    Snapshot,
    StoredArtifact,
    Usage,
)

_FIRST_FINAL = JobState.CANCELLED.value
_SUCCEEDED = JobState.SUCCEEDED.value
# How many jobs are deleted in one transaction, for which others wait.
_PORTION = 100


class SqliteJobStore:
    """A `JobStore` in a database.

    Jobs, journals and artifacts are rows of the tables of these names. ``jobs.log`` is the id under which a
    job's journal and artifact are kept: its own, or that of the equal job whose artifact it took over.

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
                        detail = f"request id {new.request_id!r} was used for another job"
                        raise AlreadyExistsError(detail)
                    return known, False
                equal = _equal(connection, new) if reuse else None
                admit(_usage(connection, new.user), equal is None)
                return _insert(connection, new, equal), True
        except StorageError:
            # It may be committed, and only not on the disk for certain: nobody would know that it exists.
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

    def unfinished(self) -> list[JobRecord]:
        query = f"SELECT {rows.COLUMNS} FROM jobs WHERE state < ? ORDER BY id"
        with self._database.reading() as connection:
            return [rows.record(row) for row in connection.execute(query, (_FIRST_FINAL,))]

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

    def journal(self, job: int) -> list[bytes]:
        query = "SELECT first, count, data FROM journal WHERE log = ? ORDER BY first"
        with self._database.snapshot() as connection:
            row = connection.execute("SELECT records FROM jobs WHERE id = ?", (job,)).fetchone()
            stored = connection.execute(query, (job,)).fetchall()
        runs, records = [], 0
        for first, count, data in stored:
            if first != records:
                raise checksums.damage(f"journal records before number {first} are missing")
            runs.append(checksums.unseal(job, first, count, data))
            records += count
        if row is not None and records != row["records"]:
            raise checksums.damage(f"there are {records} journal records instead of {row['records']}")
        return runs

    def artifact(self, name: str) -> StoredArtifact | None:
        with self._database.snapshot() as connection:
            job = _find(connection, name)
            row = connection.execute(
                "SELECT artifacts.* FROM jobs JOIN artifacts USING (log) WHERE jobs.id = ?", (job.id,)
            ).fetchone()
        if job.damage:
            raise StorageError(f"{name} has no artifact: {job.snapshot.error}", damaged=True)
        if job.snapshot.state is not JobState.SUCCEEDED:
            return None
        try:
            if row is None:
                raise checksums.damage("the artifact is missing")
            found = rows.artifact(row)
        except StorageError as error:
            raise StorageError(f"{error}; delete {name}, and submit it again", damaged=True) from error
        if row["log"] != job.id:
            found.run["from_cache"] = True
        return found

    # Changing

    def advance(self, job: int, now: Snapshot, first: int, data: bytes, alone: bool = False) -> None:
        with self._database.transaction("advance", synced=False) as connection:
            _set(connection, job, now)
            _append(connection, job, now, first, data, alone)

    def cancel(self, job: int, now: Snapshot) -> None:
        with self._database.transaction("cancel", synced=True) as connection:
            _set(connection, job, now)

    def begin_again(self, job: int, content: bytes, now: Snapshot) -> None:
        with self._database.transaction("advance", synced=False) as connection:
            row = connection.execute(f"SELECT {rows.COLUMNS} FROM jobs WHERE id = ?", (job,)).fetchone()
            if row is None:
                raise NotFoundError(f"job {job}")
            if damage := rows.record(row).damage:  # what is damaged must not get a right checksum
                raise StorageError(damage, damaged=True)
            values = {name: row[name] for name in row.keys()} | {"content": content}  # noqa: SIM118
            connection.execute("DELETE FROM journal WHERE log = ?", (job,))
            connection.execute(f"UPDATE jobs SET {rows.SET_FIXED} WHERE id = :id", rows.fixed(job, values))
            _set(connection, job, now)

    def finish(
        self,
        job: int,
        now: Snapshot,
        first: int,
        data: bytes,
        artifact: StoredArtifact | None,
        alone: bool = False,
    ) -> None:
        with self._database.transaction("finish", synced=False) as connection:
            _set(connection, job, now)
            if artifact is None:
                _append(connection, job, now, first, data, alone)
            else:
                connection.execute("DELETE FROM journal WHERE log = ?", (job,))
                connection.execute(rows.INSERT_ARTIFACT, rows.artifact_values(job, artifact))

    def condemn(self, job: JobRecord, reason: str) -> JobRecord:
        with self._database.transaction("finish", synced=False) as connection:
            return _condemn(connection, job, reason)

    # Deleting

    def delete(self, name: str) -> None:
        with self._database.transaction("delete", synced=True) as connection:
            job = _find(connection, name)
            if not job.snapshot.state.final:
                raise ConflictError(f"{name} is {job.snapshot.state.name}: cancel it first")
            if job.damage:  # where it says that its artifact is may be wrong
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
        raise NotFoundError(f"job {name!r}")
    return rows.record(row)


def _by_request(connection: sqlite3.Connection, user: str, request_id: str) -> JobRecord | None:
    if not request_id:
        return None
    query = f"SELECT {rows.COLUMNS} FROM jobs WHERE user = ? AND request_id = ?"
    row = connection.execute(query, (user, request_id)).fetchone()
    return None if row is None else rows.record(row)


def _equal(connection: sqlite3.Connection, new: NewJob) -> sqlite3.Row | None:
    """Finds the latest job of the user with the artifact that a new one would have, if it is undamaged."""
    query = (
        f"SELECT {rows.COLUMNS} FROM jobs "
        "WHERE user = ? AND content = ? AND state = ? ORDER BY id DESC LIMIT 1"
    )
    row: sqlite3.Row | None = connection.execute(query, (new.user, new.content, _SUCCEEDED)).fetchone()
    if row is None or rows.record(row).damage:
        return None
    kept = connection.execute("SELECT * FROM artifacts WHERE log = ?", (row["log"],)).fetchone()
    try:
        rows.check_artifact(kept)
    except StorageError:
        return None
    return row


def _usage(connection: sqlite3.Connection, user: str) -> Usage:
    # One statement instead of three: after each, this thread waits for the interpreter's lock.
    row = connection.execute(
        "SELECT count(*) FILTER (WHERE state = :queued), "
        "coalesce(sum(tokens) FILTER (WHERE state < :final), 0), "
        "count(*) FILTER (WHERE state < :final OR state = :succeeded) FROM jobs WHERE user = :user",
        {"user": user, "queued": JobState.QUEUED.value, "final": _FIRST_FINAL, "succeeded": _SUCCEEDED},
    ).fetchone()
    return Usage(*row)


def _insert(connection: sqlite3.Connection, new: NewJob, equal: sqlite3.Row | None) -> JobRecord:
    now = Snapshot(JobState.QUEUED, Progress(), new.created)
    if equal is not None:
        before = rows.snapshot(equal)
        created = new.created
        now = Snapshot(before.state, before.progress, created, before.records, started=created, ended=created)
    # The id is part of the checksums, so it is chosen here, as SQLite would: an id is never used again.
    (job,) = connection.execute(
        "SELECT 1 + max(coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'jobs'), 0), "
        "coalesce((SELECT max(id) FROM jobs), 0))"
    ).fetchone()
    log = job if equal is None else equal["log"]
    connection.execute(rows.INSERT, rows.inserting(job, new, now, log))
    asked = (new.name, new.user, new.payload, new.spec, new.total, new.unit, new.revision, new.content)
    return JobRecord(job, *asked, now)


def _set(connection: sqlite3.Connection, job: int, now: Snapshot) -> None:
    connection.execute(f"UPDATE jobs SET {rows.SET} WHERE id = :id", rows.changing(job, now))


def _append(
    connection: sqlite3.Connection, log: int, now: Snapshot, first: int, data: bytes, alone: bool
) -> None:
    """Adds the records of a journal that are new in a snapshot; empties the others if they stand alone."""
    count = now.records - first
    if count < 0 or (data and not count):
        raise ValueError(f"{now.records} records cannot include new ones from number {first} on")
    if alone and count:
        query = "SELECT first, count FROM journal WHERE log = ? AND length(data) > ?"
        for number, records in connection.execute(query, (log, checksums.SIZE)).fetchall():
            values = (checksums.seal(log, number, records, b""), log, number)
            connection.execute("UPDATE journal SET data = ? WHERE log = ? AND first = ?", values)
    if count:
        run = (log, first, count, checksums.seal(log, first, count, data))
        connection.execute("INSERT INTO journal (log, first, count, data) VALUES (?, ?, ?, ?)", run)


def _condemn(connection: sqlite3.Connection, job: JobRecord, reason: str) -> JobRecord:
    """Makes an undamaged row of a damaged one: that of a job that has failed."""
    failed = rows.condemned(job, reason)
    failed = replace(failed, snapshot=replace(failed.snapshot, ended=max(time.time(), job.snapshot.created)))
    asked = rows.fixed(job.id, rows.believed_of(failed))
    connection.execute(f"UPDATE jobs SET {rows.SET_FIXED} WHERE id = :id", asked)
    connection.execute("DELETE FROM journal WHERE log = ?", (job.id,))
    _set(connection, job.id, failed.snapshot)
    return replace(failed, damage="")


def _outdated(
    connection: sqlite3.Connection, retention: Retention, now: float, user: str | None
) -> list[int]:
    """Lists ids of finished jobs that need not be kept, a portion of them at most."""
    query = (
        "SELECT id FROM (SELECT id, ended, row_number() OVER (PARTITION BY user ORDER BY id DESC) AS age "
        "FROM jobs WHERE state >= ? AND (? IS NULL OR user = ?)) WHERE age > ? OR ended < ? LIMIT ?"
    )
    most = 1 << 62 if retention.jobs is None else retention.jobs
    oldest = 0.0 if retention.seconds is None else now - retention.seconds
    return [job for (job,) in connection.execute(query, (_FIRST_FINAL, user, user, most, oldest, _PORTION))]


def _delete(connection: sqlite3.Connection, jobs: Iterable[int]) -> None:
    """Deletes jobs, and the journals and artifacts that no other job shares."""
    for job in jobs:
        (log,) = connection.execute("SELECT log FROM jobs WHERE id = ?", (job,)).fetchone()
        connection.execute("DELETE FROM jobs WHERE id = ?", (job,))
        if connection.execute("SELECT 1 FROM jobs WHERE log = ?", (log,)).fetchone() is None:
            connection.execute("DELETE FROM journal WHERE log = ?", (log,))
            connection.execute("DELETE FROM artifacts WHERE log = ?", (log,))
