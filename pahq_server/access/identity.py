"""Who makes a call: found from its token, or from the certificate of its connection."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pahq_server.access.table import TokenTable
from pahq_server.access.tokens import Token, is_user, token_id
from pahq_server.core.caller import Caller
from pahq_server.core.errors import ServerError, StorageError, UnauthenticatedError

logger = logging.getLogger(__name__)

# A token that was revoked or created is noticed after so many seconds.
REFRESH_S = 1.0


@dataclass(frozen=True)
class Credentials:
    """What a call shows.

    Args:
        authorization: values of the header of that name; one is expected.
        common_names: of the client's certificate, which the connection has verified; empty without one.
        host: where it comes from; never the name of a user.
    """

    authorization: Sequence[str] = ()
    common_names: Sequence[str] = ()
    host: str = ""


class Authenticator(Protocol):
    """Finds out who makes a call. Used from one thread."""

    def identify(self, credentials: Credentials) -> Caller:
        """Raises UnauthenticatedError, always with the same text."""


class Anyone:
    """Takes every call for the local user's, who may do everything."""

    def identify(self, credentials: Credentials) -> Caller:
        return Caller(admin=True)


class TokenHolders:
    """Knows callers by their tokens.

    Args:
        table: of tokens; read again after `REFRESH_S` at the latest.
        otherwise: who callers are while no token was ever created; None to refuse them.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        table: TokenTable,
        otherwise: Authenticator | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._table, self._otherwise, self._clock = table, otherwise, clock
        self._tokens: dict[str, Token] = {}
        self._fresh_until = float("-inf")

    def identify(self, credentials: Credentials) -> Caller:
        now = self._clock()
        if not self._fresh_until - REFRESH_S <= now < self._fresh_until:  # also when the clock was set back
            self._read(now)
        if not self._tokens and self._otherwise is not None:
            return self._otherwise.identify(credentials)
        text = _bearer(credentials.authorization)
        token = self._tokens.get(token_id(text) or "")
        if token is None or not token.matches(text) or not token.valid(now):
            raise refusal()
        return token.caller

    def _read(self, now: float) -> None:
        try:
            self._tokens = {token.id: token for token in self._table.all()}
        except StorageError as error:
            # What was true before may not be any more: nobody comes in.
            logger.error("tokens cannot be read: %s", error)
            raise ServerError("the server cannot check tokens at present") from None
        self._fresh_until = now + REFRESH_S


class CertificateHolders:
    """Knows callers by the common name of their certificates.

    Args:
        admins: users with admin rights.
    """

    def __init__(self, admins: Sequence[str] = ()) -> None:
        self._admins = frozenset(admins)

    def identify(self, credentials: Credentials) -> Caller:
        if len(credentials.common_names) != 1 or not is_user(credentials.common_names[0]):
            raise refusal()
        user = credentials.common_names[0]
        return Caller(user, user in self._admins)


def refusal() -> UnauthenticatedError:
    return UnauthenticatedError("the call needs valid credentials: a token, or a certificate of its own")


def _bearer(authorization: Sequence[str]) -> str:
    if len(authorization) != 1:
        return ""
    scheme, _, text = authorization[0].partition(" ")
    return text if scheme.lower() == "bearer" else ""
