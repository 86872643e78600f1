"""Where tokens are kept: a table of the server's database."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

from pahq_server.access.tokens import Token
from pahq_server.store.checksums import checksum
from pahq_server.store.database import Database

_COLUMNS = "id, digest, user, scope, created, expires, revoked"
_INSERT = f"INSERT INTO tokens ({_COLUMNS}, checksum) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"


class TokenTable:
    """The tokens of one server. Methods may be called from any thread, and raise StorageError.

    Args:
        database: may be used by a server at the same time, which takes notice by itself.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> list[Token]:
        """Oldest first; revoked, expired and damaged ones included."""
        with self._database.reading() as connection:
            rows = connection.execute(f"SELECT {_COLUMNS}, checksum FROM tokens ORDER BY created, id")
            return [_token(row) for row in rows]

    def by_id(self) -> dict[str, Token]:
        """`all` of them, by their public parts."""
        return {token.id: token for token in self.all()}

    def add(self, token: Token) -> None:
        values = (token.id, token.digest, token.user, token.scope)
        times = (token.created, token.expires, token.revoked)
        with self._database.transaction("token", synced=True) as connection:
            connection.execute(_INSERT, (*values, *times, checksum("tokens", *values, *times)))

    def revoke(self, id: str, now: float) -> bool:
        """Whether there was such a token. One that is revoked already stays so since then."""
        with self._database.transaction("token", synced=True) as connection:
            query = f"SELECT {_COLUMNS}, checksum FROM tokens WHERE id = ?"
            row = connection.execute(query, (id,)).fetchone()
            if row is None:
                return False
            token = _token(row)
            if token.damaged:
                # It stays, as one that lets nobody in: without any token, everybody would be let in.
                token = Token(id, b"", "damaged", "user", now)
            if token.revoked is None:
                values = (id, token.digest, token.user, token.scope, token.created, token.expires, now)
                connection.execute("DELETE FROM tokens WHERE id = ?", (id,))
                connection.execute(_INSERT, (*values, checksum("tokens", *values)))
            return True


def _token(row: sqlite3.Row) -> Token:
    *values, found = row
    return replace(Token(*values), damaged=found != checksum("tokens", *values))
