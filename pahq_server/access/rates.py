"""How often a user may call, and an address in vain: a bucket of tokens for each."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from pahq_server.core.errors import RateLimitedError

logger = logging.getLogger(__name__)

# Buckets of so many users are kept; full ones are no different from none.
MAX_BUCKETS = 10_000
# So many addresses are remembered that called without valid credentials; the ones that called last.
MAX_ADDRESSES = 10_000
# After so many seconds without such a call an address is like any other.
FORGET_S = 3600.0
# Lines of the log about all addresses together: at once after a pause, and per second.
LINES_BURST, LINES_RATE = 100, 1.0


@dataclass
class _Bucket:
    level: float  # calls that may be made at once
    at: float  # when that was so

    def take(self, rate: float, burst: int, now: float) -> float:
        """Counts one call if there is room. Returns the seconds until there is; 0 if it was counted."""
        self.level = min(burst, self.level + (now - self.at) * rate)
        self.at = now
        if self.level < 1:
            return (1 - self.level) / rate
        self.level -= 1
        return 0.0


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
        wait = bucket.take(self._rate, self._burst, now)
        if wait > 0:
            detail = f"more than {self._rate:g} calls per second, {self._burst} at once"
            raise RateLimitedError(detail, wait)

    def _new(self, user: str, now: float) -> _Bucket:
        if len(self._buckets) >= MAX_BUCKETS:
            needed = self._burst / self._rate  # seconds after which any bucket is full
            self._buckets = {name: old for name, old in self._buckets.items() if now - old.at < needed}
        return self._buckets.setdefault(user, _Bucket(self._burst, now))


@dataclass
class _Failing:
    """An address from which calls came without valid credentials."""

    bucket: _Bucket
    since: float  # seconds since the epoch
    count: int = 0


class Failures:
    """Calls without valid credentials: each address may make so many, and the log tells of them.

    A line is written for the first, the tenth, the hundredth of an address, and so on. Used from one thread.

    Args:
        rate: calls per second and address.
        burst: the most calls at once.
        clock: seconds.
        now: seconds since the epoch, for the log.
    """

    def __init__(
        self,
        rate: float,
        burst: int,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._rate, self._burst, self._clock, self._now = rate, burst, clock, now
        self._failing: OrderedDict[str, _Failing] = OrderedDict()  # the one that called last comes last
        self._lines = _Bucket(LINES_BURST, clock())
        self._left_out = 0

    def take(self, address: str, why: str) -> None:
        """Counts one call. Raises RateLimitedError if the address makes too many.

        Args:
            address: where it comes from.
            why: it is refused, for the log. Must not quote a token.
        """
        now = self._clock()
        failing = self._failing.get(address)
        if failing is None or now - failing.bucket.at > FORGET_S:
            failing = self._failing[address] = _Failing(_Bucket(self._burst, now), self._now())
        self._failing.move_to_end(address)
        if len(self._failing) > MAX_ADDRESSES:
            self._failing.popitem(last=False)
        failing.count += 1
        wait = failing.bucket.take(self._rate, self._burst, now)
        if _is_power_of_ten(failing.count):
            self._log(address, why, failing, now)
        if wait > 0:
            detail = (
                f"too many calls without valid credentials come from this address: more than {self._rate:g} "
                f"per second, {self._burst} at once; check the token, or the certificate"
            )
            raise RateLimitedError(detail, wait)

    def _log(self, address: str, why: str, failing: _Failing, now: float) -> None:
        if self._lines.take(LINES_RATE, LINES_BURST, now) > 0:
            self._left_out += 1
            return
        since = datetime.fromtimestamp(failing.since, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        more = f"; {self._left_out} lines about other addresses were left out" if self._left_out else ""
        self._left_out = 0
        logger.warning(
            "refused a call from %s: %s (call %d without valid credentials from there since %s)%s",
            *(address or "an unknown address", why, failing.count, since, more),
        )


def _is_power_of_ten(count: int) -> bool:
    return str(count).rstrip("0") == "1"
