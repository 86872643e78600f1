"""A copy of the database, made while a server uses it."""

from __future__ import annotations

import os
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from pahq_server.core.errors import InvalidRequestError, StorageError
from pahq_server.store.database import storage_errors
from pahq_server.store.directory import DATABASE, LOCK
from pahq_server.store.migrations import APPLICATION

# The ends of the names of files that SQLite may put beside a file that it writes.
_SIDE_FILES = ("", "-journal", "-wal", "-shm")
# The first bytes of a SQLite file, and where in it the id of the application stands that owns it.
_MAGIC, _APPLICATION_ID = b"SQLite format 3\x00", slice(68, 72)


def back_up(directory: Path, copy: Path) -> None:
    """Copies the database of a data directory as it is at one moment, and checks the copy.

    The copy appears under its name when it is complete, and replaces an earlier copy only then. Where copying
    fails, everything stays as it was.

    Args:
        directory: the data directory; a server may be using it.
        copy: path of the file that the copy becomes. A link is followed.

    Raises:
        InvalidRequestError: the copy cannot go there, because the path leads (also by links) to what the
            server keeps in the data directory, or to something that is not a regular file. Nothing was
            touched.
        StorageError: there is no database, it is damaged, or the copy cannot be written.
    """
    source = directory / DATABASE
    target = _target(directory, copy)
    if not source.is_file():
        raise StorageError(f"there is no database in {str(directory)!r}")
    with _unfinished(target) as unfinished:
        with (
            storage_errors(),
            closing(sqlite3.connect(source)) as reading,
            closing(sqlite3.connect(unfinished)) as writing,
        ):
            # A read transaction fixes one moment for the whole copy: without it, copying would begin again
            # with every write of a server. The write-ahead log lets the server write meanwhile.
            reading.execute("BEGIN")
            reading.execute("SELECT count(*) FROM sqlite_master").fetchone()
            reading.backup(writing)
            # The copy must be one file, without a write-ahead log beside it.
            writing.execute("PRAGMA journal_mode = DELETE")
            (found,) = writing.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise StorageError("the copy is damaged, so the database is", damaged=True)
        with storage_errors():
            os.replace(unfinished, target)
            _sync_directory(target.parent)


def _target(directory: Path, copy: Path) -> Path:
    """Returns the file that a copy becomes, with every link followed. Raises as `back_up` does."""
    if not copy.name:
        raise _refused(copy, "it names a directory; name the file that the copy shall become")
    try:
        target = Path(os.path.realpath(copy))
        parent = target.parent
        if not parent.is_dir():
            raise StorageError(f"the copy's directory {str(parent)!r} cannot be used: it does not exist")
        _check_apart(directory, copy, target)
        if target.exists() and not target.is_file():
            what = "a directory" if target.is_dir() else f"no regular file ({_kind(target)})"
            raise _refused(copy, f"it is {what}; name a file that is not there, or an earlier copy")
    except OSError as error:
        raise StorageError(f"the copy's path {str(copy)!r} cannot be used: {error.strerror}") from error
    except ValueError as error:  # such as a null character
        raise _refused(copy, f"it is no path: {error}") from error
    return target


def _check_apart(directory: Path, copy: Path, target: Path) -> None:
    """Raises InvalidRequestError for a target that is, by whatever path, a file that the server keeps."""
    if not directory.is_dir():
        return
    advice = "a copy there would destroy the database; name a file elsewhere"
    if target.exists() and target.samefile(directory):
        raise _refused(copy, f"it is the data directory itself: {advice}")
    if target.exists():
        for own in directory.iterdir():
            if own.exists() and own.samefile(target) and not _earlier_copy(own):
                raise _refused(copy, f"it is the file {own.name!r} of the data directory: {advice}")
    # SQLite makes and removes some files as it needs them, so names count even where no file is.
    if target.parent.samefile(directory) and (target.name == LOCK or target.name.startswith(DATABASE)):
        raise _refused(copy, f"the name {target.name!r} in the data directory is the server's: {advice}")


def _earlier_copy(path: Path) -> bool:
    """Says whether a file of the data directory is an earlier copy, which may be replaced."""
    if path.name == LOCK or path.name.startswith(DATABASE) or not path.is_file():
        return False
    if path.samefile(path.with_name(DATABASE)):
        return False
    with path.open("rb") as file:
        head = file.read(100)
    return head.startswith(_MAGIC) and head[_APPLICATION_ID] == APPLICATION.to_bytes(4, "big")


def _kind(path: Path) -> str:
    mode = path.stat().st_mode
    kinds = {
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")


def _refused(copy: Path, why: str) -> InvalidRequestError:
    return InvalidRequestError("FILE", f"the copy cannot be made at {str(copy)!r}: {why}")


@contextmanager
def _unfinished(target: Path) -> Iterator[Path]:
    """Makes a new file beside the target, which is removed at the end unless it has become the target."""
    try:
        handle, name = tempfile.mkstemp(".unfinished", f".{target.name[:100]}.", target.parent)
    except OSError as error:
        raise StorageError(
            f"the copy's directory {str(target.parent)!r} cannot be used: {error.strerror}"
        ) from error
    os.close(handle)
    try:
        yield Path(name)
    except StorageError as error:
        raise StorageError(f"no copy was made at {str(target)!r}: {error}", error.damaged) from error
    finally:
        for end in _SIDE_FILES:
            with suppress(OSError):
                os.unlink(name + end)


def _sync_directory(path: Path) -> None:
    """Makes a new directory entry survive a power failure, where the filesystem can."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some filesystems cannot
            os.fsync(handle)
    finally:
        os.close(handle)
