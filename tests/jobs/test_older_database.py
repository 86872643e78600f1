"""A database that an older version left, before rows had checksums: nothing of it is lost."""

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
from pahq_server.core.verdict import unpack_verdicts
from pahq_server.jobs import spec as specs
from pahq_server.jobs.job import JobState
from pahq_server.jobs.service import JobPolicy, JobService
from pahq_server.store import migrations
from pahq_server.store.database import Database
from pahq_server.store.directory import DATABASE
from pahq_server.store.jobs import SqliteJobStore

DUMP = Path(__file__).parents[1] / "store" / "schema2.sql"
# As that version listed them, newest first: user, state, request id.
JOBS = [
    ("ada", JobState.QUEUED),
    ("bob", JobState.CANCELLING),
    ("ada", JobState.RUNNING),
    ("bob", JobState.FAILED),
    ("ada", JobState.SUCCEEDED),
    ("ada", JobState.SUCCEEDED),
]
FOUND = bytes.fromhex("944830600090")  # the circuit of the first two jobs


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / DATABASE
    with sqlite3.connect(path) as connection:
        connection.executescript(DUMP.read_text("utf-8"))
    connection.close()
    return path


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    database = Database(path)
    database.check()
    yield database
    database.close()


def test_it_has_the_schema_of_its_version_until_it_is_opened(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == 2
        assert "checksum" not in "".join(
            row[0] or "" for row in connection.execute("SELECT sql FROM sqlite_master")
        )
    connection.close()
    Database(path).close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == len(migrations.scripts())
    connection.close()


def test_everything_is_there(database: Database) -> None:
    store = SqliteJobStore(database)
    records = store.page(None, 10, None)
    assert [(record.user, record.snapshot.state) for record in records] == JOBS
    assert [record.damage for record in records] == [""] * len(JOBS)
    queued, _, running, failed, reused, done = records
    assert specs.read(queued, store.prompts(queued.id)).objective.task == BuiltinTask("ioi", 4, 7)
    task = specs.read(running, store.prompts(running.id)).objective.task
    assert task == PromptTask(((1, 2), (3, 4)), ((1, 5), (3, 6)), positions=(0, 1))
    verdicts = unpack_verdicts(b"".join(store.journal(running.id)))
    assert len(verdicts) == running.snapshot.records == 9
    assert failed.snapshot.error == "internal error (RuntimeError); see the server's log"
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
    queued, cancelled, running, *_ = service.page(None, 10)[0]
    assert cancelled.snapshot.state is JobState.CANCELLED
    engine.release()
    for job in (queued, running):
        result = result_of(service, job)
        undisturbed = alone(job.spec)
        assert found(result).verdicts == undisturbed.verdicts
        assert np.array_equal(found(result).scores, undisturbed.scores, equal_nan=True)
    again = service.create(running.spec, "running", user="ada")
    assert again.name == running.name
    for name in [job.name for job in service.page(None, 10)[0]]:
        wait_end(service.find(name))
        service.delete(name)
    assert service.page(None, 10)[0] == []
    service.close()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE jobs SET spec = CAST(x'ff' AS TEXT) WHERE id IN (1, 4)",
        "UPDATE jobs SET spec = '{' WHERE id IN (1, 4)",
        "UPDATE jobs SET spec = replace(spec, '\"gates\":false', '\"gates\":[]') WHERE id IN (1, 4)",
        "UPDATE jobs SET state = 77 WHERE id IN (1, 4)",
        "UPDATE jobs SET created = 1e300 WHERE id IN (1, 4)",
    ],
)
def test_what_was_damaged_before_is_damaged(damage: str, path: Path) -> None:
    """It gets checksums of what it holds, which is not what it should."""
    with sqlite3.connect(path) as connection:
        connection.execute(damage)
    connection.close()
    database = Database(path)
    engine = FakeEngine()
    service = JobService(engine, "1.2.3", JobPolicy(), store=SqliteJobStore(database))
    service.start()
    jobs = service.page(None, 10)[0]
    for job in (jobs[-1], jobs[-4]):
        assert job.snapshot.state is JobState.FAILED
        assert "the database is damaged" in job.snapshot.error
        with suppress(StorageError):
            assert service.artifact(job.name) is None
        service.delete(job.name)
    assert len(service.page(None, 10)[0]) == len(JOBS) - 2
    service.close()
    database.close()


def test_damaged_verdicts_and_results_of_before(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE results SET graph = '[1]'")
        connection.execute("UPDATE verdicts SET data = x'0001' WHERE log = 4 AND first = 2")
    connection.close()
    database = Database(path)
    store = SqliteJobStore(database)
    records = store.page(None, 10, None)
    with pytest.raises(StorageError) as caught:
        store.artifact(records[-1].name)
    assert caught.value.damaged
    with pytest.raises(StorageError) as caught:
        store.journal(records[2].id)
    assert caught.value.damaged
    database.close()
