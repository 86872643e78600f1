"""A copy of the database, made while a server uses it."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from pahq_server.core.errors import StorageError
from pahq_server.store.database import reported
from pahq_server.store.directory import DATABASE


def back_up(directory: Path, copy: Path) -> None:
    """Copies the database of a data directory as it is at one moment, and checks the copy.

    The copy appears under its name when it is complete; one that was there before is replaced then.

    Raises StorageError: there is no database, it is damaged, or the copy cannot be written.
    """
    source = directory / DATABASE
    if not source.is_file():
        raise StorageError(f"there is no database in {str(directory)!r}")
    unfinished = copy.with_name(f"{copy.name}.unfinished")
    with reported():
        unfinished.unlink(missing_ok=True)
        unfinished.touch(mode=0o600)
        with closing(sqlite3.connect(source)) as reading, closing(sqlite3.connect(unfinished)) as writing:
            # One moment for the whole copy: else it would begin again with every write of a server. The
            # write-ahead log lets that go on meanwhile.
            reading.execute("BEGIN")
            reading.execute("SELECT count(*) FROM sqlite_master").fetchone()
            reading.backup(writing)
            # The copy is one file: without a log of its own beside it.
            writing.execute("PRAGMA journal_mode = DELETE")
            (found,) = writing.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise StorageError("the copy is damaged, so the database is", damaged=True)
        os.replace(unfinished, copy)
