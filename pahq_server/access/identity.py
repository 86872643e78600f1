"""Who makes a call: found from its token, or from the certificate of its connection."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from pahq_server.access.table import TokenTable
from pahq_server.access.tokens import Token, is_user, token_id
from pahq_server.core.context import Caller
from pahq_server.core.errors import ServerError, StorageError, UnauthenticatedError

logger = logging.getLogger(__name__)

# A token that was revoked or created is noticed after so many seconds.
REFRESH_S = 1.0
# What was read goes on to be believed for so long while the database is busy. Then nobody comes in.
STALE_S = 30.0


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
        """Raises UnauthenticatedError, always with the same text; its cause says why, for the log alone."""


class Anyone:
    """Takes every call for the local user's, who may do everything."""

    def identify(self, credentials: Credentials) -> Caller:
        return Caller(admin=True)


class TokenHolders:
    """Knows callers by their tokens.

    By itself it reads the table where a call finds its copy too old. Inside `kept_fresh` a thread of its own
    does that, and no call ever waits for the database.

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
        self._tokens: Mapping[str, Token] | None = None  # None: they could not be read
        self._damaged: set[str] = set()  # that were complained about
        self._fresh_until = float("-inf")
        # While a thread reads: when it last did, on the monotonic clock.
        self._read_at: float | None = None

    def identify(self, credentials: Credentials) -> Caller:
        now = self._clock()
        tokens = self._present(now)
        if not tokens and self._otherwise is not None:
            return self._otherwise.identify(credentials)
        if not credentials.authorization:
            raise refusal() from LookupError("it shows no token")
        text = _bearer(credentials.authorization)
        id = token_id(text)
        if id is None:
            raise refusal() from LookupError("what it shows is not a token")
        token = tokens.get(id)
        if token is None or not token.matches(text):
            raise refusal() from LookupError("its token is unknown")
        if not token.valid(now):
            why = "was revoked" if token.revoked is not None else "has expired"
            raise refusal() from LookupError(f"its token, {token.id} of user {token.user}, {why}")
        return token.caller

    @contextmanager
    def kept_fresh(self) -> Iterator[None]:
        """Reads the table in a thread while the body runs. Raises StorageError if that fails at first."""
        self._tokens, self._read_at = self._table.by_id(), time.monotonic()
        ended = threading.Event()
        thread = threading.Thread(target=self._keep_reading, args=(ended,), name="pahq-tokens", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            self._read_at = None

    def _keep_reading(self, ended: threading.Event) -> None:
        while not ended.wait(REFRESH_S):
            try:
                tokens: Mapping[str, Token] | None = self._table.by_id()
            except Exception as error:  # noqa: BLE001 - what was true before may not be any more
                tokens = None
                if not ended.is_set():
                    logger.error("tokens cannot be read: %s", error)
            if tokens is not None:
                self._complain(tokens)
            if not ended.is_set():
                self._tokens, self._read_at = tokens, time.monotonic()

    def _complain(self, tokens: Mapping[str, Token]) -> None:
        """Writes into the log, once, which tokens are damaged."""
        damaged = {token.id for token in tokens.values() if token.damaged}
        for token in damaged - self._damaged:
            logger.error("token %r is damaged, and lets nobody in: revoke it, and create another", token)
        self._damaged = damaged

    def _present(self, now: float) -> Mapping[str, Token]:
        """The tokens there are. Raises ServerError where that is not known."""
        if self._read_at is not None:
            if time.monotonic() - self._read_at > STALE_S:
                raise ServerError("the server cannot check tokens at present: its database does not answer")
        elif not self._fresh_until - REFRESH_S <= now < self._fresh_until:  # also when the clock was set back
            self._read(now)
        if self._tokens is None:
            # What was true before may not be any more: nobody comes in.
            raise ServerError("the server cannot check tokens at present")
        return self._tokens

    def _read(self, now: float) -> None:
        try:
            tokens = self._table.by_id()
        except StorageError as error:
            logger.error("tokens cannot be read: %s", error)
            self._tokens = None
            return
        self._complain(tokens)
        self._tokens = tokens
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
            raise refusal() from LookupError("its certificate has no common name that a user can have")
        user = credentials.common_names[0]
        return Caller(user, user in self._admins)


def refusal() -> UnauthenticatedError:
    """The same for everybody: it must not tell how nearly credentials were right."""
    return UnauthenticatedError("the call needs valid credentials: a token, or a certificate of its own")


def _bearer(authorization: Sequence[str]) -> str:
    if len(authorization) != 1:
        return ""
    scheme, _, text = authorization[0].partition(" ")
    return text if scheme.lower() == "bearer" else ""
