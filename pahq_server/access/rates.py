"""How often a user may call: a bucket of tokens for each."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from pahq_server.core.errors import RateLimitedError

# Buckets of so many users are kept; full ones are no different from none.
MAX_BUCKETS = 10_000


@dataclass
class _Bucket:
    level: float  # calls that may be made at once
    at: float  # when that was so


class Rates:
    """Buckets that fill with ``rate`` calls per second up to ``burst``. Used from one thread.

    Args:
        rate: calls per second.
        burst: the most calls at once.
        clock: seconds.
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._buckets: dict[str, _Bucket] = {}

    def take(self, user: str) -> None:
        """Counts one call. Raises RateLimitedError, which says when there will be room for one."""
        now = self._clock()
        bucket = self._buckets.get(user) or self._new(user, now)
        bucket.level = min(self._burst, bucket.level + (now - bucket.at) * self._rate)
        bucket.at = now
        if bucket.level < 1:
            detail = f"more than {self._rate:g} calls per second, {self._burst} at once"
            wait = (1 - bucket.level) / self._rate
            raise RateLimitedError(detail, wait)
        bucket.level -= 1

    def _new(self, user: str, now: float) -> _Bucket:
        if len(self._buckets) >= MAX_BUCKETS:
            needed = self._burst / self._rate  # seconds after which any bucket is full
            self._buckets = {name: old for name, old in self._buckets.items() if now - old.at < needed}
        return self._buckets.setdefault(user, _Bucket(self._burst, now))
