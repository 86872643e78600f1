"""Checksums of rows, by which damage on the disk is noticed when a row is read.

SQLite notices damage to its own structures, but not to the values between them. Therefore rows carry
checksums of their values together with the names of their table and their keys, so that two rows that have
changed places are noticed, too. The code that writes a row makes its checksum from the values that it writes,
never from those on the disk.

The prompts of a job have a checksum of their own, since they are large and rarely read.
"""

from __future__ import annotations

import hashlib
import struct

from pahq_server.core.errors import StorageError

# In bytes. 64 bits are enough to notice damage, which is random: nobody forges rows.
SIZE = 8
Value = None | int | float | str | bytes


def checksum(table: str, *values: Value) -> bytes:
    """Returns the checksum of a row, or of a part of it that is written on its own: `SIZE` bytes.

    Stored databases depend on it, so it never changes.

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
    """Returns a kind and bytes: equal for values that SQLite does not tell apart.

    SQLite keeps 2.0 and -0.0 as the integers 2 and 0. Texts count as bytes, since damage may have made a text
    something that cannot be decoded.
    """
    if value is None:
        return b"n", b""
    if isinstance(value, float) and not value.is_integer():
        return b"f", struct.pack("<d", value)
    if isinstance(value, int | float):
        return b"i", b"%d" % int(value)
    if isinstance(value, str):
        return b"b", value.encode("utf-8", "surrogateescape")
    return b"b", bytes(value)


def damage(what: str) -> StorageError:
    """Returns the error that says which part of the database is not what was written."""
    return StorageError(f"the database is damaged: {what}", damaged=True)


def seal(log: int, first: int, count: int, data: bytes) -> bytes:
    """Returns a run of journal records with its checksum at the end, as it is stored.

    Args:
        log: id of the journal.
        first: number of its first record.
        count: how many records it has.
        data: the records.
    """
    return data + checksum("journal", log, first, count, data)


def unseal(log: int, first: int, count: int, sealed: bytes) -> bytes:
    """Returns the records of a run that `seal` made. Raises StorageError if anything of it was changed."""
    if isinstance(sealed, bytes):
        data, end = sealed[:-SIZE], sealed[-SIZE:]
        if end == checksum("journal", log, first, count, data):
            return data
    raise damage(f"the journal from record {first} on cannot be read")
