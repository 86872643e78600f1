"""The store of jobs: creating, listing, reusing, forgetting."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pahq_server.core.artifact import Artifact, Progress
from pahq_server.core.errors import (
    AlreadyExistsError,
    ConflictError,
    NotFoundError,
    ResourceExhaustedError,
    StorageError,
)
from pahq_server.store.database import Database
from pahq_server.store.directory import DATABASE
from pahq_server.store.jobs import SqliteJobStore
from pahq_server.store.records import (
    ArtifactSummary,
    JobRecord,
    JobState,
    NewJob,
    Retention,
    Snapshot,
    StoredArtifact,
    Usage,
)

# Of a method that nobody knows: the store does not read records, so they may be anything.
RECORDS = [bytes([number]) * (number % 3) for number in range(46)]


def packed(first: int, end: int) -> bytes:
    return b"".join(RECORDS[first:end])


def new(number: int, user: str = "ada", **changes: object) -> NewJob:
    job = NewJob(
        name=f"users/{user}/jobs/{number}",
        user=user,
        request_id="",
        payload=b"p" * 32,
        spec="{}",
        prompts=None,
        total=46,
        unit="neurons",
        tokens=10,
        revision="r",
        content=b"c" * 32,
        created=1000.0 + number,
    )
    return replace(job, **changes)  # type: ignore[arg-type]


def anybody(usage: Usage, computed: bool) -> None:
    """Admits every job."""


def create(store: SqliteJobStore, job: NewJob, reuse: bool = False) -> JobRecord:
    record, created = store.create(job, anybody, reuse)
    assert created
    return record


def artifact(data: bytes = b"\0found") -> StoredArtifact:
    found = Artifact("neuron_set", 3, data, {"metric": 0.1, "size": 7}, ("Watch out.", "Über all."))
    return StoredArtifact(found, {"version": "1"}, {"seconds": 2.5})


def running(record: JobRecord, records: int) -> Snapshot:
    progress = Progress(records, "looking", {"kept": 1, "metric": 0.25})
    return replace(record.snapshot, state=JobState.RUNNING, started=1.5, progress=progress, records=records)


def succeed(store: SqliteJobStore, record: JobRecord, ended: float = 2000.0) -> None:
    store.advance(record.id, running(record, 10), 0, packed(0, 10))
    store.advance(record.id, running(record, 30), 10, packed(10, 30))
    now = replace(running(record, len(RECORDS)), state=JobState.SUCCEEDED, ended=ended)
    store.finish(record.id, now, 30, packed(30, 46), artifact())


def end(store: SqliteJobStore, record: JobRecord, state: JobState, ended: float = 2000.0) -> None:
    store.finish(record.id, replace(record.snapshot, state=state, ended=ended), 0, b"", None)


def rows(store: SqliteJobStore, table: str) -> int:
    with store._database.reading() as connection:
        (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(count)


def test_what_is_created_is_found(store: SqliteJobStore) -> None:
    record = create(store, new(1, prompts='{"clean": []}', spec='{"a": 1}'))
    assert store.find(record.name) == record
    assert (record.snapshot.state, record.snapshot.created, record.spec) == (
        JobState.QUEUED,
        1001.0,
        '{"a": 1}',
    )
    assert store.prompts(record.id) == '{"clean": []}'
    assert (record.total, record.unit) == (46, "neurons")
    assert store.unfinished() == [record]
    for missing in ("users/ada/jobs/2", ""):
        with pytest.raises(NotFoundError):
            store.find(missing)


def test_a_request_id_is_the_users_own(store: SqliteJobStore) -> None:
    first = create(store, new(1, request_id="x"))
    assert store.create(new(2, request_id="x"), anybody, reuse=False) == (first, False)
    with pytest.raises(AlreadyExistsError):
        store.create(new(2, request_id="x", payload=b"q" * 32), anybody, reuse=False)
    assert create(store, new(3, "bob", request_id="x")).name != first.name
    assert store.by_request("ada", "x") == first
    assert store.by_request("eve", "x") is None
    assert store.by_request("ada", "") is None


def test_a_refused_job_is_not_there(store: SqliteJobStore) -> None:
    def nobody(usage: Usage, computed: bool) -> None:
        raise ResourceExhaustedError("no", 1.0)

    with pytest.raises(ResourceExhaustedError):
        store.create(new(1, request_id="x"), nobody, reuse=False)
    assert store.page(None, 10, None) == []
    assert store.by_request("ada", "x") is None


def test_usage_is_each_users_own(store: SqliteJobStore) -> None:
    shown: list[tuple[Usage, bool]] = []
    one, two, three = (create(store, new(number, tokens=number)) for number in (1, 2, 3))
    succeed(store, one)
    end(store, two, JobState.FAILED)
    store.advance(three.id, running(three, 0), 0, b"")
    create(store, new(4, tokens=4))
    for user in ("ada", "bob"):
        store.create(new(9, user), lambda usage, computed: shown.append((usage, computed)), reuse=False)
    assert shown == [(Usage(queued=1, tokens=7, results=3), True), (Usage(0, 0, 0), True)]


def test_journal_and_artifact_come_back(store: SqliteJobStore) -> None:
    record = create(store, new(1))
    assert store.artifact(record.name) is None
    assert store.journal(record.id) == []
    store.advance(record.id, running(record, 10), 0, packed(0, 10))
    store.advance(record.id, running(record, 11), 10, packed(10, 11))
    assert store.journal(record.id) == [packed(0, 10), packed(10, 11)]
    assert store.find(record.name).snapshot == running(record, 11)
    store.advance(record.id, running(record, 11), 11, b"")
    now = replace(running(record, len(RECORDS)), state=JobState.SUCCEEDED, ended=9.0)
    store.finish(record.id, now, 11, packed(11, 46), artifact())
    assert store.artifact(record.name) == artifact()
    found = store.find(record.name)
    assert found.summary == artifact().summary
    assert found.summary == ArtifactSummary(
        "neuron_set", {"metric": 0.1, "size": 7}, ("Watch out.", "Über all.")
    )
    assert found.snapshot == now
    assert store.unfinished() == []
    assert rows(store, "journal") == 0  # the artifact holds it all


def test_records_that_stand_alone_empty_the_others(store: SqliteJobStore) -> None:
    record, other = create(store, new(1)), create(store, new(2))
    for each in (record, other):
        store.advance(each.id, running(each, 10), 0, packed(0, 10))
    store.advance(record.id, running(record, 12), 10, packed(10, 12), alone=True)
    assert store.journal(record.id) == [b"", packed(10, 12)]
    store.advance(record.id, running(record, 13), 12, packed(12, 13))
    store.advance(record.id, running(record, 14), 13, packed(13, 14), alone=True)
    assert store.journal(record.id) == [b"", b"", b"", packed(13, 14)]
    end = replace(running(record, 15), state=JobState.CANCELLED, ended=9.0)
    store.finish(record.id, end, 14, packed(14, 15), None, alone=True)
    assert store.journal(record.id) == [*[b""] * 4, packed(14, 15)]
    assert store.journal(other.id) == [packed(0, 10)]


@pytest.mark.parametrize("state", [JobState.CANCELLED, JobState.FAILED])
def test_a_job_without_an_artifact_keeps_its_journal(state: JobState, store: SqliteJobStore) -> None:
    record = create(store, new(1))
    store.advance(record.id, running(record, 10), 0, packed(0, 10))
    store.finish(record.id, replace(running(record, 12), state=state, ended=9.0), 10, packed(10, 12), None)
    assert store.journal(record.id) == [packed(0, 10), packed(10, 12)]
    assert store.artifact(record.name) is None
    assert store.find(record.name).summary is None
    store.delete(record.name)
    assert rows(store, "journal") == 0


def test_a_snapshot_counts_the_records_that_come_with_it(store: SqliteJobStore) -> None:
    record = create(store, new(1))
    for now, first in ((running(record, 0), 0), (running(record, 3), 4)):
        with pytest.raises(ValueError, match="cannot include new ones"):
            store.advance(record.id, now, first, b"x")
    assert store.find(record.name) == record
    assert store.journal(record.id) == []


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ("DELETE FROM journal WHERE first = 0", "before number 10 are missing"),
        ("DELETE FROM journal WHERE first = 10", "before number 12 are missing"),
        ("DELETE FROM journal WHERE first = 12", "12 journal records instead of 15"),
        ("UPDATE journal SET log = 2", "0 journal records instead of 15"),
        ("UPDATE journal SET first = first + 1", "before number 1 are missing"),
        ("UPDATE journal SET count = count + 1 WHERE first = 12", "from record 12 on cannot be read"),
        ("UPDATE journal SET data = zeroblob(length(data))", "from record 0 on cannot be read"),
        ("UPDATE journal SET data = 'text'", "from record 0 on cannot be read"),
        ("UPDATE journal SET data = x''", "from record 0 on cannot be read"),
    ],
)
def test_a_damaged_journal_is_noticed(damage: str, named: str, store: SqliteJobStore) -> None:
    record = create(store, new(1))
    for first, end in ((0, 10), (10, 12), (12, 15)):
        store.advance(record.id, running(record, end), first, packed(first, end))
    with store._database.transaction("test", synced=True) as connection:
        connection.execute(damage)
    with pytest.raises(StorageError, match=named) as caught:
        store.journal(record.id)
    assert caught.value.damaged


def test_figures_that_are_not_finite_are_not_stored(store: SqliteJobStore) -> None:
    record = create(store, new(1))
    now = replace(record.snapshot, progress=Progress(1, "", {"metric": float("nan")}))
    with pytest.raises(ValueError, match="JSON"):
        store.advance(record.id, now, 0, b"")
    assert store.find(record.name) == record


def test_beginning_again_drops_the_journal_and_keeps_the_job(store: SqliteJobStore) -> None:
    record = create(store, new(1))
    store.advance(record.id, running(record, 10), 0, packed(0, 10))
    now = replace(running(record, 0), dropped=10)
    store.begin_again(record.id, b"d" * 32, now)
    assert store.journal(record.id) == []
    assert (store.find(record.name).content, store.find(record.name).snapshot) == (b"d" * 32, now)


def test_a_condemned_job_fails_and_says_why(store: SqliteJobStore) -> None:
    record = create(store, new(1))
    store.advance(record.id, running(record, 10), 0, packed(0, 10))
    failed = store.condemn(store.find(record.name), "its prompts cannot be read")
    assert store.find(record.name) == failed
    assert failed.snapshot.state is JobState.FAILED
    assert failed.snapshot.error.startswith("its prompts cannot be read: delete it")
    assert failed.snapshot.sequence > running(record, 10).sequence
    assert store.journal(record.id) == []
    store.delete(record.name)
    assert rows(store, "jobs") == rows(store, "journal") == 0


# Reusing artifacts


def test_an_equal_job_of_the_same_user_takes_the_artifact_over(store: SqliteJobStore) -> None:
    first = create(store, new(1))
    assert create(store, new(2), reuse=True).snapshot.state is JobState.QUEUED  # there is no artifact yet
    succeed(store, first)
    again = create(store, new(3), reuse=True)
    assert again.snapshot.state is JobState.SUCCEEDED
    assert again.snapshot.records == len(RECORDS)
    assert again.snapshot.created == again.snapshot.ended == 1003.0
    found = store.artifact(again.name)
    assert found is not None
    assert found.artifact == artifact().artifact
    assert store.find(again.name).summary == artifact().summary
    assert found.run == {"seconds": 2.5, "from_cache": True}
    others = [new(4, "bob"), new(5, content=b"d" * 32)]
    assert [create(store, job, reuse=True).snapshot.state for job in others] == [JobState.QUEUED] * 2
    assert create(store, new(6), reuse=False).snapshot.state is JobState.QUEUED


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_an_artifact_lives_as_long_as_one_job_has_it(order: tuple[int, int], store: SqliteJobStore) -> None:
    first = create(store, new(1))
    succeed(store, first)
    names = [first.name, create(store, new(2), reuse=True).name]
    store.delete(names[order[0]])
    found = store.artifact(names[order[1]])
    assert found is not None
    assert found.artifact == artifact().artifact
    assert rows(store, "artifacts") == 1
    store.delete(names[order[1]])
    assert rows(store, "artifacts") == rows(store, "journal") == rows(store, "jobs") == 0


def test_ids_are_never_used_twice(store: SqliteJobStore) -> None:
    """Else a new job could come by the records of an old one."""
    first = create(store, new(1))
    succeed(store, first)
    store.delete(first.name)
    assert create(store, new(2)).id > first.id


# Listing and forgetting


def test_pages(store: SqliteJobStore) -> None:
    mine = [create(store, new(number)) for number in range(5)]
    other = create(store, new(9, "bob"))
    assert store.page("ada", 10, None) == mine[::-1]
    assert store.page(None, 2, None) == [other, mine[4]]
    assert store.page("ada", 2, mine[3].id) == [mine[2], mine[1]]
    assert store.page("bob", 10, other.id) == []
    assert store.page("eve", 10, None) == []
    assert store.count_by_state() == {JobState.QUEUED: 6}


def test_unfinished_jobs_cannot_be_deleted(store: SqliteJobStore) -> None:
    record = create(store, new(1))
    with pytest.raises(ConflictError, match="is QUEUED: cancel it first"):
        store.delete(record.name)
    store.cancel(record.id, replace(record.snapshot, state=JobState.CANCELLING))
    with pytest.raises(ConflictError, match="is CANCELLING"):
        store.delete(record.name)
    with pytest.raises(NotFoundError):
        store.delete("users/ada/jobs/7")


def test_retention_counts_each_users_finished_jobs(store: SqliteJobStore) -> None:
    for number in range(4):
        succeed(store, create(store, new(number)))
    waiting = create(store, new(4))
    end(store, create(store, new(5, "bob")), JobState.FAILED)
    assert store.prune(Retention(jobs=2), 3000.0, user="bob") == 0
    assert store.prune(Retention(jobs=2), 3000.0) == 2
    left = ["users/bob/jobs/5", waiting.name, "users/ada/jobs/3", "users/ada/jobs/2"]
    assert [record.name for record in store.page(None, 10, None)] == left
    assert store.prune(Retention(jobs=2), 3000.0) == 0
    assert rows(store, "artifacts") == 2


def test_many_old_jobs_go_in_portions(store: SqliteJobStore) -> None:
    for number in range(250):
        end(store, create(store, new(number)), JobState.CANCELLED)
    assert [store.prune(Retention(jobs=10), 3000.0, "ada") for _ in range(4)] == [100, 100, 40, 0]
    assert [record.name[-3:] for record in store.page(None, 500, None)] == [
        str(n) for n in range(249, 239, -1)
    ]


def test_retention_goes_by_the_end_of_a_job(store: SqliteJobStore) -> None:
    for number in range(3):
        end(store, create(store, new(number)), JobState.CANCELLED, ended=1000.0 + 100 * number)
    create(store, new(3))
    assert store.prune(Retention(seconds=200.0), 1350.0) == 2
    assert [record.name[-1] for record in store.page(None, 10, None)] == ["3", "2"]
    assert store.prune(Retention(jobs=None, seconds=None), 1e9) == 0


def test_an_artifact_is_read_whole_while_its_job_is_deleted(tmp_path: Path) -> None:
    store = SqliteJobStore(Database(tmp_path / DATABASE))
    other = SqliteJobStore(Database(tmp_path / DATABASE))
    record = create(store, new(1))
    succeed(store, record)
    reader = store._database._reader
    deleting = False

    def delete(statement: str) -> None:
        nonlocal deleting
        if "JOIN artifacts" in statement and not deleting:
            deleting = True
            other.delete(record.name)

    reader.set_trace_callback(delete)
    found = store.artifact(record.name)
    reader.set_trace_callback(None)
    assert deleting
    assert found is not None
    assert found.artifact == artifact().artifact
    with pytest.raises(NotFoundError):
        store.artifact(record.name)
    store.close()
    other.close()
