"""What the disk does to a database: how long it takes, what it cannot do, and what it damages."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from helpers.fake_engine import PATIENCE_S

from pahq_server.core.artifact import Progress
from pahq_server.core.errors import StorageError
from pahq_server.store import database as database_module
from pahq_server.store.database import NEEDS_LOCAL_DISK, Database, as_storage_error
from pahq_server.store.directory import DATABASE, DataDirectory, StorageConfig, opened
from pahq_server.store.jobs import SqliteJobStore
from pahq_server.store.records import JobState, Snapshot

from .test_jobs import anybody, create, new, running, succeed


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / DATABASE


# How long it takes


class SlowDisk:
    """Every sync waits until it is let."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.syncing, self.go = threading.Event(), threading.Event()
        sync = os.fdatasync

        def wait(file: int) -> None:
            self.syncing.set()
            assert self.go.wait(PATIENCE_S), "the test forgot a sync"
            sync(file)

        monkeypatch.setattr(os, "fdatasync", wait)


@pytest.mark.parametrize("synced", ["create", "cancel", "delete"])
def test_the_worker_does_not_wait_for_the_disk_of_a_call(
    synced: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteJobStore(Database(path))
    working, old = create(store, new(1)), create(store, new(2))
    store.finish(old.id, Snapshot(JobState.FAILED, Progress(), 1.0, ended=2.0), 0, b"", None)
    disk = SlowDisk(monkeypatch)
    calls: dict[str, Any] = {
        "create": lambda: create(store, new(3)),
        "cancel": lambda: store.cancel(working.id, running(working, 0)),
        "delete": lambda: store.delete(old.name),
    }
    call = threading.Thread(target=calls[synced])
    call.start()
    assert disk.syncing.wait(PATIENCE_S), "the call does not wait for the disk"
    # All of this goes on meanwhile, here, while the call waits.
    store.advance(working.id, running(working, 0), 0, b"")
    assert store.find(working.name).snapshot.state is JobState.RUNNING
    assert call.is_alive()
    disk.go.set()
    call.join(PATIENCE_S)
    assert not call.is_alive()
    store.close()


def test_what_may_not_be_on_the_disk_is_no_job(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SqliteJobStore(Database(path))
    kept = create(store, new(1))

    def fail(file: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(StorageError, match="Input/output error"):
        store.create(new(2, request_id="x"), anybody, reuse=False)
    assert store.page(None, 10, None) == [kept]
    assert store.by_request("ada", "x") is None
    monkeypatch.undo()
    assert create(store, new(2, request_id="x")).id > kept.id
    store.close()


def test_a_sync_reaches_the_log(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the file that has what was committed, and the name of it."""
    synced: list[str] = []

    def note(file: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{file}"))

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    monkeypatch.setattr(os, "fdatasync", note)
    monkeypatch.setattr(os, "fsync", note)
    database = Database(path)
    for _ in range(2):
        with database.transaction("create", synced=True) as connection:
            connection.execute("INSERT OR REPLACE INTO journal VALUES (1, 0, 1, x'00')")
    with database.transaction("advance", synced=False) as connection:
        connection.execute("DELETE FROM journal")
    assert synced == [f"{path}-wal", str(path.parent), f"{path}-wal"]
    database.close()


# What it cannot do


def error(kind: type[sqlite3.Error], text: str, code: int = 0) -> sqlite3.Error:
    made = kind(text)
    if code:
        made.sqlite_errorcode = code
    return made


IO = sqlite3.SQLITE_IOERR


@pytest.mark.parametrize(
    ("raised", "advice"),
    [
        (error(sqlite3.OperationalError, "locking protocol", sqlite3.SQLITE_PROTOCOL), NEEDS_LOCAL_DISK),
        (error(sqlite3.OperationalError, "locking protocol"), NEEDS_LOCAL_DISK),
        (error(sqlite3.OperationalError, "disk I/O error", IO), NEEDS_LOCAL_DISK),
        (error(sqlite3.OperationalError, "disk I/O error"), NEEDS_LOCAL_DISK),
        *(
            (error(sqlite3.OperationalError, "disk I/O error", IO | part << 8), NEEDS_LOCAL_DISK)
            for part in (8, 9, 14, 15, 18, 19, 20, 21)
        ),
        (error(sqlite3.OperationalError, "unable to open database file", sqlite3.SQLITE_CANTOPEN), "-wal"),
        (error(sqlite3.OperationalError, "unable to open database file"), NEEDS_LOCAL_DISK),
    ],
)
def test_a_filesystem_of_the_wrong_kind_is_named(
    raised: sqlite3.Error, advice: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = as_storage_error(raised)
    assert advice in str(told)
    assert str(raised) in str(told)
    assert not told.damaged

    class Refusing(sqlite3.Connection):
        def execute(self, statement: str, *values: Any) -> Any:
            if "journal_mode" in statement:
                raise raised
            return super().execute(statement, *values)

    connect = sqlite3.connect
    monkeypatch.setattr(
        database_module.sqlite3, "connect", lambda *asked, **how: connect(*asked, **how, factory=Refusing)
    )
    with (
        pytest.raises(StorageError, match="cannot be used now") as caught,
        opened(StorageConfig(path.parent)),
    ):
        pass
    assert advice in str(caught.value)
    assert str(path) in str(caught.value)


def test_other_errors_of_the_disk_have_other_reasons() -> None:
    for part, text in ((3, "disk I/O error"), (0, "database or disk is full")):  # IOERR_WRITE
        code = IO | part << 8 if part else sqlite3.SQLITE_FULL
        assert NEEDS_LOCAL_DISK not in str(as_storage_error(error(sqlite3.OperationalError, text, code)))


def test_a_log_that_cannot_be_had_is_no_silent_change_of_mode(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite answers with another mode where a filesystem has no shared memory."""

    class Otherwise(sqlite3.Connection):
        def execute(self, statement: str, *values: Any) -> Any:
            return super().execute(statement.replace("= WAL", "= DELETE"), *values)

    connect = sqlite3.connect
    monkeypatch.setattr(
        database_module.sqlite3, "connect", lambda *asked, **how: connect(*asked, **how, factory=Otherwise)
    )
    with pytest.raises(StorageError, match="put the data directory onto a local disk"):
        Database(path)


@pytest.mark.parametrize("number", [errno.ENODEV, errno.EINVAL, errno.EACCES, errno.EOPNOTSUPP])
def test_a_directory_without_shared_mappings(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*asked: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(StorageError, match="put the data directory onto a local disk") as caught:
        DataDirectory(tmp_path).__enter__()
    assert os.strerror(number) in str(caught.value)
    monkeypatch.undo()
    with DataDirectory(tmp_path):
        pass  # nobody holds on to it


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOLCK, "put the data directory onto a local disk"),
        (errno.ENOSYS, "put the data directory onto a local disk"),
        (errno.EOPNOTSUPP, "put the data directory onto a local disk"),
        (errno.EWOULDBLOCK, "another server uses"),
        (errno.EACCES, "another server uses"),
    ],
)
def test_a_lock_that_cannot_be_had(
    number: int, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StorageError, match=text):
        DataDirectory(tmp_path).__enter__()


def test_no_room_for_a_look_at_the_disk_is_no_reason_to_refuse_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**where: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with DataDirectory(tmp_path) as directory:
        Database(directory.database).close()


# What it damages


def test_indexes_that_do_not_fit_are_made_again(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(StorageConfig(path.parent)) as database:
        store = SqliteJobStore(database)
        for number in range(5):
            succeed(store, create(store, new(number)))
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        (page,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'jobs_by_user'"
        ).fetchone()
    connection.close()
    data = bytearray(path.read_bytes())
    at = data.index(b"ada", (page - 1) * 4096)
    assert at < page * 4096
    data[at : at + 3] = b"eve"
    path.write_bytes(data)
    with opened(StorageConfig(path.parent)) as database:
        assert "its indexes are made again" in caplog.text
        store = SqliteJobStore(database)
        assert len(store.page("ada", 10, None)) == 5
        assert store.page("eve", 10, None) == []
        assert [record.damage for record in store.page(None, 10, None)] == [""] * 5
    caplog.clear()
    with opened(StorageConfig(path.parent)):
        assert "made again" not in caplog.text


@pytest.mark.parametrize(
    "damage",
    [
        "DROP INDEX jobs_by_log",
        "ALTER TABLE artifacts DROP COLUMN checksum",
        "CREATE TABLE more (x)",
        "ALTER TABLE jobs RENAME COLUMN crash_count TO crash_court",
    ],
)
def test_tables_that_are_not_those_of_this_version_are_refused(damage: str, path: Path) -> None:
    Database(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(damage)
    connection.close()
    with (
        pytest.raises(StorageError, match="its tables are not those of this version") as caught,
        opened(StorageConfig(path.parent)),
    ):
        pass
    assert caught.value.damaged
    assert "restore a backup" in str(caught.value)


def test_a_schema_that_is_no_text(path: Path) -> None:
    Database(path).close()
    data = bytearray(path.read_bytes())
    data[data.index(b"NULL", data.index(b"CREATE TABLE jobs")) + 3] ^= 0x80
    path.write_bytes(data)
    with pytest.raises(StorageError, match="damaged") as caught:
        Database(path)
    assert caught.value.damaged
