"""The data directory: who may read it, and that one server alone uses it."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from pahq_server.core.errors import StorageError
from pahq_server.store.database import NEEDS_LOCAL_DISK

DATABASE = "pahq.sqlite3"
LOCK = "lock"
OWNER_ONLY = 0o700


class DataDirectory:
    """Locks a directory for one server while the context lasts; makes it where there is none.

    Args:
        path: of the directory.

    Raises (on entry) StorageError: it cannot be made or written, or another server uses it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = -1

    @property
    def database(self) -> Path:
        return self.path / DATABASE

    def __enter__(self) -> Self:
        make(self.path)
        try:
            self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _refusal(self.path, error) from error
        try:
            with suppress(OSError):  # such as a full disk: the database may do with what it has
                _check_mappings(self.path)
            # Held by the open file: the system lets go of it however the process ends.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except StorageError:
            os.close(self._lock)
            raise
        except OSError as error:
            os.close(self._lock)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise _wrong_disk(self.path, error) from error
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
    """Makes the directory, for its owner alone. Raises StorageError."""
    try:
        path.mkdir(mode=OWNER_ONLY, parents=True, exist_ok=True)
    except OSError as error:
        raise _refusal(path, error) from error


def _check_mappings(path: Path) -> None:
    """Raises StorageError where processes cannot share memory by a file, as SQLite lets them."""
    with tempfile.TemporaryFile(dir=path) as file:
        file.truncate(mmap.PAGESIZE)
        try:
            mmap.mmap(file.fileno(), mmap.PAGESIZE, mmap.MAP_SHARED).close()
        except OSError as error:
            raise _wrong_disk(path, error) from error


def _wrong_disk(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"the data directory {str(path)!r} cannot be used: {error.strerror}; {NEEDS_LOCAL_DISK}"
    )


def _refusal(path: Path, error: OSError) -> StorageError:
    return StorageError(f"the data directory {str(path)!r} cannot be used: {error.strerror}")
