"""Checksums of rows: what was damaged on the disk is found when it is read, and never taken for what it was.

SQLite notices damage to its own structures, not to the values between them. So every row that says something
carries a checksum of all of it, together with the names of its table and its keys: a row that has changed
places with another one shows, too. They are made by whoever writes a row, from what it meant to write, and
never from what is on the disk (but once, by the migration that introduced them).

Prompts have the SHA-256 that comes with a job (`NewJob.payload`): they are large, and read only to be used.
"""

from __future__ import annotations

import hashlib
import sqlite3
import struct

from pahq_server.core.errors import StorageError

# 64 bits: that damage goes unnoticed by chance is out of the question, and nobody forges rows.
SIZE = 8
Value = None | int | float | str | bytes


def checksum(table: str, *values: Value) -> bytes:
    """Of a row, or of a part of it that is written on its own.

    Args:
        table: name of the table, or of the part.
        values: the keys and all other columns, in an order that never changes.
    """
    digest = hashlib.blake2b(digest_size=SIZE)
    for value in (table, *values):
        kind, data = _encoded(value)
        digest.update(struct.pack("<cQ", kind, len(data)))
        digest.update(data)
    return digest.digest()


def _encoded(value: Value) -> tuple[bytes, bytes]:
    """Equal for values that SQLite does not tell apart: it keeps 2.0 and -0.0 as the integers 2 and 0.

    Texts are bytes here: the migration cannot hand over as text what is none.
    """
    if value is None:
        return b"n", b""
    if isinstance(value, float) and not value.is_integer():
        return b"f", struct.pack("<d", value)
    if isinstance(value, int | float):
        return b"i", b"%d" % int(value)
    if isinstance(value, str):
        # What was no text any more when it was read must be encoded as well, if only to be found out.
        return b"b", value.encode("utf-8", "surrogateescape")
    return b"b", bytes(value)


def damage(what: str) -> StorageError:
    """The error that says what is not what was written."""
    return StorageError(f"the database is damaged: {what}", damaged=True)


def seal(log: int, first: int, data: bytes) -> bytes:
    """A run of verdicts with its checksum behind it.

    Args:
        log: whose run it is.
        first: number of its first verdict.
        data: the verdicts.
    """
    return bytes(data) + checksum("verdicts", log, first, bytes(data))


def unseal(log: int, first: int, sealed: bytes) -> bytes:
    """The run that was sealed. Raises StorageError where it is not what it was."""
    data, end = sealed[:-SIZE], sealed[-SIZE:]
    if end != checksum("verdicts", log, first, data):
        raise damage(f"the verdicts from number {first} on cannot be read")
    return data


def register(connection: sqlite3.Connection) -> None:
    """Makes `checksum` and `seal` known to SQL, for the migration."""
    connection.create_function("row_checksum", -1, checksum, deterministic=True)
    connection.create_function("sealed_run", 3, seal, deterministic=True)
