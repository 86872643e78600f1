"""The store of jobs: creating, listing, reusing, forgetting."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.fake_engine import GRAPH
from pahq_server.search.base import SearchProgress

from pahq_server.core.circuit import Circuit
from pahq_server.core.errors import AlreadyExistsError, ConflictError, NotFoundError, ResourceExhaustedError
from pahq_server.core.verdict import SearchResult, Verdict
from pahq_server.store.database import Database
from pahq_server.store.directory import DATABASE
from pahq_server.store.jobs import SqliteJobStore
from pahq_server.store.records import DiscoveryResult, JobRecord, JobState, NewJob, Retention, Snapshot, Usage

VERDICTS = [
    Verdict(False, edge, edge / 3, edge / 7, edge % 3 == 0) for edge in reversed(range(GRAPH.num_edges))
]


def new(number: int, user: str = "ada", **changes: object) -> NewJob:
    job = NewJob(
        name=f"users/{user}/discoveries/{number}",
        user=user,
        request_id="",
        payload=b"p" * 32,
        spec="{}",
        prompts=None,
        total=GRAPH.num_edges,
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


def result() -> DiscoveryResult:
    kept = np.zeros(GRAPH.num_edges, dtype=bool)
    kept[[v.index for v in VERDICTS if v.kept]] = True
    scores = np.array([v.delta for v in reversed(VERDICTS)])
    search = SearchResult(Circuit(GRAPH, kept), scores, tuple(VERDICTS), 0.1, 0.0, 3.0)
    return DiscoveryResult(GRAPH, "l2", search, {"version": "1"}, {"seconds": 2.5})


def running(record: JobRecord, evaluations: int) -> Snapshot:
    progress = SearchProgress(evaluations, 1, 0.25)
    return replace(
        record.snapshot, state=JobState.RUNNING, started=1.5, progress=progress, evaluations=evaluations
    )


def succeed(store: SqliteJobStore, record: JobRecord, ended: float = 2000.0) -> None:
    store.advance(record.id, running(record, 10), 0, VERDICTS[:10])
    store.advance(record.id, running(record, 30), 10, VERDICTS[10:30])
    now = replace(running(record, len(VERDICTS)), state=JobState.SUCCEEDED, ended=ended)
    store.finish(record.id, now, 30, VERDICTS[30:], result())


def end(store: SqliteJobStore, record: JobRecord, state: JobState, ended: float = 2000.0) -> None:
    store.finish(record.id, replace(record.snapshot, state=state, ended=ended), 0, (), None)


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
    assert store.unfinished() == [record.name]
    for missing in ("users/ada/discoveries/2", ""):
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
    store.advance(three.id, running(three, 0), 0, ())
    create(store, new(4, tokens=4))
    for user in ("ada", "bob"):
        store.create(new(9, user), lambda usage, computed: shown.append((usage, computed)), reuse=False)
    assert shown == [(Usage(queued=1, tokens=7, results=3), True), (Usage(0, 0, 0), True)]


def test_verdicts_and_result_come_back(store: SqliteJobStore) -> None:
    record = create(store, new(1))
    assert store.result(record.name) is None
    store.advance(record.id, running(record, 10), 0, VERDICTS[:10])
    assert store.verdicts(record.id) == VERDICTS[:10]
    assert store.find(record.name).snapshot == running(record, 10)
    store.advance(record.id, running(record, 10), 10, ())
    store.finish(
        record.id,
        replace(running(record, len(VERDICTS)), state=JobState.SUCCEEDED, ended=9.0),
        10,
        VERDICTS[10:],
        result(),
    )
    found, expected = store.result(record.name), result()
    assert found is not None
    assert (found.graph, found.metric, found.request, found.run) == (
        GRAPH,
        "l2",
        expected.request,
        expected.run,
    )
    assert found.search.verdicts == expected.search.verdicts
    assert found.search.circuit.key == expected.search.circuit.key
    assert np.array_equal(found.search.scores, expected.search.scores)
    assert (found.search.metric_value, found.search.metric_full, found.search.metric_empty) == (0.1, 0.0, 3.0)
    assert store.unfinished() == []


def test_jobs_that_found_nothing_leave_no_verdicts(store: SqliteJobStore) -> None:
    record = create(store, new(1))
    store.advance(record.id, running(record, 10), 0, VERDICTS[:10])
    end(store, record, JobState.CANCELLED)
    assert rows(store, "verdicts") == 0
    assert store.result(record.name) is None


def test_beginning_again_drops_verdicts_and_keeps_the_job(store: SqliteJobStore) -> None:
    record = create(store, new(1))
    store.advance(record.id, running(record, 10), 0, VERDICTS[:10])
    now = replace(running(record, 0), dropped=10)
    store.begin_again(record.id, b"d" * 32, now)
    assert store.verdicts(record.id) == []
    assert (store.find(record.name).content, store.find(record.name).snapshot) == (b"d" * 32, now)


# Reusing results


def test_an_equal_job_of_the_same_user_takes_the_result_over(store: SqliteJobStore) -> None:
    first = create(store, new(1))
    assert create(store, new(2), reuse=True).snapshot.state is JobState.QUEUED  # there is no result yet
    succeed(store, first)
    again = create(store, new(3), reuse=True)
    assert again.snapshot.state is JobState.SUCCEEDED
    assert again.snapshot.evaluations == len(VERDICTS)
    assert again.snapshot.created == again.snapshot.ended == 1003.0
    found = store.result(again.name)
    assert found is not None
    assert found.search.verdicts == tuple(VERDICTS)
    assert found.run == {"seconds": 2.5, "from_cache": True}
    others = [new(4, "bob"), new(5, content=b"d" * 32)]
    assert [create(store, job, reuse=True).snapshot.state for job in others] == [JobState.QUEUED] * 2
    assert create(store, new(6), reuse=False).snapshot.state is JobState.QUEUED


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_result_lives_as_long_as_one_job_has_it(order: tuple[int, int], store: SqliteJobStore) -> None:
    first = create(store, new(1))
    succeed(store, first)
    names = [first.name, create(store, new(2), reuse=True).name]
    store.delete(names[order[0]])
    found = store.result(names[order[1]])
    assert found is not None
    assert found.search.verdicts == tuple(VERDICTS)
    assert rows(store, "results") == 1
    store.delete(names[order[1]])
    assert rows(store, "results") == rows(store, "verdicts") == rows(store, "jobs") == 0


def test_ids_are_never_used_twice(store: SqliteJobStore) -> None:
    """Else a new job could come by the verdicts of an old one."""
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
        store.delete("users/ada/discoveries/7")


def test_retention_counts_each_users_finished_jobs(store: SqliteJobStore) -> None:
    for number in range(4):
        succeed(store, create(store, new(number)))
    waiting = create(store, new(4))
    end(store, create(store, new(5, "bob")), JobState.FAILED)
    assert store.prune(Retention(jobs=2), 3000.0, user="bob") == 0
    assert store.prune(Retention(jobs=2), 3000.0) == 2
    left = ["users/bob/discoveries/5", waiting.name, "users/ada/discoveries/3", "users/ada/discoveries/2"]
    assert [record.name for record in store.page(None, 10, None)] == left
    assert store.prune(Retention(jobs=2), 3000.0) == 0
    assert rows(store, "results") == 2


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


def test_a_result_is_read_whole_while_its_job_is_deleted(tmp_path: Path) -> None:
    store = SqliteJobStore(Database(tmp_path / DATABASE))
    other = SqliteJobStore(Database(tmp_path / DATABASE))
    record = create(store, new(1))
    succeed(store, record)
    reader = store._database._reader
    deleting = False

    def delete(statement: str) -> None:
        nonlocal deleting
        if "FROM verdicts" in statement and not deleting:
            deleting = True
            other.delete(record.name)

    reader.set_trace_callback(delete)
    found = store.result(record.name)
    reader.set_trace_callback(None)
    assert deleting
    assert found is not None
    assert found.search.verdicts == tuple(VERDICTS)
    with pytest.raises(NotFoundError):
        store.result(record.name)
    store.close()
    other.close()
