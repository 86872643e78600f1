"""Opening what is kept, for as long as a server runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pahq_server.core.errors import StorageError
from pahq_server.store.database import Database
from pahq_server.store.directory import DataDirectory
from pahq_server.store.failpoints import Failpoint, nothing
from pahq_server.store.records import Retention


@dataclass(frozen=True)
class StorageConfig:
    """What is kept, and where.

    Args:
        directory: for the database; None to keep everything in memory.
        retention: of finished jobs.
        reuse: whether a job takes over the result of an equal one of the same user.
        failpoint: called at named places of every transaction; for tests.
    """

    directory: Path | None = None
    retention: Retention = field(default_factory=Retention)
    reuse: bool = True
    failpoint: Failpoint = nothing


@contextmanager
def opened(config: StorageConfig) -> Iterator[Database]:
    """The database, which no other server uses while the context lasts.

    Raises StorageError where the directory cannot be used, or the database is damaged or of a newer version.
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
