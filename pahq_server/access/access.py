"""The one place that decides whether a call may go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from pahq_server.access.admission import AnonymousPermits, Permits
from pahq_server.access.identity import Anyone, Authenticator, Credentials
from pahq_server.access.limits import CallLimits
from pahq_server.access.policy import POLICY, Scope
from pahq_server.access.rates import Failures, Rates
from pahq_server.core.context import Caller
from pahq_server.core.errors import (
    PermissionDeniedError,
    QuotaExceededError,
    RateLimitedError,
    ResourceExhaustedError,
    UnauthenticatedError,
)
from pahq_server.core.observer import Observer

# Who calls what needs no credentials: no user can have this name.
NOBODY = Caller("")


class Access:
    """Decides about calls. Used from one thread.

    Args:
        authenticator: finds callers; by default everyone is the local user.
        limits: of calls.
        observer: hears of refusals.
        policy: what every call asks of its caller.
    """

    def __init__(
        self,
        authenticator: Authenticator | None = None,
        limits: CallLimits | None = None,
        observer: Observer | None = None,
        policy: Mapping[str, Scope] = POLICY,
    ) -> None:
        self.limits = limits or CallLimits()
        self._authenticator = authenticator or Anyone()
        self._observer = observer or Observer()
        self._policy = policy
        self._rates = Rates(self.limits.rate, self.limits.burst)
        self._failures = Failures(self.limits.failure_rate, self.limits.failure_burst)
        self._calls = Permits("calls", self.limits.calls, self.limits.user_calls)
        self._streams = Permits("streams", self.limits.streams, self.limits.user_streams)
        # An address without a name has no more than a user would have.
        self._anonymous_calls, self._anonymous_streams = (
            AnonymousPermits(what, self.limits.anonymous, min(self.limits.address_anonymous, of_user))
            for what, of_user in (("calls", self.limits.user_calls), ("streams", self.limits.user_streams))
        )

    @contextmanager
    def admit(
        self,
        method: str,
        stream: bool,
        credentials: Credentials,
        end: Callable[[], bool] | None = None,
    ) -> Iterator[Caller]:
        """Who makes the call; it counts as under way while the body runs.

        Args:
            method: such as ``pahq.v1.DiscoveryService/GetDiscovery``.
            stream: whether it has a stream of answers.
            credentials: what the call shows.
            end: ends the call soon, and tells whether it does; used for calls without a name, to make room
                for others of them.

        Raises UnauthenticatedError, PermissionDeniedError and ResourceExhaustedError, the latter also from
        the body, which is counted as a refusal, too.
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
        """For a call that goes on. Raises as `admit`, if its credentials are worth nothing any more."""
        self._identify(method, credentials)

    def _permit(
        self, caller: Caller, stream: bool, credentials: Credentials, end: Callable[[], bool] | None
    ) -> AbstractContextManager[None]:
        if caller is not NOBODY:
            return (self._streams if stream else self._calls).hold(caller.user)
        # Apart from those of users: whoever needs no name must not keep out who has one.
        permits = self._anonymous_streams if stream else self._anonymous_calls
        return permits.hold(credentials.host, end and self._counted(end))

    def _counted(self, end: Callable[[], bool]) -> Callable[[], bool]:
        def counted() -> bool:
            ends = end()
            if ends:
                self._observer.rejected("anonymous")
            return ends

        return counted

    def _check(self, method: str, credentials: Credentials) -> Caller:
        try:
            caller = self._identify(method, credentials)
        except UnauthenticatedError as error:
            # Only now: whoever shows valid credentials gets in, whatever else comes from the same address.
            try:
                self._failures.take(credentials.host, str(error.__cause__ or "no valid credentials"))
            except RateLimitedError as limited:
                raise limited from error
            raise
        if caller is not NOBODY:
            self._rates.take(caller.user)
        return caller

    def _identify(self, method: str, credentials: Credentials) -> Caller:
        scope = self._policy.get(method)
        if scope is Scope.PUBLIC:
            return NOBODY
        caller = self._authenticator.identify(credentials)
        if scope is None or (scope is Scope.ADMIN and not caller.admin):
            raise PermissionDeniedError(f"{method} is not for {caller.user}")
        return caller
