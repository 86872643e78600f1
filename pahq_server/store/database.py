"""The database: connections, transactions, and what their errors mean."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pahq_server.core.errors import StorageError
from pahq_server.store.failpoints import Failpoint, nothing
from pahq_server.store.migrations import check, migrate

# How long to wait for another process, such as a command of the administrator.
BUSY_S = 5.0
# Primary result codes after which the file cannot be trusted: trying again is of no use.
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Database:
    """One SQLite file, or memory. Methods may be called from any thread.

    There are two connections for writing: one waits for the disk at every commit, the other leaves that to
    the next checkpoint. Both survive the end of the process at any moment; what only the first has
    committed survives a power failure as well.

    Args:
        path: of the file, which is made where there is none; None to keep everything in memory.
        failpoint: called at named places of every transaction.

    Raises StorageError: the file cannot be opened, is damaged, or comes from a newer version.
    """

    def __init__(self, path: Path | None, failpoint: Failpoint = nothing) -> None:
        self.path, self._failpoint = path, failpoint
        self._writing, self._reading = threading.RLock(), threading.RLock()
        with reported():
            if path is not None:
                path.touch(mode=0o600, exist_ok=True)
            self._synced = self._connect("FULL")
            check(self._synced)  # before anything is written
            self._synced.execute("PRAGMA journal_mode = WAL")
            migrate(self._synced)
            # A database in memory belongs to one connection.
            self._quick = self._synced if path is None else self._connect("NORMAL")
            self._reader = self._synced if path is None else self._connect("NORMAL")
        if path is None:
            self._reading = self._writing

    def _connect(self, synchronous: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            ":memory:" if self.path is None else self.path,
            timeout=BUSY_S,
            isolation_level=None,  # transactions are begun and ended here
            check_same_thread=False,
        )
        connection.row_factory = sqlite3.Row
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    @contextmanager
    def transaction(self, operation: str, *, synced: bool) -> Iterator[sqlite3.Connection]:
        """All statements of the body, or none. Raises StorageError.

        Args:
            operation: name of what is done, for failpoints.
            synced: whether to wait for the disk.
        """
        with self._writing, reported():
            connection = self._synced if synced else self._quick
            self._failpoint(f"{operation}.begin")
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                self._failpoint(f"{operation}.written")
                connection.execute("COMMIT")
            except BaseException:
                # Some errors have rolled back already.
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
            self._failpoint(f"{operation}.committed")

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection to read from; each statement sees one moment. Raises StorageError."""
        with self._reading, reported():
            yield self._reader

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """`reading` where all statements of the body see the same moment. Raises StorageError."""
        with self.reading() as connection:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                # There is nothing to undo; some errors have ended it already.
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")

    def check(self) -> None:
        """Reads the whole file. Raises StorageError where it is damaged."""
        with self.reading() as connection:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise StorageError("the database is damaged", damaged=True)

    def close(self) -> None:
        with self._writing, self._reading, suppress(sqlite3.Error):
            for connection in {self._reader, self._quick, self._synced}:
                connection.close()


@contextmanager
def reported() -> Iterator[None]:
    """Turns errors of SQLite and of files into StorageError."""
    try:
        yield
    except sqlite3.Error as error:
        raise as_storage_error(error) from error
    except OSError as error:
        raise StorageError(f"the database cannot be used: {error.strerror}") from error


def as_storage_error(error: sqlite3.Error) -> StorageError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in DAMAGED:
        return StorageError(f"the database is damaged: {error}", damaged=True)
    return StorageError(f"the database cannot be used now: {error}")
