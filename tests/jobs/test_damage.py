"""A damaged database: what is told of it is what was written, or is said to be damaged."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.fake_engine import OBJECTIVE, PATIENCE_S, Failures, FakeEngine
from helpers.specs import acdc, changed, found
from helpers.waiting import result_of, wait_end, wait_state, wait_until

from pahq_server.access.tokens import TokenTable, new_token
from pahq_server.core.errors import AlreadyExistsError, StorageError
from pahq_server.core.task import BuiltinTask, PromptTask
from pahq_server.jobs.job import Job, JobState
from pahq_server.jobs.quotas import Quotas
from pahq_server.jobs.service import JobPolicy, JobService
from pahq_server.store.directory import DATABASE, StorageConfig, opened
from pahq_server.store.jobs import SqliteJobStore
from pahq_server.store.records import StoredArtifact

SPEC = acdc(2.0, grouping="none")
TEXTS = PromptTask(clean=("Mary had a", (3, 4)), corrupted=("John had a", (3, 6)), positions=(1,))
ASKING = replace(acdc(1.5, objective=replace(OBJECTIVE, task=TEXTS)), include_prompts=True)
BUILTIN = acdc(0.25, objective=replace(OBJECTIVE, task=BuiltinTask("ioi", 4, 7)))


def service_on(database: Any, engine: FakeEngine | None = None, **policy: Any) -> JobService:
    policy = {"window": 2, "slots": 1, "reuse": True} | policy
    return JobService(engine or FakeEngine(), "1.2.3", JobPolicy(**policy), store=SqliteJobStore(database))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with tokens, and with jobs that wait, run, have ended well, and have not."""
    folder = tmp_path_factory.mktemp("written")
    engine = FakeEngine()
    engine.failures["bad"] = Failures(open=ValueError("secret"))
    with opened(StorageConfig(folder)) as database:
        for user, scope in (("ada", "user"), ("root", "admin")):
            TokenTable(database).add(new_token(user, scope, 1.7e9, 4e9)[1])
        revoked = new_token("eve", "admin", 1.7e9)[1]
        TokenTable(database).add(revoked)
        TokenTable(database).revoke(revoked.id, 1.8e9)
        jobs = service_on(database, engine)
        jobs.start()
        ended = [
            jobs.create(spec, f"{i}", user="ada") for i, spec in enumerate((SPEC, ASKING, BUILTIN, SPEC))
        ]
        bad = replace(SPEC, objective=replace(OBJECTIVE, model="bad"))
        ended.append(jobs.create(bad, "", user="bob"))
        for job in ended:
            wait_end(job)
        jobs.close()
        engine = FakeEngine()
        engine.hold()
        jobs = service_on(database, engine)
        jobs.start()
        running = jobs.create(changed(ASKING, threshold=0.75), "running", user="ada")
        wait_state(running, JobState.RUNNING)
        while running.snapshot.records < 8:
            engine.wait_for_call()
            before = running.snapshot
            engine.let()
            wait_until(running, lambda now, before=before: now != before)  # type: ignore[misc]
        for spec in (changed(ASKING, threshold=3.0), changed(BUILTIN, threshold=4.0)):
            jobs.create(spec, f"{spec.parameters.threshold}", user="bob")
        closing = threading.Thread(target=jobs.close)
        closing.start()
        while not jobs._scheduler._closing:
            threading.Event().wait(0.001)
        engine.release()
        closing.join(PATIENCE_S)
        assert not closing.is_alive()
    return folder


def told_of(job: Job) -> tuple[object, ...]:
    return job.name, job.spec, job.facts, job.total, job.snapshot, job.summary, job.warnings


def told_of_result(result: StoredArtifact) -> tuple[object, ...]:
    return result.artifact, result.partial, result.request, result.run, result.prompts


