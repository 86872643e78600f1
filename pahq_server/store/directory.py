"""The data directory of a server: opens its database, and keeps other users and other servers out."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from pahq_server.core.errors import StorageError
from pahq_server.store.database import NEEDS_LOCAL_DISK, Database, Failpoint, no_failpoint
from pahq_server.store.records import Retention

DATABASE = "pahq.sqlite3"
LOCK = "lock"
# Folder for files of jobs that run.
JOB_FILES = "files"
OWNER_ONLY = 0o700


@dataclass(frozen=True)
class StorageConfig:
    """Where jobs are stored, and for how long.

    Args:
        directory: for the database; None to keep everything in memory.
        retention: how long finished jobs are kept.
        reuse: whether a job takes over the artifact of an equal one of the same user.
        failpoint: called at named places of every transaction; for tests.
    """

    directory: Path | None = None
    retention: Retention = field(default_factory=Retention)
    reuse: bool = True
    failpoint: Failpoint = no_failpoint


@contextmanager
def opened(config: StorageConfig) -> Iterator[Database]:
    """Opens the database, which no other server uses while the context lasts.

    Raises StorageError where the directory cannot be used, or the database is damaged or was written by a
    newer version.
    """
    if config.directory is None:
        database = Database(None, config.failpoint)
        try:
            yield database
        finally:
            database.close()
        return
    with DataDirectory(config.directory) as directory:
        database = _checked(directory.database, config.failpoint)
        try:
            yield database
        finally:
            database.close()


def _checked(path: Path, failpoint: Failpoint) -> Database:
    try:
        database = Database(path, failpoint)
        try:
            database.check()
        except StorageError:
            database.close()
            raise
    except StorageError as error:
        hint = "; restore a backup, or move the file away to begin with an empty one" if error.damaged else ""
        raise StorageError(f"{str(path)!r}: {error}{hint}", error.damaged) from error
    return database


class DataDirectory:
    """Locks a directory for one server while the context lasts, and makes it where there is none.

    Args:
        path: path of the directory.

    Raises (on entry) StorageError where it cannot be made or written, where another server uses it, or where
    its filesystem lacks what SQLite needs.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = -1

    @property
    def database(self) -> Path:
        """Path of the database's file."""
        return self.path / DATABASE

    def __enter__(self) -> Self:
        make(self.path)
        try:
            self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(self.path, error) from error
        try:
            with suppress(OSError):  # such as a full disk: the database may do with what it has
                _check_shared_mappings(self.path)
            # The lock belongs to the open file: the system releases it however the process ends.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except StorageError:
            os.close(self._lock)
            raise
        except OSError as error:
            os.close(self._lock)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise _unusable(self.path, error, f"; {NEEDS_LOCAL_DISK}") from error
            raise StorageError(
                f"another server uses the data directory {str(self.path)!r}: stop it, or give this one a "
                "--data-dir of its own"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._lock)


def make(path: Path) -> None:
    """Makes a directory that only its owner may enter, unless it is there. Raises StorageError."""
    try:
        path.mkdir(mode=OWNER_ONLY, parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(path, error) from error


def _check_shared_mappings(path: Path) -> None:
    """Raises StorageError where processes cannot share memory by mapping a file, as SQLite's log needs."""
    with tempfile.TemporaryFile(dir=path) as file:
        file.truncate(mmap.PAGESIZE)
        try:
            mmap.mmap(file.fileno(), mmap.PAGESIZE, mmap.MAP_SHARED).close()
        except OSError as error:
            raise _unusable(path, error, f"; {NEEDS_LOCAL_DISK}") from error


def _unusable(path: Path, error: OSError, advice: str = "") -> StorageError:
    return StorageError(f"the data directory {str(path)!r} cannot be used: {error.strerror}{advice}")
