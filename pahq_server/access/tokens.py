"""API tokens: their form, what is stored of each, and the table in the server's database that holds them."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import sqlite3
from dataclasses import dataclass, replace

from pahq_server.core.context import Caller
from pahq_server.store.checksums import checksum
from pahq_server.store.database import Database

SCOPES = ("user", "admin")
_TEXT = re.compile(r"pahq_([0-9a-f]{16})_([A-Za-z0-9_-]{43})", re.ASCII)
USER_FORM = "up to 63 of a-z, 0-9, '.', '_' and '-', the first a letter or digit"
_USER = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}", re.ASCII)
_COLUMNS = "id, digest, user, scope, created, expires, revoked"
_INSERT = f"INSERT INTO tokens ({_COLUMNS}, checksum) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True)
class Token:
    """What is stored of a token: enough to recognise its text, not enough to use it.

    All times are seconds since the epoch.

    Args:
        id: public part of the text, 16 hexadecimal digits.
        digest: SHA-256 of the whole text. One round is enough: the secret part has 256 random bits, so there
            is nothing to guess.
        user: whose it is.
        scope: "user" or "admin".
        created: when it was created.
        expires: when it ceases to be valid; None for never.
        revoked: when it was revoked; None if it was not.
        damaged: whether the stored row is not what was written. Such a token is never valid.
    """

    id: str
    digest: bytes
    user: str
    scope: str
    created: float
    expires: float | None = None
    revoked: float | None = None
    damaged: bool = False

    @property
    def caller(self) -> Caller:
        """Who calls with this token."""
        return Caller(self.user, self.scope == "admin")

    def valid(self, now: float) -> bool:
        """Whether it lets its user in at the time ``now``."""
        return not self.damaged and self.revoked is None and (self.expires is None or now < self.expires)

    def matches(self, text: str) -> bool:
        """Whether the text is that of this token, in a time that does not tell how nearly it is."""
        return not self.damaged and hmac.compare_digest(self.digest, digest(text))


def new_token(user: str, scope: str, created: float, expires: float | None = None) -> tuple[str, Token]:
    """Makes a token.

    Args:
        user: whose it will be.
        scope: one of `SCOPES`.
        created: seconds since the epoch.
        expires: seconds since the epoch; None for never.

    Returns:
        The text, which is shown once and stored nowhere, and what is stored of it.

    Raises:
        ValueError: the user's name or the scope is not allowed.
    """
    if not is_user(user):
        raise ValueError(f"{user!r} is no user name: {USER_FORM}")
    if scope not in SCOPES:
        raise ValueError(f"{scope!r} is no scope: one of {', '.join(SCOPES)}")
    id = secrets.token_hex(8)
    text = f"pahq_{id}_{secrets.token_urlsafe(32)}"
    return text, Token(id, digest(text), user, scope, created, expires)


def token_id(text: str) -> str | None:
    """Returns the public part of a token's text; None for a text that has not the form of a token."""
    found = _TEXT.fullmatch(text)
    return found[1] if found else None


def digest(text: str) -> bytes:
    """Returns the SHA-256 of a token's text."""
    return hashlib.sha256(text.encode()).digest()


def is_user(name: str) -> bool:
    """Whether a user may have this name. It becomes part of resource names, logs and metrics."""
    return _USER.fullmatch(name) is not None


class TokenTable:
    """The tokens of one server. All methods may be called from any thread, and raise StorageError.

    Args:
        database: database of the server, which may run meanwhile: it reads the table again every second.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> list[Token]:
        """Returns all tokens, oldest first: also those that are revoked, expired or damaged."""
        with self._database.reading() as connection:
            rows = connection.execute(f"SELECT {_COLUMNS}, checksum FROM tokens ORDER BY created, id")
            return [_token(row) for row in rows]

    def by_id(self) -> dict[str, Token]:
        """Returns all tokens by their public parts."""
        return {token.id: token for token in self.all()}

    def add(self, token: Token) -> None:
        """Stores a new token."""
        values = (token.id, token.digest, token.user, token.scope)
        times = (token.created, token.expires, token.revoked)
        with self._database.transaction("token", synced=True) as connection:
            connection.execute(_INSERT, (*values, *times, checksum("tokens", *values, *times)))

    def revoke(self, id: str, now: float) -> bool:
        """Revokes a token; one that is revoked already keeps the time of its first revocation.

        Args:
            id: public part of the token.
            now: seconds since the epoch.

        Returns:
            Whether there is such a token.
        """
        with self._database.transaction("token", synced=True) as connection:
            query = f"SELECT {_COLUMNS}, checksum FROM tokens WHERE id = ?"
            row = connection.execute(query, (id,)).fetchone()
            if row is None:
                return False
            token = _token(row)
            if token.damaged:
                # The row must stay: without any token, the mode "auto" would let everybody in.
                token = Token(id, b"", "damaged", "user", now)
            if token.revoked is None:
                values = (id, token.digest, token.user, token.scope, token.created, token.expires, now)
                connection.execute("DELETE FROM tokens WHERE id = ?", (id,))
                connection.execute(_INSERT, (*values, checksum("tokens", *values)))
            return True


def _token(row: sqlite3.Row) -> Token:
    *values, stored = row
    return replace(Token(*values), damaged=stored != checksum("tokens", *values))
