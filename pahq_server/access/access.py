"""Admission of calls: `Access` decides which calls may be made, as `AccessConfig` says."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

from pahq_server.access.identity import (
    Authenticator,
    CertificateAuthenticator,
    Credentials,
    LocalUserAuthenticator,
    TokenAuthenticator,
)
from pahq_server.access.limits import AnonymousPermits, CallLimits, FailedCallLimiter, Permits, RateLimiter
from pahq_server.access.policy import POLICY, Scope
from pahq_server.access.tls import TlsFiles
from pahq_server.access.tokens import Token, TokenTable
from pahq_server.core.context import Caller
from pahq_server.core.errors import (
    PermissionDeniedError,
    QuotaExceededError,
    RateLimitedError,
    ResourceExhaustedError,
    UnauthenticatedError,
)
from pahq_server.core.observer import Observer

logger = logging.getLogger(__name__)

# The caller of an RPC that needs no credentials. No user can have the empty name.
ANONYMOUS = Caller("")

# How callers are identified: "auto" by tokens as soon as one exists and until then not at all, "tokens" by
# tokens only, "certificates" by client certificates, "none" not at all.
AUTH_MODES = ("auto", "tokens", "certificates", "none")


@dataclass(frozen=True)
class AccessConfig:
    """Who may call a server, and how much.

    Args:
        auth: one of `AUTH_MODES`.
        certificate_admins: users with admin rights, for the mode "certificates".
        limits: limits of calls.
        tls: files of certificates; None to serve plaintext.
    """

    auth: str = "auto"
    certificate_admins: tuple[str, ...] = ()
    limits: CallLimits = field(default_factory=CallLimits)
    tls: TlsFiles | None = None

    @contextmanager
    def authenticating(self, table: TokenTable) -> Iterator[Authenticator]:
        """Gives an authenticator for a server that never makes a caller wait for the database.

        Args:
            table: tokens of the server; read in a thread of its own while the body runs.

        Raises:
            StorageError: tokens are needed and cannot be read.
        """
        authenticator = self.authenticator(table)
        with authenticator.refreshing() if isinstance(authenticator, TokenAuthenticator) else nullcontext():
            yield authenticator

    def authenticator(self, table: TokenTable) -> Authenticator:
        """Makes the authenticator of the configured mode.

        Raises:
            StorageError: tokens are needed and cannot be read.
        """
        if self.auth == "none":
            return LocalUserAuthenticator()
        if self.auth == "certificates":
            return CertificateAuthenticator(self.certificate_admins)
        if self.auth == "tokens":
            _warn_without_valid_token(table.all())
        return TokenAuthenticator(table, LocalUserAuthenticator() if self.auth == "auto" else None)


def _warn_without_valid_token(tokens: Sequence[Token]) -> None:
    if not tokens:
        logger.warning("no token exists: every call is refused until one is created (pahq-server token)")
    elif not any(token.valid(time.time()) for token in tokens):
        logger.warning(
            "all %d tokens have expired or were revoked: every call is refused until one is created "
            "(pahq-server token)",
            len(tokens),
        )


class Access:
    """Decides whether calls are admitted. Used from one thread, the event loop's.

    Args:
        authenticator: finds the caller of a call; by default everybody is the local user.
        limits: limits of calls.
        observer: is told of refusals.
        policy: what every RPC asks of its caller.
    """

    def __init__(
        self,
        authenticator: Authenticator | None = None,
        limits: CallLimits | None = None,
        observer: Observer | None = None,
        policy: Mapping[str, Scope] = POLICY,
    ) -> None:
        self.limits = limits or CallLimits()
        self._authenticator = authenticator or LocalUserAuthenticator()
        self._observer = observer or Observer()
        self._policy = policy
        self._rates = RateLimiter(self.limits.rate, self.limits.burst)
        self._failures = FailedCallLimiter(self.limits.failure_rate, self.limits.failure_burst)
        self._calls = Permits("calls", self.limits.calls, self.limits.user_calls)
        self._streams = Permits("streams", self.limits.streams, self.limits.user_streams)
        # An address without credentials gets no more than a user would.
        self._anonymous_calls, self._anonymous_streams = (
            AnonymousPermits(kind, self.limits.anonymous, min(self.limits.address_anonymous, per_user))
            for kind, per_user in (("calls", self.limits.user_calls), ("streams", self.limits.user_streams))
        )

    @contextmanager
    def admit(
        self,
        method: str,
        stream: bool,
        credentials: Credentials,
        end: Callable[[], bool] | None = None,
    ) -> Iterator[Caller]:
        """Admits a call and gives its caller; the call counts as under way while the body runs.

        Args:
            method: full name of the RPC, such as ``pahq.v1.JobService/GetJob``.
            stream: whether the RPC answers with a stream.
            credentials: what the call shows.
            end: asks the call to end soon, and returns whether it will. Only used for calls without
                credentials, to make room for others of them.

        Raises:
            UnauthenticatedError: the call needs credentials and shows no valid ones.
            PermissionDeniedError: the caller may not make this call.
            ResourceExhaustedError: a limit is reached. Also passed on from the body, and counted as a
                refusal.
        """
        try:
            caller = self._check(method, credentials)
            with self._permit(caller, stream, credentials, end):
                yield caller
        except (UnauthenticatedError, PermissionDeniedError):
            self._observer.rejected("auth")
            raise
        except RateLimitedError as error:
            failed = isinstance(error.__cause__, UnauthenticatedError)
            self._observer.rejected("auth_limit" if failed else "rate_limit")
            raise
        except QuotaExceededError:
            self._observer.rejected("quota")
            raise
        except ResourceExhaustedError:
            self._observer.rejected("queue_full")
            raise

    def check_again(self, method: str, credentials: Credentials) -> None:
        """Checks that the credentials of a call that goes on are still valid. Raises as `admit` does."""
        self._identify(method, credentials)

    def _permit(
        self, caller: Caller, stream: bool, credentials: Credentials, end: Callable[[], bool] | None
    ) -> AbstractContextManager[None]:
        if caller is not ANONYMOUS:
            return (self._streams if stream else self._calls).hold(caller.user)
        # These permits are apart from those of users, so that calls without credentials keep no user out.
        permits = self._anonymous_streams if stream else self._anonymous_calls
        return permits.hold(credentials.host, end and self._reporting(end))

    def _reporting(self, end: Callable[[], bool]) -> Callable[[], bool]:
        def end_and_report() -> bool:
            ends = end()
            if ends:
                self._observer.rejected("anonymous")
            return ends

        return end_and_report

    def _check(self, method: str, credentials: Credentials) -> Caller:
        try:
            caller = self._identify(method, credentials)
        except UnauthenticatedError as error:
            # Only after the credentials were found to be invalid: valid ones are admitted whatever else comes
            # from the same address.
            try:
                self._failures.take(credentials.host, str(error.__cause__ or "no valid credentials"))
            except RateLimitedError as limited:
                raise limited from error
            raise
        if caller is not ANONYMOUS:
            self._rates.take(caller.user)
        return caller

    def _identify(self, method: str, credentials: Credentials) -> Caller:
        scope = self._policy.get(method)
        if scope is Scope.PUBLIC:
            return ANONYMOUS
        caller = self._authenticator.identify(credentials)
        if scope is None or (scope is Scope.ADMIN and not caller.admin):
            raise PermissionDeniedError(f"{method} is not for {caller.user}")
        return caller
