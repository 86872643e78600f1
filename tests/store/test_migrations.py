"""Databases of older versions: nothing of them is lost, and what was damaged is still told to be."""

from __future__ import annotations

import json
import random
import sqlite3
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pahq_server.access.tokens import TokenTable
from pahq_server.core.artifact import unpack
from pahq_server.core.errors import StorageError
from pahq_server.core.graph import Graph
from pahq_server.store import migrations
from pahq_server.store.database import Database
from pahq_server.store.directory import DATABASE, StorageConfig, opened
from pahq_server.store.jobs import SqliteJobStore
from pahq_server.store.records import ArtifactSummary, JobRecord, JobState

VERSIONS = (1, 2, 3)
_VERDICT = struct.Struct("<?qdd?")
S, F, C, R, W, Q = (
    *(JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.RUNNING, JobState.CANCELLING),
    JobState.QUEUED,
)
# What each version told of its jobs, oldest first: user, state, verdicts, sequence of the last event.
SCHEMA_2 = [
    *[("ada", S, 28, 32), ("ada", S, 28, 32), ("bob", F, 0, 4)],
    *[("ada", R, 9, 11), ("bob", W, 0, 3), ("ada", Q, 0, 1)],
]
SCHEMA_3 = [
    *[("ada", S, 28, 32), ("ada", S, 28, 32), ("ada", S, 50, 54), ("ada", S, 28, 32), ("bob", S, 46, 50)],
    *[("bob", F, 0, 4), ("bob", C, 7, 11), ("ada", R, 9, 11), ("bob", W, 0, 3), ("ada", Q, 0, 1)],
]
TOLD = {1: SCHEMA_2, 2: SCHEMA_2, 3: SCHEMA_3}
# Of the circuits of schema 3 by job: metric of the circuit, the full model and the empty circuit, kept edges.
FOUND = {1: (2.0, 1.0, 1.0, 11), 2: (2.0, 1.0, 1.0, 11), 3: (0.0, 1.0, 1.0, 30), 4: (2.0, 1.0, 1.0, 11)}
FOUND_2 = {1: FOUND[1], 2: FOUND[2]}
FOUND_3 = FOUND | {5: (1.0, 1.0, 1.0, 46)}


def written(folder: Path, version: int) -> Path:
    """A data directory with the database that a version left."""
    folder.mkdir(exist_ok=True)
    dump = Path(__file__).with_name(f"schema{max(version, 2)}.sql")
    with sqlite3.connect(folder / DATABASE) as connection:
        connection.executescript(dump.read_text("utf-8"))
        if version == 1:  # all that schema 2 added
            connection.execute("DROP TABLE tokens")
            connection.execute("PRAGMA user_version = 1")
    connection.close()
    return folder


def old_rows(folder: Path, query: str) -> list[Any]:
    """Rows of a database that is not migrated yet."""
    connection = sqlite3.connect(folder / DATABASE)
    found = connection.execute(query).fetchall()
    connection.close()
    return found


def old_verdicts(folder: Path, version: int) -> dict[int, bytes]:
    """The verdicts of every log, 26 bytes each; version 3 put a checksum behind every run."""
    end = -8 if version == 3 else None
    logs: dict[int, bytes] = {}
    for log, data in old_rows(folder, "SELECT log, data FROM verdicts ORDER BY log, first"):
        logs[log] = logs.get(log, b"") + data[:end]
    return logs


def change(folder: Path, *statements: str) -> None:
    with sqlite3.connect(folder / DATABASE) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def folder(version: int, tmp_path: Path) -> Path:
    return written(tmp_path / "data", version)


def records(store: SqliteJobStore) -> list[JobRecord]:
    return store.page(None, 100, None)[::-1]


def test_a_file_of_every_version_has_the_present_schema_then(version: int, folder: Path) -> None:
    assert old_rows(folder, "PRAGMA user_version") == [(version,)]
    with opened(StorageConfig(folder)):  # it is compared with that of a new database
        pass
    assert old_rows(folder, "PRAGMA user_version") == [(len(migrations.scripts()),)]
    before = (folder / DATABASE).read_bytes()
    with opened(StorageConfig(folder)):
        pass
    assert (folder / DATABASE).read_bytes() == before


