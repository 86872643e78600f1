"""How many calls may be under way: permits, counted for all and for each who makes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pahq_server.core.errors import QuotaExceededError, ResourceExhaustedError

RETRY_AFTER_S = 1.0


class Permits:
    """Permits for one kind of calls of known users. Used from one thread.

    Args:
        what: the kind, for error messages: "calls" or "streams".
        total: permits for all users together.
        per_user: permits for each.
    """

    def __init__(self, what: str, total: int, per_user: int) -> None:
        self._what, self._total, self._per_user = what, total, per_user
        self._held: Counter[str] = Counter()
        self._count = 0

    @property
    def held(self) -> int:
        return self._count

    @contextmanager
    def hold(self, user: str) -> Iterator[None]:
        """Holds a permit. Raises ResourceExhaustedError; QuotaExceededError for the user's own limit."""
        if self._held[user] >= self._per_user:
            detail = f"{self._per_user} {self._what} are under way already"
            raise QuotaExceededError(self._what, f"users/{user}", detail, RETRY_AFTER_S)
        if self._count >= self._total:
            detail = f"the server has {self._total} {self._what} under way already"
            raise ResourceExhaustedError(detail, RETRY_AFTER_S)
        self._held[user] += 1
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1
            self._held[user] -= 1
            if not self._held[user]:
                del self._held[user]


@dataclass(eq=False)
class AnonymousCall:
    """A call that shows no credentials.

    Args:
        address: where it comes from.
        end: ends it soon, and tells whether it does; None if it cannot be ended.
    """

    address: str
    end: Callable[[], bool] | None = None


class AnonymousPermits:
    """Permits for one kind of calls that need no credentials. Used from one thread.

    A newcomer is let in, and the oldest call ends in its place: of its own address, if that has as many as
    one may have, else of the address that has most. So those who only hold calls open cannot keep out a
    probe, which is answered at once, and one address cannot end the calls of another that has fewer.

    Args:
        what: the kind, for error messages: "calls" or "streams".
        total: permits for all addresses together.
        per_address: permits for each.
    """

    def __init__(self, what: str, total: int, per_address: int) -> None:
        self._what, self._total, self._per_address = what, total, per_address
        # Oldest first. A dict keeps its order, and an address without calls has no entry.
        self._held: dict[str, dict[AnonymousCall, None]] = {}

    @property
    def held(self) -> int:
        return sum(map(len, self._held.values()))

    @contextmanager
    def hold(self, address: str, end: Callable[[], bool] | None = None) -> Iterator[None]:
        """Holds a permit.

        Args:
            address: where the call comes from.
            end: ends the call soon, to make room for another, and tells whether it does; None if it cannot
                be ended.

        Raises QuotaExceededError and ResourceExhaustedError where no call can be ended to make room.
        """
        if len(self._held.get(address, ())) >= self._per_address and not self._end_oldest(address):
            detail = f"{self._per_address} {self._what} without credentials are under way already"
            raise QuotaExceededError(self._what, f"addresses/{address}", detail, RETRY_AFTER_S)
        if self.held >= self._total:
            busiest = max(self._held, key=lambda each: len(self._held[each]))
            if not self._end_oldest(busiest):
                detail = f"the server has {self._total} {self._what} without credentials under way already"
                raise ResourceExhaustedError(detail, RETRY_AFTER_S)
        call = AnonymousCall(address, end)
        self._held.setdefault(address, {})[call] = None
        try:
            yield
        finally:
            self._remove(call)

    def _end_oldest(self, address: str) -> bool:
        for call in self._held[address]:
            if call.end is not None and call.end():
                self._remove(call)  # at once: its end takes a moment, and makes room for one
                return True
        return False

    def _remove(self, call: AnonymousCall) -> None:
        calls = self._held.get(call.address, {})
        calls.pop(call, None)
        if not calls:
            self._held.pop(call.address, None)
