"""How long to wait and how often to try again: deadlines and pauses between tries."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

from pahq_client import checks
from pahq_client.errors import InvalidRequest


@dataclass(frozen=True)
class Deadline:
    """A moment on the monotonic clock; None for never."""

    at: float | None

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """Returns the deadline so many seconds from now. Raises InvalidRequest for NaN or text."""
        if seconds is None:
            return cls(None)
        wait = checks.number("timeout", seconds)
        if not wait >= 0:
            raise InvalidRequest("timeout", f"must be at least 0, got {wait:g}")
        return cls(time.monotonic() + wait)

    @property
    def passed(self) -> bool:
        return self.within(1.0) <= 0

    @property
    def left(self) -> float | None:
        """Seconds left, never negative; None for ever."""
        return None if self.at is None else self.within(float("inf"))

    def within(self, seconds: float) -> float:
        """Returns ``seconds``, or the seconds left if these are fewer; never negative."""
        return seconds if self.at is None else max(0.0, min(seconds, self.at - time.monotonic()))


@dataclass(frozen=True)
class Backoff:
    """Pauses between tries: growing, bounded in length and number.

    By default more than a minute in all, in which a server can restart.

    Args:
        attempts: how many tries follow the first one.
        first_s: about the first pause, in seconds.
        most_s: about the longest pause, in seconds.
    """

    attempts: int = 24
    first_s: float = 0.2
    most_s: float = 5.0

    def delays(self) -> Iterator[float]:
        """Yields one pause per further try. Random, so that a restarted server is not flooded."""
        for attempt in range(self.attempts):
            yield min(self.most_s, self.first_s * 2**attempt) * random.uniform(0.5, 1.0)


def jittered(seconds: float) -> float:
    """Returns a wait of so many seconds or somewhat more, so that many clients do not return at once."""
    return seconds * random.uniform(1.0, 1.2)