def everything(folder: Path) -> dict[str, object]:
    """All that can be asked for: by what it is, or that it is damaged. Raises StorageError."""
    told: dict[str, object] = {}

    def ask(what: str, question: Callable[[], object]) -> None:
        try:
            told[what] = question()
        except StorageError as error:
            told[what] = DAMAGED if error.damaged else error

    with opened(StorageConfig(folder)) as database:
        store, jobs = SqliteJobStore(database), service_on(database)
        for job in jobs.page(None, 1000)[0]:
            name = job.name
            if job.snapshot.state is JobState.FAILED and "database is damaged" in job.snapshot.error:
                told[name] = DAMAGED
                continue
            told[name] = told_of(job)
            assert told_of(jobs.find(name)) == told[name]
            if job.snapshot.state is JobState.SUCCEEDED:

                def of_result(name: str = name) -> object:
                    result = jobs.artifact(name)
                    return None if result is None else told_of_result(result)

                ask(f"{name} result", of_result)
        for record in store.unfinished():
            if not record.damage:
                ask(f"{record.name} prompts", lambda record=record: store.prompts(record.id))  # type: ignore[misc]
                ask(f"{record.name} journal", lambda record=record: store.journal(record.id))  # type: ignore[misc]
        for token in TokenTable(database).all():
            told[f"token {token.id}"] = DAMAGED if token.damaged else token
    return told


DAMAGED = "damaged"
FLIPS, SEEDS = 150, range(3)


