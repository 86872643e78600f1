"""The file: its schema, who may read it, and what its errors mean."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pahq_server.core.errors import StorageError
from pahq_server.store import migrations
from pahq_server.store.database import Database, as_storage_error
from pahq_server.store.directory import DATABASE, DataDirectory, StorageConfig, opened


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / DATABASE


def schema(path: Path) -> tuple[int, set[str]]:
    """Version, and names of tables."""
    with sqlite3.connect(path) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        tables = {
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        }
    connection.close()
    return version, tables


def test_a_new_file_has_the_present_schema_and_a_second_start_changes_nothing(path: Path) -> None:
    Database(path).close()
    version, tables = schema(path)
    assert version == len(migrations.scripts())
    assert tables >= {"jobs", "journal", "artifacts"}
    before = path.read_bytes()
    Database(path).close()
    assert path.read_bytes() == before


def test_a_migration_is_done_as_a_whole_or_not_at_all(path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    with pytest.raises(sqlite3.OperationalError):
        migrations._run(connection, "CREATE TABLE one (x);\nCREATE TABLE one (x);\n", 1)
    connection.close()
    assert schema(path) == (0, set())


def test_a_file_of_a_newer_version_is_refused_and_left_alone(path: Path) -> None:
    Database(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 1000")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(
        StorageError, match=r"schema 1000, but .* knows \d+ at most: it was written by a newer"
    ):
        Database(path)
    assert path.read_bytes() == before


def test_a_file_of_another_program_is_refused(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE recipes (x)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StorageError, match="belongs to another program"):
        Database(path)
    assert path.read_bytes() == before
    path.write_text("not a database, but long enough to look at " * 100)
    with pytest.raises(StorageError, match="damaged"):
        Database(path)


def test_only_the_owner_may_look(tmp_path: Path) -> None:
    directory = tmp_path / "some" / "where"
    with opened(StorageConfig(directory)):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        files = list(directory.iterdir())
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
        assert len(files) > 2


def test_one_server_at_a_time(tmp_path: Path) -> None:
    with (
        DataDirectory(tmp_path),
        pytest.raises(StorageError, match="another server uses"),
        DataDirectory(tmp_path),
    ):
        pass
    with DataDirectory(tmp_path):
        pass  # the lock is gone with its holder


def test_the_lock_goes_with_the_process(tmp_path: Path) -> None:
    code = """if True:
        import os, pathlib, signal, sys
        from pahq_server.store.directory import DataDirectory
        DataDirectory(pathlib.Path(sys.argv[1])).__enter__()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    with DataDirectory(tmp_path):
        pass


@pytest.mark.parametrize("where", ["/proc/pahq", "/dev/null/pahq", "/dev/null"])
def test_a_directory_that_cannot_be(where: str) -> None:
    with pytest.raises(StorageError, match="cannot be used"), DataDirectory(Path(where)):
        pass


def test_damage_is_found_at_the_start(path: Path) -> None:
    database = Database(path)
    with database.transaction("create", synced=True) as connection:
        connection.executemany(
            "INSERT INTO journal VALUES (?, 0, 1, ?)", [(n, b"x" * 500) for n in range(500)]
        )
    database.close()
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2 // 4096 * 4096)
        file.write(b"\xff" * 4096)
    with pytest.raises(StorageError, match=r"damaged.*restore a backup") as caught:
        opened(StorageConfig(path.parent)).__enter__()
    assert caught.value.damaged
    with DataDirectory(path.parent):
        pass  # nobody holds on to it


def test_a_full_disk_is_no_damage_and_undoes_the_whole_transaction(path: Path) -> None:
    database = Database(path)
    for connection in (database._synced, database._quick):
        connection.execute("PRAGMA max_page_count = 40")
    for synced in (True, False):
        with pytest.raises(StorageError, match="full") as caught:
            _write_much(database, synced)
        assert not caught.value.damaged
        with database.reading() as reader:
            assert reader.execute("SELECT count(*) FROM journal").fetchone()[0] == 0
    with database.transaction("create", synced=True) as it:
        it.execute("INSERT INTO journal VALUES (1, 0, 1, x'00')")
    database.close()


def _write_much(database: Database, synced: bool) -> None:
    with database.transaction("create", synced=synced) as connection:
        for number in range(1000):
            connection.execute("INSERT INTO journal VALUES (?, 0, 1, ?)", (number, b"x" * 4000))


@pytest.mark.parametrize(
    ("code", "damaged"),
    [
        (sqlite3.SQLITE_CORRUPT, True),
        (sqlite3.SQLITE_CORRUPT_INDEX, True),
        (sqlite3.SQLITE_NOTADB, True),
        (sqlite3.SQLITE_FULL, False),
        (sqlite3.SQLITE_IOERR_WRITE, False),
        (sqlite3.SQLITE_READONLY, False),
        (sqlite3.SQLITE_BUSY, False),
    ],
)
def test_what_errors_mean(code: int, damaged: bool) -> None:
    error = sqlite3.DatabaseError("the text of SQLite")
    error.sqlite_errorcode = code
    assert as_storage_error(error).damaged is damaged
    assert "the text of SQLite" in str(as_storage_error(error))


def test_readers_do_not_wait_for_a_writer(path: Path) -> None:
    database = Database(path)
    seen = []

    def read() -> None:
        with database.reading() as reader:
            seen.append(reader.execute("SELECT count(*) FROM journal").fetchone()[0])

    with database.transaction("create", synced=True) as connection:
        connection.execute("INSERT INTO journal VALUES (1, 0, 1, x'00')")
        thread = threading.Thread(target=read)
        thread.start()
        thread.join(30)
        assert seen == [0]
    read()
    assert seen == [0, 1]
    database.close()


@pytest.mark.parametrize(("together", "expected"), [("snapshot", [0, 0]), ("reading", [0, 1])])
def test_what_is_read_together_is_of_one_moment(path: Path, together: str, expected: list[int]) -> None:
    database, seen = Database(path), list[int]()
    with getattr(database, together)() as reader:
        for _ in range(2):
            seen.append(reader.execute("SELECT count(*) FROM journal").fetchone()[0])
            with database.transaction("create", synced=True) as connection:
                connection.execute("INSERT INTO journal VALUES (?, 0, 1, x'00')", (len(seen),))
    assert seen == expected
    database.close()