def test_all_jobs_are_there(version: int, folder: Path) -> None:
    names = [name for (name,) in old_rows(folder, "SELECT name FROM jobs ORDER BY id")]
    columns = "payload, spec, total, revision, content, created, started, ended, error, charged"
    asked = old_rows(folder, f"SELECT {columns} FROM jobs ORDER BY id")
    prompts = [text for (text,) in old_rows(folder, "SELECT prompts FROM jobs ORDER BY id")]
    with opened(StorageConfig(folder)) as database:
        store = SqliteJobStore(database)
        found = records(store)
        assert [record.damage for record in found] == [""] * len(TOLD[version])
        told = [(record.user, record.snapshot.state) for record in found]
        assert told == [(user, state) for user, state, *_ in TOLD[version]]
        for record, (*_, verdicts, sequence) in zip(found, TOLD[version], strict=True):
            assert record.snapshot.records + record.snapshot.dropped == verdicts
            # Who watched it before hears of whatever comes now.
            assert record.snapshot.sequence >= sequence
        assert [record.name for record in found] == [
            name.replace("/discoveries/", "/jobs/") for name in names
        ]
        for record, before, text in zip(found, asked, prompts, strict=True):
            now = record.snapshot
            assert before == (
                *(record.payload, record.spec, record.total, record.revision, record.content),
                *(now.created, now.started, now.ended, now.error, now.charged),
            )
            assert (record.unit, now.progress.stage) == ("edges", "")
            assert store.prompts(record.id) == text
            assert store.find(record.name) == record


def test_progress_becomes_figures(version: int, folder: Path) -> None:
    old = old_rows(folder, "SELECT decided, kept, metric, evaluations FROM jobs ORDER BY id")
    with opened(StorageConfig(folder)) as database:
        progresses = [record.snapshot.progress for record in records(SqliteJobStore(database))]
    for progress, (decided, kept, metric, evaluations) in zip(progresses, old, strict=True):
        figures = {"kept": kept, "metric": metric, "evaluations": evaluations}
        assert progress.done == decided
        assert progress.figures == (figures if evaluations else {})


def test_finished_jobs_keep_their_circuits(version: int, folder: Path) -> None:
    verdicts, warned = old_verdicts(folder, version), version == 3
    old = {
        log: (bytes(kept), json.loads(graph), metric, json.loads(request), json.loads(run))
        for log, kept, graph, metric, request, run in old_rows(
            folder, "SELECT log, kept, graph, metric, request, run FROM results"
        )
    }
    logs = dict(old_rows(folder, "SELECT id, log FROM jobs"))
    expected = FOUND_3 if version == 3 else FOUND_2
    with opened(StorageConfig(folder)) as database:
        store = SqliteJobStore(database)
        for record in records(store):
            stored = store.artifact(record.name)
            if record.id not in expected:
                assert (stored, record.summary) == (None, None)
                continue
            value, full, empty, num_kept = expected[record.id]
            kept, graph, metric, request, run = old[logs[record.id]]
            warnings = tuple(run.get("warnings", ()))
            run = {key: value for key, value in run.items() if key != "warnings"}
            assert stored is not None
            assert stored.request == request
            assert stored.run == run | ({"from_cache": True} if logs[record.id] != record.id else {})
            assert stored.warnings == warnings
            assert bool(warnings) == warned
            figures = {"metric": value, "metric_full": full, "metric_empty": empty}
            assert record.summary == ArtifactSummary("circuit", figures, warnings) == stored.summary
            artifact = stored.artifact
            assert (artifact.kind, artifact.version) == ("circuit", 1)
            header, arrays = unpack(artifact.data)
            assert header == {
                "kind": "circuit",
                "version": 1,
                "graph": graph,
                "metric": {"name": metric, "value": value, "full": full, "empty": empty},
            }
            edges = Graph(**graph).num_edges
            assert arrays["kept"].dtype == np.bool_
            assert (arrays["kept"].shape, int(arrays["kept"].sum())) == ((edges,), num_kept)
            assert np.packbits(arrays["kept"]).tobytes() == kept
            columns = zip(*_VERDICT.iter_unpack(verdicts[logs[record.id]]), strict=True)
            names = ("gate", "index", "score", "delta", "kept")
            for name, column, dtype in zip(names, columns, ("?", "i8", "f8", "f8", "?"), strict=True):
                array = arrays[f"verdict_{name}"]
                assert array.dtype == np.dtype(dtype)
                assert array.tolist() == list(column)
            assert len(arrays) == 6


