"""Reads files of a limited size, and writes files whole or not at all, without replacing devices."""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from pahq_client.errors import InvalidRequest

if sys.platform != "win32":
    import fcntl

PathLike = str | os.PathLike[str]

# The largest file of a circuit or a task. Large graphs give files of some hundred megabytes.
MOST_BYTES = 1 << 30
_MOST_LINKS = 40  # as many as Linux follows
_OPEN_FILES = re.compile(r"/proc/(?:\d+|self|thread-self)/(?:task/\d+/)?fd|/dev/fd")


def read(path: PathLike) -> bytes:
    """The whole content of a file.

    Raises:
        InvalidRequest: the path is none, or the file is larger than `MOST_BYTES`, as ``/dev/zero`` is.
        OSError: it cannot be read.
    """
    name = path_text("path", path)
    with open(name, "rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise InvalidRequest("path", f"{name!r} has more than {MOST_BYTES >> 20} MiB")
    return content


def check_target(field: str, path: PathLike) -> None:
    """Checks, before the work, whether `write` could write to a path. Leaves nothing behind.

    Raises:
        InvalidRequest: it could not; the error says why.
    """
    name = path_text(field, path)
    try:
        _check(name)
    except OSError as error:
        raise InvalidRequest(field, f"cannot write {name!r}: {error.strerror or error}") from None


def same_target(a: PathLike, b: PathLike) -> bool:
    """Whether two paths lead to one regular file, which would be written twice."""
    if _in_place(os.fspath(a)) is not None or _in_place(os.fspath(b)) is not None:
        return False
    return os.path.realpath(a) == os.path.realpath(b)


def write(path: PathLike, data: bytes) -> None:
    """Writes a file.

    A regular file is replaced at once, keeping its permissions, or left as it was: no reader sees half of it.
    Devices, pipes and files that this process has open, such as ``/dev/stdout``, are written to as they are.

    Raises:
        InvalidRequest: the path is none.
        OSError: it cannot be written.
    """
    name = path_text("path", path)
    in_place = _in_place(name)
    if in_place is not None:
        with _opened(in_place) as descriptor:
            _write_all(descriptor, data)
        return
    target = Path(os.path.realpath(name))  # through a link, not over it
    _check_folder(target)
    with _partial(target) as (partial, file):
        _write_all(file.fileno(), data)
        os.fsync(file.fileno())
        file.close()
        os.replace(partial, target)


def text_or_file(text: str, path: PathLike | None) -> str | None:
    """Returns the text if there is no path; else writes it there and returns None.

    Raises:
        InvalidRequest: the path is none, or cannot be written to.
        OSError: it cannot be written.
    """
    if path is None:
        return text
    check_target("path", path)
    write(path, text.encode())
    return None


def path_text(field: str, path: object) -> str:
    """A path as text. Raises InvalidRequest for what can be none."""
    name = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(name, str) or not name:
        raise InvalidRequest(field, f"must be the path of a file, got {name!r}")
    if "\0" in name:
        raise InvalidRequest(field, f"cannot be a path, it contains a NUL character: {name!r}")
    return name


def _check(name: str) -> None:
    in_place = _in_place(name)
    if isinstance(in_place, int):
        if not _takes_writes(in_place):
            raise PermissionError(errno.EACCES, "it is open for reading only")
        return
    if in_place is not None:
        if not os.access(in_place, os.W_OK):
            raise PermissionError(errno.EACCES, "you may not write to it")
        return
    target = Path(os.path.realpath(name))
    _check_folder(target)
    # What is write-protected is so on purpose, although it could be replaced.
    if target.exists() and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, "it is write-protected")
    with _partial(target):  # the only way to know: permissions do not tell of quotas and read-only disks
        pass


def _check_folder(target: Path) -> None:
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"there is no directory {str(target.parent)!r}", str(target))


def _in_place(name: str) -> str | int | None:
    """Where to write without replacing anything: a path, or an open descriptor; None for regular files.

    Raises:
        OSError: there can be no file, or there is one that cannot be written to, such as a directory.
    """
    descriptor = _own_descriptor(name)
    if descriptor is not None:
        return descriptor
    try:
        mode = os.stat(name).st_mode
    except FileNotFoundError:
        if name.endswith(os.sep):
            raise IsADirectoryError(errno.EISDIR, "it is the name of a directory", name) from None
        return None
    if stat.S_ISDIR(mode):
        example = os.path.join(name, "ioi.json")
        detail = f"it is a directory; name a file in it, for example {example!r}"
        raise IsADirectoryError(errno.EISDIR, detail, name)
    if stat.S_ISSOCK(mode):
        raise OSError(errno.ENXIO, "it is a socket", name)
    return None if stat.S_ISREG(mode) else name


def _own_descriptor(name: str) -> int | None:
    """The open file that a path such as /dev/stdout or /dev/fd/5 stands for, following links to it.

    Opened anew, a regular file behind it would be written from its beginning, over what the shell or this
    process has written there.
    """
    path = os.path.abspath(name)
    for _ in range(_MOST_LINKS):
        folder, last = os.path.split(path)
        if last.isascii() and last.isdecimal() and len(last) < 8:
            real = os.path.realpath(folder)
            if folder == "/dev/fd" or (_OPEN_FILES.fullmatch(real) and f"/{os.getpid()}/" in f"{real}/"):
                return int(last)
        if not os.path.islink(path):
            return None
        path = os.path.normpath(os.path.join(folder, os.readlink(path)))
    return None


@contextmanager
def _opened(place: str | int) -> Iterator[int]:
    """A descriptor to write to, for as long as the context lasts."""
    if isinstance(place, str):
        descriptor = os.open(place, os.O_WRONLY | getattr(os, "O_NOCTTY", 0))
    else:
        for stream in (sys.stdout, sys.stderr):  # what was printed before comes before
            if stream is not None:
                stream.flush()
        descriptor = os.dup(place)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _takes_writes(descriptor: int) -> bool:
    """Whether an open file may be written to. Raises OSError if it is not open."""
    os.fstat(descriptor)
    if sys.platform == "win32":
        return True
    return fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY


@contextmanager
def _partial(target: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """A new file beside the target, with its permissions; gone afterwards unless it was moved.

    A target that does not exist yet gets the usual permissions.
    """
    partial = target.with_name(f".pahq-{uuid.uuid4().hex}.tmp")
    there = target.stat() if target.exists() else None
    # Nobody may read a private file's new content while its permissions are not set yet.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    file = open(os.open(partial, flags, 0o600 if there else 0o666), "wb", buffering=0)  # noqa: SIM115
    try:
        if there is not None and sys.platform != "win32":
            with suppress(OSError):  # of another owner: then it becomes this user's
                os.fchown(file.fileno(), there.st_uid, there.st_gid)
            os.fchmod(file.fileno(), stat.S_IMODE(there.st_mode))
        yield partial, file
    finally:
        file.close()
        with suppress(OSError):
            partial.unlink()


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
