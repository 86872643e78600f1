"""The SQLite database: connections, transactions, and the meaning of its errors."""

from __future__ import annotations

import errno
import logging
import os
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import product
from pathlib import Path

from pahq_server.core.errors import StorageError
from pahq_server.store.migrations import check, migrate, shape

logger = logging.getLogger(__name__)

# How long to wait for another process that writes, such as a command of the administrator.
BUSY_S = 5.0
NEEDS_LOCAL_DISK = (
    "SQLite needs file locks and shared memory mappings, which some filesystems lack (network drives among "
    "them): put the data directory onto a local disk"
)

# Primary result codes of SQLite after which the file cannot be trusted: trying again is of no use.
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
# Extended result codes where the filesystem has no locks, or no memory that processes share. They are written
# out, since some versions of Python's module do not name them.
_NO_LOCKS = {
    sqlite3.SQLITE_PROTOCOL,
    *(10 | part << 8 for part in (8, 9, 14, 15)),  # IOERR_UNLOCK, _RDLOCK, _CHECKRESERVEDLOCK, _LOCK
    *(10 | part << 8 for part in (18, 19, 20, 21)),  # IOERR_SHMOPEN, _SHMSIZE, _SHMLOCK, _SHMMAP
}
# The same problem as errno values of the system.
_NO_LOCKS_ERRNO = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENODEV)
# What SQLite says about a statement that does not fit the tables.
_UNFIT = re.compile("unknown function|no such |table .* has no column|malformed")
# What `PRAGMA integrity_check` says of an index that does not fit its table. The table has all the data, so
# the index can be made again.
_INDEX_PROBLEM = re.compile(
    r"row \S+ missing from index .*|wrong # of entries in index .*|row \S+ values differ from index .*"
    r"|non-unique entry in index .*|rowid not at end-of-record for row \S+ of index .*"
)
# What it says of a single row whose values do not fit its columns. Such a row has a wrong checksum, which is
# found when the row is read.
_ROW_PROBLEM = re.compile(r"(NULL|TEXT|NUMERIC|BLOB|non-\w+) value in .*|CHECK constraint failed in .*")


# Called with the name of a place in a transaction when it is reached. Tests make persistence fail there, or
# let the process die.
Failpoint = Callable[[str], None]

# Of every transaction on jobs: before it begins, before it is committed, and after that.
FAILPOINTS = tuple(
    f"{operation}.{stage}"
    for operation, stage in product(
        ("create", "advance", "finish", "cancel", "delete", "prune"), ("begin", "written", "committed")
    )
)


def no_failpoint(name: str) -> None:
    """The failpoint of a server: goes on."""