def test_jobs_of_one_circuit_still_share_it(version: int, folder: Path) -> None:
    with opened(StorageConfig(folder)) as database:
        store = SqliteJobStore(database)
        first, second, *_ = records(store)
        shared = store.artifact(second.name)
        store.delete(first.name)
        assert store.artifact(second.name) == shared
        store.delete(second.name)
        with database.reading() as connection:
            (left,) = connection.execute("SELECT count(*) FROM artifacts WHERE log = 1").fetchone()
        assert left == 0


def test_unfinished_jobs_keep_their_verdicts(version: int, folder: Path) -> None:
    verdicts = old_verdicts(folder, version)
    with opened(StorageConfig(folder)) as database:
        store = SqliteJobStore(database)
        unfinished = store.unfinished()
        assert [record.snapshot.state for record in unfinished] == [R, W, Q]
        for record in unfinished:
            assert b"".join(store.journal(record.id)) == verdicts.get(record.id, b"")
        (running, *_) = unfinished
        assert running.snapshot.records == 9
        runs = store.journal(running.id)
        # It goes on from there.
        store.advance(running.id, replace(running.snapshot, records=11), 9, b"more")
        assert store.journal(running.id) == [*runs, b"more"]
        with database.reading() as connection:
            logs = connection.execute("SELECT DISTINCT log FROM journal").fetchall()
        assert [log for (log,) in logs] == [running.id]  # artifacts hold those of finished jobs


def test_ended_jobs_without_a_circuit_have_an_empty_journal(tmp_path: Path) -> None:
    with opened(StorageConfig(written(tmp_path / "data", 3))) as database:
        store = SqliteJobStore(database)
        cancelled = next(record for record in records(store) if record.snapshot.state is C)
        assert (cancelled.snapshot.records, cancelled.snapshot.dropped) == (0, 7)
        assert store.journal(cancelled.id) == []


def test_verdicts_that_were_stored_without_a_snapshot_count(tmp_path: Path) -> None:
    """A process that could not store where a job stood has stored its verdicts at the end."""
    folder = written(tmp_path / "data", 2)
    change(folder, "UPDATE jobs SET evaluations = 7 WHERE id = 4")
    with opened(StorageConfig(folder)) as database:
        store = SqliteJobStore(database)
        running = store.unfinished()[0]
        assert running.snapshot.records == 9
        assert sum(map(len, store.journal(running.id))) == 9 * _VERDICT.size


def test_request_ids_and_ids_go_on(version: int, folder: Path) -> None:
    with opened(StorageConfig(folder)) as database:
        store = SqliteJobStore(database)
        found = records(store)
        assert store.by_request("ada", "done") == found[0]
        for record in found[:-1]:
            if record.snapshot.state.final:
                store.delete(record.name)
        store.condemn(found[-1], "a test")
        store.delete(found[-1].name)
        with database.reading() as connection:
            (seq,) = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'jobs'").fetchone()
        assert seq == found[-1].id  # no later job gets it again


def test_tokens_are_kept(tmp_path: Path) -> None:
    for version in (2, 3):
        with opened(StorageConfig(written(tmp_path / f"{version}", version))) as database:
            tokens = {token.user: token for token in TokenTable(database).all()}
        assert not any(token.damaged for token in tokens.values())
        assert tokens["ada"].matches("pahq_0123456789abcdef_" + 43 * "A")
        assert tokens["root"].revoked == 1_700_000_500.0