def copied(written: Path, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(written, to)
    return to / DATABASE


@pytest.mark.parametrize("seed", SEEDS)
def test_no_flipped_bit_changes_anything_silently(seed: int, written: Path, tmp_path: Path) -> None:
    truth, chosen = everything(written), random.Random(seed)
    assert len(truth) > 20
    assert DAMAGED not in truth.values()
    size, loud = (written / DATABASE).stat().st_size, 0
    for _ in range(FLIPS):
        path = copied(written, tmp_path / "copy")
        place, bit = chosen.randrange(size), chosen.randrange(8)
        data = bytearray(path.read_bytes())
        data[place] ^= 1 << bit
        path.write_bytes(data)
        try:
            told = everything(path.parent)
        except StorageError:  # the database is not opened at all, and its administrator is told
            loud += 1
            continue
        changed = {what for what, known in truth.items() if told.get(what) != known}
        if changed:
            loud += 1
        # Whatever is gone has become something that is said to be damaged.
        damaged = [what for what, now in told.items() if now == DAMAGED]
        for what in changed:
            of = what.split(" ")[0] if what.startswith("users/") else what
            gone = what not in told and (of in damaged or (of not in told and len(damaged) > 0))
            assert told.get(what) == DAMAGED or gone, f"byte {place}, bit {bit} changed {what}"
        for what in told.keys() - truth.keys():
            assert told[what] == DAMAGED, f"byte {place}, bit {bit} made {what}"
    assert loud > FLIPS / 20, "the bits that matter were not hit"


# Rows that cannot be read

# What is done to a row: a statement, and what the reason must name.
UNREADABLE = [
    ("spec = '{'", "what was asked for"),
    ("spec = x'ff'", "what was asked for"),
    ("spec = CAST(x'ff7b' AS TEXT)", "what was asked for"),
    ("spec = '[]'", "what was asked for"),
    ("prompts = '{'", "its prompts"),
    ("prompts = NULL", "its prompts"),
    ("prompts = CAST(x'ff' AS TEXT)", "its prompts"),
    ("state = 9", "its state"),
    ("state = 'running'", "its state"),
    ("state = 3", "where it stood"),
    ("figures = 'nothing'", "the figures of its progress"),
    ("figures = '[]'", "the figures of its progress"),
    ("done = -1", "how much was done"),
    ("done = 3", "where it stood"),
    ("records = 1 << 60", "its number of journal records"),
    ("created = -1.0", "when it was created"),
    ("created = 1e18", "when it was created"),
    ("started = 'soon'", "when it began"),
    ("total = 'many'", "its amount of work"),
    ("charged = -3.0", "what it cost"),
    ("error = x'00ff'", "why it failed"),
    ("error = CAST(x'ff' AS TEXT)", "why it failed"),
    ("revision = ''", "what was asked for"),
    ("unit = x'00'", "the unit of its work"),
    ("stage = x'00'", "what was being done"),
    ("content = x'00'", "what was asked for"),
    ("content = 'text'", "the key of its artifact"),
    ("user = 'b/ob'", "whose it is"),
    ("user = 'eve'", "whose it is"),
    ("tokens = tokens + 1", "what was asked for"),
    ("log = log + 1", "what was asked for"),
    ("fixed_sum = NULL", "what was asked for"),
    ("state_sum = x'0011223344556677'", "where it stood"),
    ("name = 'users/ada/jobs/' || x'ff'", "its name"),
]


def change(folder: Path, *statements: str) -> None:
    with sqlite3.connect(folder / DATABASE) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


class Server:
    """A service on a data directory, as one process has it; the engine is held."""

    def __init__(self, folder: Path, **policy: Any) -> None:
        self.engine = FakeEngine()
        self.engine.hold()
        self._opened = opened(StorageConfig(folder))
        self.database = self._opened.__enter__()
        self.jobs = service_on(self.database, self.engine, **policy)
        self.jobs.start()
        self.jobs._resumption._thread.join(PATIENCE_S)  # finished jobs were looked at

    def stop(self) -> None:
        closing = threading.Thread(target=self.jobs.close)
        closing.start()
        while not self.jobs._scheduler._closing:
            threading.Event().wait(0.001)
        self.engine.release()
        closing.join(PATIENCE_S)
        assert not closing.is_alive()
        self._opened.__exit__(None, None, None)


Start = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts one service after another on the same data directory."""
    running: list[Server] = []

    def begin(**policy: Any) -> Server:
        for server in running:
            server.stop()
        running[:] = [Server(tmp_path / "data", **policy)]
        return running[0]

    yield begin
    for server in running:
        server.stop()


@pytest.mark.parametrize(("damage", "named"), UNREADABLE, ids=[damage for damage, _ in UNREADABLE])
def test_a_job_that_cannot_be_read_fails_and_can_be_deleted(
    damage: str, named: str, start: Start, tmp_path: Path
) -> None:
    server = start()
    other = server.jobs.create(changed(ASKING, threshold=4.0), "other", user="ada")
    wait_state(other, JobState.RUNNING)
    job = server.jobs.create(ASKING, "damaged", user="ada")
    server.stop()
    change(tmp_path / "data", f"UPDATE jobs SET {damage} WHERE id = 2")
    with opened(StorageConfig(tmp_path / "data")):
        pass  # indexes that do not fit are made again
    server = Server(tmp_path / "data", quotas=Quotas(queued_jobs=1, prompt_tokens=60, stored_results=2))
    try:
        found = server.jobs.page(None, 10)[0][0]
        assert found.name == job.name or named == "its name"
        assert found.user == "ada"
        listed = server.jobs.find(found.name)
        for known in (found, listed):
            assert known.snapshot.state is JobState.FAILED
            assert "the database is damaged" in known.snapshot.error
            assert named in known.snapshot.error
            assert known.snapshot.error.endswith("delete it, and submit it again")
        # Whoever watches hears of the end, also after all that was heard before.
        assert wait_end(found).sequence > job.snapshot.sequence
        assert server.jobs.cancel(found.name).snapshot.state is JobState.FAILED
        assert server.jobs.find(found.name).snapshot.state is JobState.FAILED
        wait_until(other, lambda now: True)
        assert server.jobs.count_by_state()["failed"] == 1
        assert [each.name for each in server.jobs.page("ada", 10)[0]] == [found.name, other.name]
        # It counts in no quota: each of them has room for one more.
        again = server.jobs.create(ASKING, "again", user="ada")
        assert again.snapshot.state is JobState.QUEUED
        server.jobs.cancel(again.name)
        server.jobs.delete(found.name)
        assert found.name not in [each.name for each in server.jobs.page(None, 10)[0]]
        with server.database.reading() as connection:
            for table in ("journal", "artifacts"):
                query = f"SELECT count(*) FROM {table} WHERE log NOT IN (SELECT log FROM jobs)"
                assert connection.execute(query).fetchone()[0] == 0
    finally:
        server.stop()


def test_a_repeated_request_finds_the_damaged_job(start: Start, tmp_path: Path) -> None:
    server = start()
    blocking = server.jobs.create(changed(ASKING, threshold=4.0), "other", user="ada")
    wait_state(blocking, JobState.RUNNING)
    job = server.jobs.create(ASKING, "again", user="ada")
    server.stop()
    change(tmp_path / "data", "UPDATE jobs SET prompts = '{' WHERE id = 2")
    server = Server(tmp_path / "data")
    found = server.jobs.create(ASKING, "again", user="ada")
    assert (found.name, found.snapshot.state) == (job.name, JobState.FAILED)
    with pytest.raises(AlreadyExistsError):
        server.jobs.create(SPEC, "again", user="ada")
    server.stop()


TEXT_RUN = "UPDATE journal SET data = CAST(x'ff' AS TEXT) WHERE log = 1 AND first = 0"
RUNS = [
    ("UPDATE journal SET data = x'00' WHERE log = 1 AND first = 0", "the journal from record 0 on"),
    (TEXT_RUN, "the journal from record 0 on"),
    ("UPDATE journal SET data = zeroblob(34) WHERE log = 1 AND first = 0", "the journal from record 0 on"),
    ("UPDATE journal SET count = count + 1 WHERE log = 1 AND first = 0", "the journal from record 0 on"),
    ("DELETE FROM journal WHERE log = 1 AND first = 0", "journal records before number"),
    ("DELETE FROM journal WHERE log = 1 AND first > 0", "journal records instead of"),
    ("UPDATE journal SET first = first + 100 WHERE log = 1 AND first > 0", "journal records before number"),
]


@pytest.mark.parametrize(("damage", "named"), RUNS, ids=[named for _, named in RUNS])
def test_a_journal_that_is_damaged_fails_its_job(
    damage: str, named: str, start: Start, tmp_path: Path
) -> None:
    server = start()
    job = server.jobs.create(ASKING, "", user="ada")
    wait_state(job, JobState.RUNNING)
    while job.snapshot.records < 4:
        server.engine.wait_for_call()
        before = job.snapshot
        server.engine.let()
        wait_until(job, lambda now, before=before: now != before)  # type: ignore[misc]
    server.stop()
    change(tmp_path / "data", damage)
    server = Server(tmp_path / "data")
    now = server.jobs.find(job.name).snapshot
    assert now.state is JobState.FAILED
    assert "cannot go on after a restart" in now.error
    assert named in now.error
    assert server.engine.opened == []
    server.jobs.delete(job.name)
    server.stop()


SUMMARIES = [
    "UPDATE artifacts SET figures = replace(figures, '0', '1')",
    "UPDATE artifacts SET figures = 'x'",
    "UPDATE artifacts SET kind = 'square'",
    "UPDATE artifacts SET warnings = '[\"Ha.\"]'",
    "UPDATE artifacts SET warnings = CAST(x'ff' AS TEXT)",
    "DELETE FROM artifacts",
    "UPDATE artifacts SET log = 17",
]
PARTS = [
    "UPDATE artifacts SET data = zeroblob(length(data))",
    "UPDATE artifacts SET version = 2",
    "UPDATE artifacts SET request = '{}'",
    "UPDATE artifacts SET run = '{'",
    "UPDATE artifacts SET run = CAST(x'ff' AS TEXT)",
    "UPDATE artifacts SET checksum = NULL",
]


@pytest.mark.parametrize("damage", SUMMARIES + PARTS)
def test_an_artifact_that_is_damaged_is_not_told(damage: str, start: Start, tmp_path: Path) -> None:
    server = start()
    server.engine.release()
    job = server.jobs.create(SPEC, "", user="ada")
    result_of(server.jobs, job)
    with server.database.transaction("test", synced=True) as connection:
        connection.execute(damage)
    for _ in range(2):
        with pytest.raises(StorageError, match="delete") as caught:
            server.jobs.artifact(job.name)
        assert caught.value.damaged
        (found,) = server.jobs.page("ada", 10)[0]
        if damage in SUMMARIES:  # a list tells of these
            assert found.snapshot.state is JobState.FAILED
            assert "its artifact cannot be read" in found.snapshot.error
            assert found.summary is None
        # Nobody else gets it.
        computed = len(server.engine.opened)
        again = server.jobs.create(SPEC, "", user="ada")
        assert wait_end(again).state is JobState.SUCCEEDED
        assert len(server.engine.opened) == computed + 1
        assert server.jobs.artifact(again.name) is not None
        server.jobs.delete(again.name)
    server.jobs.delete(job.name)
    assert server.jobs.page(None, 10)[0] == []


def test_rows_that_have_changed_places_are_noticed(start: Start, tmp_path: Path) -> None:
    server = start()
    server.engine.release()
    first, second = (
        server.jobs.create(spec, "", user="ada") for spec in (SPEC, changed(SPEC, threshold=3.0))
    )
    for job in (first, second):
        result_of(server.jobs, job)
    swap = "UPDATE {0} SET log = CASE log WHEN 1 THEN -2 ELSE -1 END", "UPDATE {0} SET log = -log"
    with server.database.transaction("test", synced=True) as connection:
        for statement in swap:
            connection.execute(statement.format("artifacts"))
    for job in (first, second):
        with pytest.raises(StorageError) as caught:
            server.jobs.artifact(job.name)
        assert caught.value.damaged


def test_finished_jobs_that_are_damaged_count_as_failed(start: Start, tmp_path: Path) -> None:
    """Also where their state in the database says otherwise: they are looked for after a start."""
    server = start()
    server.engine.release()
    for threshold in (2.0, 3.0):
        result_of(server.jobs, server.jobs.create(changed(SPEC, threshold=threshold), "", user="ada"))
    server.stop()
    change(tmp_path / "data", "UPDATE jobs SET spec = '{' WHERE id = 1")
    server = Server(tmp_path / "data", quotas=Quotas(stored_results=2))
    for _ in range(int(PATIENCE_S / 0.01)):
        if server.jobs.count_by_state()["failed"] == 1:
            break
        threading.Event().wait(0.01)
    assert server.jobs.count_by_state()["failed"] == 1
    server.engine.release()
    assert wait_end(server.jobs.create(changed(SPEC, threshold=4.0), "", user="ada")).ended is not None
    server.stop()


def test_minus_zero_is_no_damage(start: Start) -> None:
    """SQLite keeps it as 0."""
    server = start()
    server.engine.release()
    engine = FakeEngine(score=lambda row: -0.0)
    jobs = service_on(server.database, engine)
    jobs.start()
    job = jobs.create(SPEC, "", user="zoe")
    assert found(result_of(jobs, job)).metric_value == 0
    assert jobs.find(job.name).snapshot.state is JobState.SUCCEEDED
    jobs.close()


def test_a_damaged_token_lets_nobody_in(written: Path, tmp_path: Path) -> None:
    path = copied(written, tmp_path / "copy")
    for damage in ("scope = 'admin'", "user = 'root'", "expires = NULL", "digest = x'00'", "created = 1.0"):
        path = copied(written, tmp_path / "copy")
        change(path.parent, f"UPDATE tokens SET {damage} WHERE user = 'ada'")
        with opened(StorageConfig(path.parent)) as database:
            table = TokenTable(database)
            (damaged,) = (token for token in table.all() if token.damaged)
            assert not damaged.valid(1.75e9)
            assert table.revoke(damaged.id, 1.8e9)
            (revoked,) = (token for token in table.all() if token.id == damaged.id)
            assert (revoked.damaged, revoked.revoked) == (False, 1.8e9)
            assert len(table.all()) == 3


def test_provenance_is_json(written: Path) -> None:
    """What the other tests compare is there at all."""
    told = everything(written)
    results = [value for what, value in told.items() if what.endswith(" result")]
    assert len(results) == 4
    assert all(json.dumps(part) for result in results for part in result[2:4])  # type: ignore[index]


@pytest.mark.parametrize(
    ("before", "after"),
    [(b"NOT NULL", b"N\xcfT NULL"), (b"scope IN", b"scope0IN"), (b"jobs_by_user", b"jobs_by_us\xe5r")],
)
def test_damaged_definitions_of_tables_are_told(
    before: bytes, after: bytes, written: Path, tmp_path: Path
) -> None:
    """Whatever SQLite makes of them, which may be no message about damage."""
    path = copied(written, tmp_path / "damaged")
    data = path.read_bytes()
    assert before in data
    path.write_bytes(data.replace(before, after, 1))
    with pytest.raises(StorageError, match="the database is damaged") as caught:
        everything(path.parent)
    assert caught.value.damaged
