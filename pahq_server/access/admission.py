"""How many calls may be under way: permits, counted for all and for each user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from pahq_server.core.errors import QuotaExceededError, ResourceExhaustedError

RETRY_AFTER_S = 1.0


class Permits:
    """Permits for one kind of calls. Used from one thread.

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
