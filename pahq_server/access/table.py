"""Where tokens are kept: a table of the server's database."""

from __future__ import annotations

from pahq_server.access.tokens import Token
from pahq_server.store.database import Database

_COLUMNS = "id, digest, user, scope, created, expires, revoked"


class TokenTable:
    """The tokens of one server. Methods may be called from any thread, and raise StorageError.

    Args:
        database: may be used by a server at the same time, which takes notice by itself.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> list[Token]:
        """Oldest first, revoked and expired ones included."""
        with self._database.reading() as connection:
            rows = connection.execute(f"SELECT {_COLUMNS} FROM tokens ORDER BY created, id")
            return [Token(*row) for row in rows]

    def by_id(self) -> dict[str, Token]:
        """`all` of them, by their public parts."""
        return {token.id: token for token in self.all()}

    def add(self, token: Token) -> None:
        values = (token.id, token.digest, token.user, token.scope)
        times = (token.created, token.expires, token.revoked)
        with self._database.transaction("token", synced=True) as connection:
            connection.execute(
                f"INSERT INTO tokens ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", (*values, *times)
            )

    def revoke(self, id: str, now: float) -> bool:
        """Whether there was such a token. One that is revoked already stays so since then."""
        with self._database.transaction("token", synced=True) as connection:
            changed = connection.execute(
                "UPDATE tokens SET revoked = coalesce(revoked, ?) WHERE id = ?", (now, id)
            )
            return changed.rowcount > 0
