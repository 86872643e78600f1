"""Databases that older versions left: their jobs are told, go on and can be asked for again.

What the migration makes of every row is tested beside it, in tests/store/test_migrations.py.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from helpers.fake_engine import FakeEngine
from helpers.specs import alone, found
from helpers.waiting import result_of, wait_end

from pahq_server.access.tokens import TokenTable
from pahq_server.core.errors import StorageError
from pahq_server.core.task import BuiltinTask, PromptTask
from pahq_server.jobs import spec as specs
from pahq_server.jobs.job import JobState
from pahq_server.jobs.service import JobPolicy, JobService
from pahq_server.methods.verdicts import unpack_verdicts
from pahq_server.store.database import Database
from pahq_server.store.directory import DATABASE
from pahq_server.store.jobs import SqliteJobStore

STORE = Path(__file__).parents[1] / "store"
# As those versions listed them, newest first: user, state.
UNFINISHED = [("ada", JobState.QUEUED), ("bob", JobState.CANCELLING), ("ada", JobState.RUNNING)]
SUCCEEDED = ("ada", JobState.SUCCEEDED)
JOBS = {
    2: [*UNFINISHED, ("bob", JobState.FAILED), SUCCEEDED, SUCCEEDED],
    3: [
        *UNFINISHED,
        *[("bob", JobState.CANCELLED), ("bob", JobState.FAILED), ("bob", JobState.SUCCEEDED)],
        *[SUCCEEDED] * 4,
    ],
}
FOUND = bytes.fromhex("944830600090")  # the circuit of the first two jobs


@pytest.fixture(params=JOBS)
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def path(version: int, tmp_path: Path) -> Path:
    path = tmp_path / DATABASE
    with sqlite3.connect(path) as connection:
        connection.executescript((STORE / f"schema{version}.sql").read_text("utf-8"))
    connection.close()
    return path


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    database = Database(path)
    database.check()
    yield database
    database.close()


def test_everything_is_there(version: int, database: Database) -> None:
    store = SqliteJobStore(database)
    records = store.page(None, 20, None)
    assert [(record.user, record.snapshot.state) for record in records] == JOBS[version]
    assert [record.damage for record in records] == [""] * len(records)
    queued, _, running, *_, reused, done = records
    failed = next(record for record in records if record.snapshot.state is JobState.FAILED)
    assert specs.read(queued, store.prompts(queued.id)).objective.task == BuiltinTask("ioi", 4, 7)
    task = specs.read(running, store.prompts(running.id)).objective.task
    assert task == PromptTask(((1, 2), (3, 4)), ((1, 5), (3, 6)), positions=(0, 1))
    verdicts = unpack_verdicts(b"".join(store.journal(running.id)))
    assert len(verdicts) == running.snapshot.records == 9
    kind = {2: "RuntimeError", 3: "ValueError"}[version]
    assert failed.snapshot.error == f"internal error ({kind}); see the server's log"
    for record in (reused, done):
        result = store.artifact(record.name)
        assert result is not None
        assert found(result).circuit.key == FOUND
        assert len(found(result).verdicts) == record.snapshot.records == 28
    tokens = {token.user: token for token in TokenTable(database).all()}
    assert not tokens["ada"].damaged
    assert tokens["ada"].valid(1.8e9)
    assert tokens["ada"].matches("pahq_0123456789abcdef_" + 43 * "A")
    assert tokens["root"].revoked == 1_700_000_500.0
    assert tokens["root"].caller.admin


def test_its_jobs_go_on(database: Database) -> None:
    engine = FakeEngine()
    engine.hold()
    service = JobService(engine, "1.2.3", JobPolicy(window=2), store=SqliteJobStore(database))
    service.start()
    queued, cancelled, running, *_ = service.page(None, 20)[0]
    assert cancelled.snapshot.state is JobState.CANCELLED
    engine.release()
    for job in (queued, running):
        result = result_of(service, job)
        undisturbed = alone(job.spec)
        assert result.run["counts"]["replayed"] == (9 if job is running else 0)  # type: ignore[index]
        assert found(result).verdicts == undisturbed.verdicts
        assert np.array_equal(found(result).scores, undisturbed.scores, equal_nan=True)
    again = service.create(running.spec, "running", user="ada")
    assert again.name == running.name
    for name in [job.name for job in service.page(None, 20)[0]]:
        wait_end(service.find(name))
        service.delete(name)
    assert service.page(None, 20)[0] == []
    service.close()


def test_circuits_have_the_bytes_that_the_same_jobs_give_now(database: Database) -> None:
    store = SqliteJobStore(database)
    service = JobService(FakeEngine(), "1.2.3", JobPolicy(window=2, reuse=False), store=store)
    service.start()
    finished = [job for job in service.page(None, 20)[0] if job.snapshot.state is JobState.SUCCEEDED]
    assert finished
    for job in finished:
        before = service.artifact(job.name)
        record = store.find(job.name)
        spec = specs.read(record, store.prompts(record.id))
        again = result_of(service, service.create(spec, "", user="zoe"))
        assert before is not None
        assert before.artifact.data == again.artifact.data
        assert before.artifact.figures == again.artifact.figures
        assert before.request["task_hash"] == again.request["task_hash"]
        service.delete(job.name)
    service.close()


def test_a_job_that_was_cancelled_has_nothing_to_show(version: int, database: Database) -> None:
    """Its verdicts were not kept then."""
    service = JobService(FakeEngine(), "1.2.3", JobPolicy(), store=SqliteJobStore(database))
    service.start()
    ended = [
        job
        for job in service.page(None, 20)[0]
        if job.snapshot.state in (JobState.CANCELLED, JobState.FAILED)
    ]
    assert len(ended) == version  # in both the one that was asked to stop is among them now
    for job in ended:
        assert service.artifact(job.name) is None
    service.close()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE jobs SET spec = CAST(x'ff' AS TEXT) WHERE id IN (1, {running})",
        "UPDATE jobs SET spec = '{' WHERE id IN (1, {running})",
        "UPDATE jobs SET spec = replace(replace(spec, 'false', '7'), 'true', '7') WHERE id IN (1, {running})",
        "UPDATE jobs SET state = 77 WHERE id IN (1, {running})",
        "UPDATE jobs SET created = 1e300 WHERE id IN (1, {running})",
    ],
)
def test_what_was_damaged_before_is_damaged(version: int, damage: str, path: Path) -> None:
    """Also where the row has the checksum of what it holds, as all those of schema 2 get it."""
    running = len(JOBS[version]) - 2
    with sqlite3.connect(path) as connection:
        connection.execute(damage.replace("{running}", str(running)))
    connection.close()
    database = Database(path)
    engine = FakeEngine()
    service = JobService(engine, "1.2.3", JobPolicy(), store=SqliteJobStore(database))
    service.start()
    jobs = service.page(None, 20)[0]
    for job in (jobs[-1], jobs[-running]):
        assert job.snapshot.state is JobState.FAILED
        assert "the database is damaged" in job.snapshot.error
        with suppress(StorageError):
            assert service.artifact(job.name) is None
        service.delete(job.name)
    assert len(service.page(None, 20)[0]) == len(JOBS[version]) - 2
    service.close()
    database.close()


def test_damaged_verdicts_and_results_of_before(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE results SET graph = '[1]'")
        connection.execute("UPDATE verdicts SET data = x'0001' WHERE log IN (4, 8) AND first = 2")
    connection.close()
    database = Database(path)
    store = SqliteJobStore(database)
    records = store.page(None, 20, None)
    with pytest.raises(StorageError) as caught:
        store.artifact(records[-1].name)
    assert caught.value.damaged
    with pytest.raises(StorageError) as caught:
        store.journal(records[2].id)
    assert caught.value.damaged
    database.close()