class Database:
    """One SQLite file, or a database in memory. Methods may be called from any thread.

    Every committed transaction survives the death of the process. A ``synced`` transaction also survives a
    power failure once its context has ended: the log is written to the disk after the commit, so that other
    transactions need not wait for the disk.

    Args:
        path: path of the file, which is made where there is none; None to keep everything in memory.
        failpoint: called at the places of `FAILPOINTS`.

    Raises StorageError where the file cannot be opened, is damaged, was written by a newer version, or lies
    on a filesystem on which SQLite cannot work.
    """

    def __init__(self, path: Path | None, failpoint: Failpoint = no_failpoint) -> None:
        self.path, self._failpoint = path, failpoint
        self._writing, self._reading = threading.RLock(), threading.RLock()
        self._log_inode = -1  # of the log whose directory entry is known to be on the disk
        with storage_errors():
            if path is not None:
                path.touch(mode=0o600, exist_ok=True)
            self._synced = self._connect("FULL")  # for migrations
            try:
                check(self._synced)  # before anything is written
                self._use_write_ahead_log()
                migrate(self._synced)
            except BaseException:
                self._synced.close()
                raise
            # A database in memory belongs to one connection, which then does everything.
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
        # Damage may have made a text undecodable: its row must be read to say so, and others all the same.
        connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA cell_size_check = ON")
        return connection

    def _use_write_ahead_log(self) -> None:
        """Lets readers and a writer work at the same time. Raises StorageError where that is impossible."""
        (mode,) = self._synced.execute("PRAGMA journal_mode = WAL").fetchone()
        if self.path is not None and mode != "wal":
            raise StorageError(f"the database cannot have a write-ahead log here: {NEEDS_LOCAL_DISK}")

    @contextmanager
    def transaction(self, operation: str, *, synced: bool) -> Iterator[sqlite3.Connection]:
        """Commits all statements of the body, or none of them where the body raises. Raises StorageError.

        Args:
            operation: name of what is done, for failpoints.
            synced: whether to wait until it is on the disk.
        """
        with self._writing, storage_errors():
            connection = self._quick
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
        with storage_errors():
            if synced:
                self._sync_log()
            self._failpoint(f"{operation}.committed")

    def _sync_log(self) -> None:
        """Waits until everything that was committed is on the disk.

        It is in the log, or in the database's file: SQLite empties the log only when it has written and
        synced the file.
        """
        if self.path is None:
            return
        log = os.open(f"{self.path}-wal", os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fdatasync(log)
            inode = os.fstat(log).st_ino
        finally:
            os.close(log)
        if inode != self._log_inode:  # a new file: its directory entry must be on the disk, too
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_CLOEXEC)
            try:
                with suppress(OSError):  # some filesystems cannot
                    os.fsync(folder)
            finally:
                os.close(folder)
            self._log_inode = inode

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Gives a connection to read from; each statement sees one moment. Raises StorageError."""
        with self._reading, storage_errors():
            yield self._reader

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """Gives a connection on which all statements of the body see the same moment. Raises StorageError."""
        with self.reading() as connection:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                # There is nothing to undo; some errors have ended it already.
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")

    def check(self) -> None:
        """Reads the whole file, and makes indexes again that do not fit their tables.

        Damage to single rows is left to whoever reads them and knows their checksums. Raises StorageError
        where a table itself is damaged.
        """
        problems = self._problems()
        if any(_INDEX_PROBLEM.fullmatch(problem) for problem in problems):
            logger.error("the database is damaged, and its indexes are made again: %s", "; ".join(problems))
            with self.transaction("reindex", synced=True) as connection:
                connection.execute("REINDEX")
            problems = self._problems()
        if problems:
            raise StorageError(f"the database is damaged: {problems[0]}", damaged=True)

    def _problems(self) -> list[str]:
        """Lists what is wrong with the file, except for single rows."""
        with self.reading() as connection:
            found = [text for (text,) in connection.execute("PRAGMA integrity_check")]
            there = shape(connection)
        with storage_errors(), closing(sqlite3.connect(":memory:", isolation_level=None)) as new:
            migrate(new)
            if there != shape(new):
                found.append("its tables are not those of this version")
        return [text for text in found if text != "ok" and not _ROW_PROBLEM.fullmatch(text)]

    def close(self) -> None:
        """Closes the connections."""
        with self._writing, self._reading, suppress(sqlite3.Error):
            for connection in {self._reader, self._quick, self._synced}:
                connection.close()


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turns errors of SQLite and of files into StorageError."""
    try:
        yield
    except sqlite3.Error as error:
        raise as_storage_error(error) from error
    except UnicodeDecodeError as error:  # SQLite's message quotes a damaged schema
        raise StorageError("the database is damaged: its schema cannot be read", damaged=True) from error
    except OSError as error:
        advice = f": {NEEDS_LOCAL_DISK}" if error.errno in _NO_LOCKS_ERRNO else ""
        raise StorageError(f"the database cannot be used: {error.strerror}{advice}") from error


def as_storage_error(error: sqlite3.Error) -> StorageError:
    """Says what an error of SQLite means: whether the file is damaged, and if not, what to do."""
    extended, text = getattr(error, "sqlite_errorcode", 0), str(error)
    code = extended & 0xFF
    # The statements are right, so tables that they do not fit are not those that the migrations made.
    unfit = code == sqlite3.SQLITE_ERROR and _UNFIT.match(text)
    if code in _DAMAGED or unfit:
        return StorageError(f"the database is damaged: {text}", damaged=True)
    detail = f"the database cannot be used now: {text}"
    if extended in _NO_LOCKS or "locking protocol" in text:
        detail += f"; {NEEDS_LOCAL_DISK}"
    elif extended in (0, sqlite3.SQLITE_IOERR) and "disk I/O error" in text:
        detail += f"; the disk fails, or it is of the wrong kind. {NEEDS_LOCAL_DISK}"
    elif code == sqlite3.SQLITE_CANTOPEN or "unable to open database file" in text:
        detail += (
            "; its directory must be there, and the server must be allowed to write to it and to the files "
            f"{'-wal'!r} and {'-shm'!r} beside the database. {NEEDS_LOCAL_DISK}"
        )
    return StorageError(detail)
