"""The schema of the database: numbered scripts beside this file, each run once, in order.

The number of the last one that ran is the file's ``user_version``. A script is never changed once it is
released; what a later version needs goes into a script of its own.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from importlib import resources

from pahq_server.core.errors import StorageError
from pahq_server.store import checksums

# Marks the file as ours ("PAHQ").
APPLICATION = 0x50414851
_NAME = re.compile(r"(\d{4})_\w+\.sql")


def scripts() -> list[str]:
    """The scripts in order; the first one leads to version 1."""
    files = {file.name: file for file in resources.files(__name__).iterdir() if _NAME.fullmatch(file.name)}
    numbers = [int(name[:4]) for name in sorted(files)]
    assert numbers == list(range(1, len(files) + 1)), f"migrations are not numbered from 1 on: {numbers}"
    return [files[name].read_text("utf-8") for name in sorted(files)]


def migrate(connection: sqlite3.Connection) -> None:
    """Brings a database that was checked to the present schema. Raises sqlite3.Error."""
    steps = scripts()
    checksums.register(connection)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    for number, script in enumerate(steps[version:], start=version + 1):
        _run(connection, script, number)


def shape(connection: sqlite3.Connection) -> set[tuple[object, ...]]:
    """Every column of every table and index: what a script makes, whatever version of SQLite runs it."""
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
    """Raises StorageError for a file of a newer version or of another program; sqlite3.Error."""
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
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Another process may have come first.
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version < number:
            for statement in _statements(script):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {number}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _statements(script: str) -> Iterator[str]:
    """The statements one by one: ``executescript`` would commit in between."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    assert not statement.strip(), "the script ends within a statement"
