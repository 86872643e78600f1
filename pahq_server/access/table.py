"""Where tokens are kept: one table of a SQLite database."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from pahq_server.access.tokens import Token

SCHEMA = """
CREATE TABLE tokens (
    id TEXT PRIMARY KEY,
    digest BLOB NOT NULL,
    user TEXT NOT NULL,
    scope TEXT NOT NULL CHECK (scope IN ('user', 'admin')),
    created REAL NOT NULL,
    expires REAL,
    revoked REAL
) STRICT
"""
_COLUMNS = "id, digest, user, scope, created, expires, revoked"

# Opens a connection for the time of one operation.
Connect = Callable[[], AbstractContextManager[sqlite3.Connection]]


class TokenTable:
    """The tokens of one server. Every operation opens the database anew: they are rare.

    Methods raise sqlite3.Error where the database cannot be used.

    Args:
        connect: a connection to a database that has the table; it is closed by whoever made it.
    """

    def __init__(self, connect: Connect) -> None:
        self._connect = connect

    def all(self) -> list[Token]:
        """Oldest first, revoked and expired ones included."""
        with self._connect() as database:
            rows = database.execute(f"SELECT {_COLUMNS} FROM tokens ORDER BY created, id")
            return [Token(*row) for row in rows]

    def add(self, token: Token) -> None:
        values = (
            token.id,
            token.digest,
            token.user,
            token.scope,
            token.created,
            token.expires,
            token.revoked,
        )
        with self._connect() as database, database:
            database.execute(f"INSERT INTO tokens ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", values)

    def revoke(self, id: str, now: float) -> bool:
        """Whether there was such a token to revoke. One that is revoked already stays so since then."""
        with self._connect() as database, database:
            changed = database.execute(
                "UPDATE tokens SET revoked = coalesce(revoked, ?) WHERE id = ?", (now, id)
            )
            return changed.rowcount > 0


def connect_to(path: Path) -> Connect:
    """How to open an existing database. It is never created: the store does that, with all its tables."""

    @contextmanager
    def connect() -> Iterator[sqlite3.Connection]:
        uri = f"file:{quote(str(path))}?mode=rw"
        with closing(sqlite3.connect(uri, timeout=5.0, uri=True)) as database:
            yield database

    return connect
