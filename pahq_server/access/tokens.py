"""API tokens: what they look like, and what is kept of them."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

from pahq_server.core.context import Caller

SCOPES = ("user", "admin")
_TEXT = re.compile(r"pahq_([0-9a-f]{16})_([A-Za-z0-9_-]{43})", re.ASCII)
USER_FORM = "up to 63 of a-z, 0-9, '.', '_' and '-', the first a letter or digit"
_USER = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}", re.ASCII)


@dataclass(frozen=True)
class Token:
    """What is kept of a token: enough to know it again, not enough to use it. Times: seconds since the epoch.

    Args:
        id: public part, 16 hexadecimal digits.
        digest: SHA-256 of the whole text. One round is enough: the secret part has 256 random bits, so there
            is nothing to guess.
        user: whose it is.
        scope: "user" or "admin".
        created: when.
        expires: from when on it is worth nothing; None for never.
        revoked: when it was revoked; None if it was not.
        damaged: whether it is not what was stored: it lets nobody in then.
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
        return Caller(self.user, self.scope == "admin")

    def valid(self, now: float) -> bool:
        return not self.damaged and self.revoked is None and (self.expires is None or now < self.expires)

    def matches(self, text: str) -> bool:
        """Whether the text is this token, in a time that tells nothing about how nearly it is."""
        return not self.damaged and hmac.compare_digest(self.digest, digest(text))


def new_token(user: str, scope: str, created: float, expires: float | None = None) -> tuple[str, Token]:
    """The text of a new token, which is shown once and kept nowhere, and what is kept of it.

    Raises ValueError for what is no user name or scope.
    """
    if not is_user(user):
        raise ValueError(f"{user!r} is no user name: {USER_FORM}")
    if scope not in SCOPES:
        raise ValueError(f"{scope!r} is no scope: one of {', '.join(SCOPES)}")
    id = secrets.token_hex(8)
    text = f"pahq_{id}_{secrets.token_urlsafe(32)}"
    return text, Token(id, digest(text), user, scope, created, expires)


def token_id(text: str) -> str | None:
    """The public part of what has the form of a token, else None."""
    found = _TEXT.fullmatch(text)
    return found[1] if found else None


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def is_user(name: str) -> bool:
    """Whether this can be a user: part of resource names, a name in logs and metrics."""
    return _USER.fullmatch(name) is not None