def test_a_conversion_that_fails_leaves_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written(tmp_path / "data", 3)
    before = old_rows(folder, "SELECT * FROM jobs"), old_rows(folder, "SELECT sql FROM sqlite_master")

    def fail(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM jobs")
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setitem(migrations._CONVERSIONS, 4, fail)
    with pytest.raises(StorageError, match="full"):
        Database(folder / DATABASE)
    assert old_rows(folder, "PRAGMA user_version") == [(3,)]
    after = old_rows(folder, "SELECT * FROM jobs"), old_rows(folder, "SELECT sql FROM sqlite_master")
    assert after == before
    monkeypatch.undo()
    with opened(StorageConfig(folder)) as database:
        assert len(records(SqliteJobStore(database))) == len(SCHEMA_3)


# Damage from before

ROW = [
    "spec = '{'",
    "spec = x'ff'",
    "spec = CAST(x'ff7b' AS TEXT)",
    "state = 9",
    "state = 'running'",
    "state = 6",
    "metric = 'nothing'",
    "metric = 1e999",
    "metric = x'00'",
    "metric = CAST(x'ff' AS TEXT)",
    "decided = -1",
    "decided = decided + 1",
    "kept = kept + 1",
    "kept = 'few'",
    "evaluations = evaluations + 1",
    "evaluations = 1 << 60",
    "created = -1.0",
    "created = created + 1",
    "started = 'soon'",
    "total = 'many'",
    "charged = -3.0",
    "error = x'00ff'",
    "deaths = deaths + 1",
    "revision = ''",
    "content = x'00'",
    "user = 'eve'",
    "user = x'ff'",
    "tokens = tokens + 1",
    "log = log + 1",
    "request_id = 'other'",
    "fixed_sum = NULL",
    "state_sum = x'0011223344556677'",
    "name = 'users/ada/discoveries/' || x'ff' || id",
    "name = 'users/ada/jobs/' || id",
    "name = x'00' || id",
]


@pytest.mark.parametrize("job", [1, 8])
@pytest.mark.parametrize("damage", ROW)
def test_a_damaged_row_is_still_damaged(damage: str, job: int, tmp_path: Path) -> None:
    folder = written(tmp_path / "data", 3)
    change(folder, f"UPDATE jobs SET {damage} WHERE id = {job}")
    with opened(StorageConfig(folder)) as database:
        store = SqliteJobStore(database)
        damaged = {record.id: record for record in records(store) if record.damage}
        assert set(damaged) == {job}
        assert damaged[job].user == "ada"  # the name and its checksum say so where the user is damaged
        assert damaged[job].snapshot.state is JobState.FAILED
        store.condemn(damaged[job], damaged[job].damage)
        assert not any(record.damage for record in records(store))
        (condemned,) = (record for record in records(store) if record.id == job)
        store.delete(condemned.name)
        assert len(records(store)) == len(SCHEMA_3) - 1
        # The other job of the first one's circuit has it still.
        other = next(record for record in records(store) if record.id == 2)
        assert store.artifact(other.name) is not None


def test_damaged_prompts_are_still_damaged(tmp_path: Path) -> None:
    folder = written(tmp_path / "data", 3)
    change(folder, "UPDATE jobs SET prompts = '{}' WHERE id = 1")
    with opened(StorageConfig(folder)) as database, pytest.raises(StorageError, match="its prompts"):
        SqliteJobStore(database).prompts(1)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE jobs SET state = 77 WHERE id = 1",
        "UPDATE jobs SET created = 1e300 WHERE id = 1",
        "UPDATE jobs SET metric = 'none' WHERE id = 1",
        "UPDATE jobs SET kept = -5 WHERE id = 1",
        "UPDATE jobs SET error = CAST(x'ff' AS TEXT) WHERE id = 1",
    ],
)
def test_values_that_cannot_be_are_damage_from_before_there_were_checksums(
    damage: str, tmp_path: Path
) -> None:
    folder = written(tmp_path / "data", 2)
    change(folder, damage)
    with opened(StorageConfig(folder)) as database:
        damaged = [record.id for record in records(SqliteJobStore(database)) if record.damage]
    assert damaged == [1]


RESULT = [
    "UPDATE results SET value = value + 1",
    "UPDATE results SET empty_circuit = 'x'",
    "UPDATE results SET run = '{'",
    "UPDATE results SET run = CAST(x'ff' AS TEXT)",
    "UPDATE results SET kept = zeroblob(length(kept))",
    "UPDATE results SET graph = replace(graph, '2', '3')",
    "UPDATE results SET request = '{}'",
    "UPDATE results SET metric = 'l2'",
    "UPDATE results SET checksum = NULL",
    "UPDATE results SET log = log + 17",
    "DELETE FROM results",
    "UPDATE verdicts SET data = zeroblob(length(data)) WHERE first = 0",
    "UPDATE verdicts SET data = 'text' WHERE first = 0",
    "UPDATE verdicts SET log = log + 17",
    "UPDATE verdicts SET first = first + 1000",
    "DELETE FROM verdicts WHERE first = 0",
    "DELETE FROM verdicts WHERE first > 1",
]


