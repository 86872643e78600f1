"""Finds who makes a call, from its token or from the client certificate of its connection."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from pahq_server.access.tokens import Token, TokenTable, is_user, token_id
from pahq_server.core.context import Caller
from pahq_server.core.errors import ServerError, StorageError, UnauthenticatedError

logger = logging.getLogger(__name__)

# A token that was created or revoked takes effect after at most this long.
REFRESH_S = 1.0
# While the database is busy, tokens read earlier are used for this long. After that every call is refused.
STALE_S = 30.0


@dataclass(frozen=True)
class Credentials:
    """What a call shows of its caller.

    Args:
        authorization: all values of the ``authorization`` header; exactly one is valid.
        common_names: common names of the client certificate that the connection has verified; empty without
            one.
        host: address that the call comes from; never the name of a user.
    """

    authorization: Sequence[str] = ()
    common_names: Sequence[str] = ()
    host: str = ""


class Authenticator(Protocol):
    """Finds the caller of a call. Used from one thread, the event loop's."""

    def identify(self, credentials: Credentials) -> Caller:
        """Finds the caller.

        Raises:
            UnauthenticatedError: the credentials are not valid. Its text is always the same, so that it does
                not help to guess; its ``__cause__`` says why, for the log only.
        """


class LocalUserAuthenticator:
    """Takes every caller for the local user, who has admin rights."""

    def identify(self, credentials: Credentials) -> Caller:
        return Caller(admin=True)


class TokenAuthenticator:
    """Finds callers by their API tokens.

    Outside of `refreshing`, a call that finds the tokens too old reads the table itself. Inside of it a
    thread reads the table again and again, and no call waits for the database.

    Args:
        table: tokens of the server; read again after at most `REFRESH_S`.
        without_tokens: finds callers as long as the table is empty; None to refuse them.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        table: TokenTable,
        without_tokens: Authenticator | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._table, self._without_tokens, self._clock = table, without_tokens, clock
        self._tokens: Mapping[str, Token] | None = None  # by public part; None if they could not be read
        self._reported: set[str] = set()  # public parts of damaged tokens that the log knows of
        self._fresh_until = float("-inf")  # seconds since the epoch; not used inside of `refreshing`
        self._read_at: float | None = None  # inside of `refreshing`: when the thread last read, monotonic

    def identify(self, credentials: Credentials) -> Caller:
        now = self._clock()
        tokens = self._current_tokens(now)
        if not tokens and self._without_tokens is not None:
            return self._without_tokens.identify(credentials)
        if not credentials.authorization:
            raise invalid_credentials() from LookupError("it shows no token")
        text = _bearer_token(credentials.authorization)
        id = token_id(text)
        if id is None:
            raise invalid_credentials() from LookupError("what it shows is not a token")
        token = tokens.get(id)
        if token is None or not token.matches(text):
            raise invalid_credentials() from LookupError("its token is unknown")
        if not token.valid(now):
            why = "was revoked" if token.revoked is not None else "has expired"
            raise invalid_credentials() from LookupError(f"its token, {token.id} of user {token.user}, {why}")
        return token.caller

    @contextmanager
    def refreshing(self) -> Iterator[None]:
        """Reads the table in a thread while the body runs.

        Raises:
            StorageError: the table cannot be read at the start.
        """
        self._tokens, self._read_at = self._table.by_id(), time.monotonic()
        ended = threading.Event()
        thread = threading.Thread(target=self._refresh_until, args=(ended,), name="pahq-tokens", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            self._read_at = None

    def _refresh_until(self, ended: threading.Event) -> None:
        while not ended.wait(REFRESH_S):
            try:
                tokens: Mapping[str, Token] | None = self._table.by_id()
            except Exception as error:  # noqa: BLE001 - a token may have been revoked: nobody may be let in
                tokens = None
                if not ended.is_set():
                    logger.error("tokens cannot be read: %s", error)
            if tokens is not None:
                self._report_damaged(tokens)
            if not ended.is_set():
                self._tokens, self._read_at = tokens, time.monotonic()

    def _report_damaged(self, tokens: Mapping[str, Token]) -> None:
        """Writes damaged tokens into the log, each of them once."""
        damaged = {token.id for token in tokens.values() if token.damaged}
        for token in damaged - self._reported:
            logger.error("token %r is damaged, and lets nobody in: revoke it, and create another", token)
        self._reported = damaged

    def _current_tokens(self, now: float) -> Mapping[str, Token]:
        """Returns the tokens by their public parts.

        Raises:
            ServerError: they could not be read lately. A token may have been revoked since, so nobody is let
                in.
        """
        if self._read_at is not None:
            if time.monotonic() - self._read_at > STALE_S:
                raise ServerError("the server cannot check tokens at present: its database does not answer")
        elif not self._fresh_until - REFRESH_S <= now < self._fresh_until:  # the clock may have been set back
            self._read(now)
        if self._tokens is None:
            raise ServerError("the server cannot check tokens at present")
        return self._tokens

    def _read(self, now: float) -> None:
        try:
            tokens = self._table.by_id()
        except StorageError as error:
            logger.error("tokens cannot be read: %s", error)
            self._tokens = None
            return
        self._report_damaged(tokens)
        self._tokens = tokens
        self._fresh_until = now + REFRESH_S


class CertificateAuthenticator:
    """Finds callers by the common name of their client certificates.

    Args:
        admins: users with admin rights.
    """

    def __init__(self, admins: Sequence[str] = ()) -> None:
        self._admins = frozenset(admins)

    def identify(self, credentials: Credentials) -> Caller:
        if len(credentials.common_names) != 1 or not is_user(credentials.common_names[0]):
            raise invalid_credentials() from LookupError(
                "its certificate has no common name that a user can have"
            )
        user = credentials.common_names[0]
        return Caller(user, user in self._admins)


def invalid_credentials() -> UnauthenticatedError:
    """Makes the error for invalid credentials of every kind.

    Its text is always the same, so that it does not tell how nearly the credentials were right.
    """
    return UnauthenticatedError("the call needs valid credentials: a token, or a certificate of its own")


def _bearer_token(authorization: Sequence[str]) -> str:
    """Returns the text after "Bearer" of the only header; empty if there is none of that form."""
    if len(authorization) != 1:
        return ""
    scheme, _, text = authorization[0].partition(" ")
    return text if scheme.lower() == "bearer" else ""
