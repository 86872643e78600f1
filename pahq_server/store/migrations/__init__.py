"""The schema of the database: numbered scripts beside this file, each run once, in order.

The number of the last one that ran is the file's ``user_version``. A script is never changed once it is
released; a later version gets a script of its own. Conversions that SQL cannot express are functions of
modules beside the scripts, see `_CONVERSIONS`.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from importlib import resources

from pahq_server.core.errors import StorageError
from pahq_server.store.checksums import checksum
from pahq_server.store.migrations import any_method

# Marks the file as one of this program ("PAHQ").
APPLICATION = 0x50414851
_NAME = re.compile(r"(\d{4})_\w+\.sql")

# Conversions of the rows, by the number of the script after which they run, in the same transaction.
_CONVERSIONS: dict[int, Callable[[sqlite3.Connection], None]] = {4: any_method.convert}


def scripts() -> list[str]:
    """Returns the scripts in order; the first one leads to version 1."""
    files = {file.name: file for file in resources.files(__name__).iterdir() if _NAME.fullmatch(file.name)}
    numbers = [int(name[:4]) for name in sorted(files)]
    assert numbers == list(range(1, len(files) + 1)), f"migrations are not numbered from 1 on: {numbers}"
    return [files[name].read_text("utf-8") for name in sorted(files)]


def migrate(connection: sqlite3.Connection, to: int | None = None) -> None:
    """Brings a database that was checked to a version of the schema. Raises sqlite3.Error.

    Args:
        connection: a connection to the database.
        to: the version; None for the newest one.
    """
    register(connection)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    for number, script in enumerate(scripts()[version:to], start=version + 1):
        _run(connection, script, number)


def register(connection: sqlite3.Connection) -> None:
    """Makes the functions known to SQL that the script of version 3 calls."""
    connection.create_function("row_checksum", -1, checksum, deterministic=True)
    connection.create_function("sealed_run", 3, _sealed_verdicts, deterministic=True)


def _sealed_verdicts(log: int, first: int, data: bytes) -> bytes:
    """A run of verdicts with its checksum, as version 3 stored it."""
    return bytes(data) + checksum("verdicts", log, first, bytes(data))


def shape(connection: sqlite3.Connection) -> set[tuple[object, ...]]:
    """Returns every column of every table and index. It does not depend on the version of SQLite."""
    tables = connection.execute(
        'SELECT m.name, c.name, c.type, c."notnull", c.pk '
        "FROM sqlite_master AS m, pragma_table_info(m.name) AS c WHERE m.type = 'table'"
    )
    indexes = connection.execute(
        'SELECT m.tbl_name, m.name, c.seqno, c.cid, c."desc", c.key '
        "FROM sqlite_master AS m, pragma_index_xinfo(m.name) AS c WHERE m.type = 'index'"
    )
    return {tuple(row) for row in (*tables, *indexes)}


def check(connection: sqlite3.Connection) -> None:
    """Raises StorageError for a file of a newer version or of another program, and sqlite3.Error."""
    newest = len(scripts())
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != APPLICATION and tables:
        raise StorageError("the database belongs to another program")
    if version > newest:
        raise StorageError(
            f"the database has schema {version}, but this version of pahq-server knows {newest} at most: "
            "it was written by a newer one, so start that, or restore a backup"
        )


def _run(connection: sqlite3.Connection, script: str, number: int) -> None:
    """Runs one script and its conversion, as a whole or not at all."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Another process may have come first.
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version < number:
            for statement in _statements(script):
                connection.execute(statement)
            if number in _CONVERSIONS:
                _CONVERSIONS[number](connection)
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {number}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _statements(script: str) -> Iterator[str]:
    """Yields the statements one by one, since ``executescript`` would commit in between."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    assert not statement.strip(), "the script ends within a statement"