@pytest.mark.parametrize("damage", RESULT)
def test_a_damaged_circuit_is_still_damaged(damage: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "data", 3)
    change(folder, damage)
    with opened(StorageConfig(folder)) as database:
        store = SqliteJobStore(database)
        found = records(store)
        assert [record.id for record in found if record.damage] == list(FOUND_3)
        for record in found:
            if record.id in FOUND_3:
                assert "its artifact cannot be read" in record.damage
                with pytest.raises(StorageError) as caught:
                    store.artifact(record.name)
                assert caught.value.damaged
                store.delete(record.name)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE results SET graph = '[1]'",
        """UPDATE results SET graph = '{"layers": 1}'""",
        "UPDATE results SET kept = x''",
        "UPDATE results SET metric = CAST(x'ff' AS TEXT)",
        "UPDATE results SET run = '[]'",
        "UPDATE results SET request = '7'",
        "UPDATE verdicts SET data = x'0001' WHERE first = 2",
    ],
)
def test_a_circuit_that_was_damaged_before_there_were_checksums(damage: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "data", 2)
    change(folder, damage)
    with opened(StorageConfig(folder)) as database:
        store = SqliteJobStore(database)
        with pytest.raises(StorageError) as caught:
            store.artifact(records(store)[0].name)
        assert caught.value.damaged


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE verdicts SET data = zeroblob(length(data)) WHERE log = 8 AND first = 0",
        "UPDATE verdicts SET data = 'text' WHERE log = 8 AND first = 0",
        "UPDATE verdicts SET data = x'' WHERE log = 8 AND first = 0",
        "UPDATE verdicts SET first = first + 1000 WHERE log = 8",
        "DELETE FROM verdicts WHERE log = 8 AND first = 0",
        "DELETE FROM verdicts WHERE log = 8 AND first > 1",
    ],
)
def test_damaged_verdicts_of_an_unfinished_job_are_still_damaged(damage: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "data", 3)
    change(folder, damage)
    with opened(StorageConfig(folder)) as database:
        store = SqliteJobStore(database)
        assert not store.unfinished()[0].damage
        with pytest.raises(StorageError) as caught:
            store.journal(8)
        assert caught.value.damaged
        store.condemn(store.unfinished()[0], str(caught.value))
        assert store.journal(8) == []


DAMAGED = "damaged"
FLIPS = 80


def everything(folder: Path) -> dict[str, object]:
    """All that can be asked for: by what it is, or that it is damaged. Raises StorageError."""
    told: dict[str, object] = {}

    def ask(what: str, question: Callable[[], object]) -> None:
        try:
            told[what] = question()
        except StorageError as error:
            told[what] = DAMAGED if error.damaged else error

    with opened(StorageConfig(folder)) as database:
        store = SqliteJobStore(database)
        for record in store.page(None, 1000, None):
            told[record.name] = DAMAGED if record.damage else record
            if not record.damage:
                ask(f"{record.name} artifact", lambda record=record: store.artifact(record.name))  # type: ignore[misc]
                ask(f"{record.name} prompts", lambda record=record: store.prompts(record.id))  # type: ignore[misc]
            if not record.damage and record.snapshot.state is not JobState.SUCCEEDED:
                ask(f"{record.name} journal", lambda record=record: b"".join(store.journal(record.id)))  # type: ignore[misc]
        for token in TokenTable(database).all():
            told[f"token {token.id}"] = DAMAGED if token.damaged else token
    return told


@pytest.mark.parametrize("seed", range(2))
def test_no_bit_that_flipped_before_changes_anything_silently(seed: int, tmp_path: Path) -> None:
    original = (written(tmp_path / "truth", 3) / DATABASE).read_bytes()
    truth, chosen = everything(tmp_path / "truth"), random.Random(seed)
    assert len(truth) > 30
    assert DAMAGED not in truth.values()
    copy, loud = tmp_path / "copy", 0
    copy.mkdir()
    for _ in range(FLIPS):
        for file in copy.iterdir():
            file.unlink()
        place, bit = chosen.randrange(len(original)), chosen.randrange(8)
        data = bytearray(original)
        data[place] ^= 1 << bit
        (copy / DATABASE).write_bytes(data)
        try:
            told = everything(copy)
        except StorageError:  # the database is not opened at all, and its administrator is told
            loud += 1
            continue
        changed = {what for what, known in truth.items() if told.get(what) != known}
        loud += bool(changed)
        damaged = [what for what, now in told.items() if now == DAMAGED]
        for what in changed:
            of = what.split(" ")[0] if what.startswith("users/") else what
            gone = what not in told and (of in damaged or (of not in told and len(damaged) > 0))
            assert told.get(what) == DAMAGED or gone, f"byte {place}, bit {bit} changed {what}"
        for what in told.keys() - truth.keys():
            assert told[what] == DAMAGED, f"byte {place}, bit {bit} made {what}"
    assert loud > FLIPS / 20, "the bits that matter were not hit"
