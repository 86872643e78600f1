"""Limits of calls: how often a user may call, and how many calls may be under way at the same time.

`CallLimits` holds the numbers. `RateLimiter` and `FailedCallLimiter` bound calls per second, of users and of
addresses that show no valid credentials. `Permits` and `AnonymousPermits` bound calls that are under way. All
of them are used from one thread, the event loop's.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from pahq_server.core.errors import QuotaExceededError, RateLimitedError, ResourceExhaustedError

logger = logging.getLogger(__name__)

# What a caller is told to wait when too many calls are under way.
RETRY_AFTER_S = 1.0
# Users whose rate is remembered. A bucket that is full again is the same as none, and is dropped first.
MAX_BUCKETS = 10_000
# Addresses without valid credentials that are remembered: those that called last.
MAX_ADDRESSES = 10_000
# An address that has not failed for this long starts anew.
FORGET_S = 3600.0
# Lines in the log about failing addresses, all together: at once after a pause, and per second.
LINES_BURST, LINES_RATE = 100, 1.0


@dataclass(frozen=True)
class CallLimits:
    """Bounds of calls. A call beyond one of them is refused at once, before its message is read.

    Args:
        rate: calls per second and user, over time.
        burst: calls that a user may make at once after a pause.
        calls, user_calls: calls with one answer that may be under way at the same time: of all users, and of
            one user.
        streams, user_streams: the same for calls with a stream of answers.
        anonymous, address_anonymous: calls that need no credentials (health) and may be under way at the same
            time: in all, and from one address. Streams are counted apart from other calls. Such a call never
            takes a permit of a user.
        anonymous_s: seconds that such a call may take. If it has a stream of answers, only its message is
            bounded by this.
        failure_rate: calls per second and address that need credentials and show no valid ones.
        failure_burst: calls of that kind that an address may make at once after a pause. Beyond, it is told
            to wait; calls with valid credentials are let in from that address all the same.
        read_s: seconds that the message of an admitted call may take to arrive.
        threads: calls that are worked on in threads at the same time; others wait for their turn or for their
            deadline. See `FairThreadPool` for how users share them.
    """

    rate: float = 500.0
    burst: int = 1000
    calls: int = 512
    user_calls: int = 128
    streams: int = 1024
    user_streams: int = 256
    anonymous: int = 128
    address_anonymous: int = 32
    anonymous_s: float = 5.0
    failure_rate: float = 10.0
    failure_burst: int = 1000
    read_s: float = 60.0
    threads: int = 4


@dataclass
class _Bucket:
    """A token bucket: it held ``level`` calls at the time ``at``, and fills with time."""

    level: float
    at: float

    def take(self, rate: float, burst: int, now: float) -> float:
        """Takes one call out of the bucket if it holds one.

        Args:
            rate: calls per second that flow into the bucket.
            burst: the most calls that it holds.
            now: seconds, on the clock of ``at``.

        Returns:
            0 if the call was taken, else the seconds until the bucket will hold one.
        """
        self.level = min(burst, self.level + (now - self.at) * rate)
        self.at = now
        if self.level < 1:
            return (1 - self.level) / rate
        self.level -= 1
        return 0.0


class RateLimiter:
    """Bounds the calls per second of every user.

    Args:
        rate: calls per second and user, over time.
        burst: calls that a user may make at once after a pause.
        clock: seconds, monotonic.
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._buckets: dict[str, _Bucket] = {}

    def take(self, user: str) -> None:
        """Counts one call of a user.

        Raises:
            RateLimitedError: the user makes too many; the error says after how many seconds to try again.
        """
        now = self._clock()
        bucket = self._buckets.get(user) or self._new_bucket(user, now)
        wait = bucket.take(self._rate, self._burst, now)
        if wait > 0:
            detail = f"more than {self._rate:g} calls per second, {self._burst} at once"
            raise RateLimitedError(detail, wait)

    def _new_bucket(self, user: str, now: float) -> _Bucket:
        if len(self._buckets) >= MAX_BUCKETS:
            seconds_to_fill = self._burst / self._rate
            self._buckets = {
                name: old for name, old in self._buckets.items() if now - old.at < seconds_to_fill
            }
        return self._buckets.setdefault(user, _Bucket(self._burst, now))


@dataclass
class _FailingAddress:
    """An address with ``count`` calls without valid credentials since ``since`` (seconds since the epoch)."""

    bucket: _Bucket
    since: float
    count: int = 0


class FailedCallLimiter:
    """Bounds calls without valid credentials per address, and writes about them into the log.

    The log gets a line for the first, the tenth, the hundredth such call of an address, and so on.

    Args:
        rate: calls per second and address, over time.
        burst: calls that an address may make at once after a pause.
        clock: seconds, monotonic.
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
        # In the order of their last calls.
        self._failing: OrderedDict[str, _FailingAddress] = OrderedDict()
        self._log_lines = _Bucket(LINES_BURST, clock())
        self._lines_left_out = 0

    def take(self, address: str, reason: str) -> None:
        """Counts one call without valid credentials.

        Args:
            address: where the call comes from.
            reason: why its credentials are not valid, for the log. Must not quote a token.

        Raises:
            RateLimitedError: the address makes too many such calls.
        """
        now = self._clock()
        failing = self._failing.get(address)
        if failing is None or now - failing.bucket.at > FORGET_S:
            failing = self._failing[address] = _FailingAddress(_Bucket(self._burst, now), self._now())
        self._failing.move_to_end(address)
        if len(self._failing) > MAX_ADDRESSES:
            self._failing.popitem(last=False)
        failing.count += 1
        wait = failing.bucket.take(self._rate, self._burst, now)
        if _is_power_of_ten(failing.count):
            self._log(address, reason, failing, now)
        if wait > 0:
            detail = (
                f"too many calls without valid credentials come from this address: more than {self._rate:g} "
                f"per second, {self._burst} at once; check the token, or the certificate"
            )
            raise RateLimitedError(detail, wait)

    def _log(self, address: str, reason: str, failing: _FailingAddress, now: float) -> None:
        if self._log_lines.take(LINES_RATE, LINES_BURST, now) > 0:
            self._lines_left_out += 1
            return
        since = datetime.fromtimestamp(failing.since, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        left_out = self._lines_left_out
        more = f"; {left_out} lines about other addresses were left out" if left_out else ""
        self._lines_left_out = 0
        logger.warning(
            "refused a call from %s: %s (call %d without valid credentials from there since %s)%s",
            *(address or "an unknown address", reason, failing.count, since, more),
        )


def _is_power_of_ten(count: int) -> bool:
    return str(count).rstrip("0") == "1"


class Permits:
    """Permits for calls of known users that are under way: so many in all, and so many for each user.

    Args:
        kind: kind of the calls, for error messages and as the name of the quota: "calls" or "streams".
        total: permits for all users together.
        per_user: permits for one user.
    """

    def __init__(self, kind: str, total: int, per_user: int) -> None:
        self._kind, self._total, self._per_user = kind, total, per_user
        self._held_by_user: Counter[str] = Counter()
        self._held = 0

    @property
    def held(self) -> int:
        """How many permits are held by all users together."""
        return self._held

    @contextmanager
    def hold(self, user: str) -> Iterator[None]:
        """Holds a permit while the body runs.

        Raises:
            QuotaExceededError: the user holds as many as one user may.
            ResourceExhaustedError: all permits are held.
        """
        if self._held_by_user[user] >= self._per_user:
            detail = f"{self._per_user} {self._kind} are under way already"
            raise QuotaExceededError(self._kind, f"users/{user}", detail, RETRY_AFTER_S)
        if self._held >= self._total:
            detail = f"the server has {self._total} {self._kind} under way already"
            raise ResourceExhaustedError(detail, RETRY_AFTER_S)
        self._held_by_user[user] += 1
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
            self._held_by_user[user] -= 1
            if not self._held_by_user[user]:
                del self._held_by_user[user]


@dataclass(eq=False)
class AnonymousCall:
    """A call that is under way and shows no credentials.

    Args:
        address: where it comes from.
        end: asks it to end soon, and returns whether it will; None if it cannot be ended.
    """

    address: str
    end: Callable[[], bool] | None = None


class AnonymousPermits:
    """Permits for calls that need no credentials and are under way.

    When all permits are held, a new call is let in and the oldest one ends in its place: the oldest of the
    same address if that holds as many as one address may, else the oldest of the address that holds most. So
    whoever only holds calls open can neither keep out a health probe, which is answered at once, nor end the
    calls of an address that holds fewer.

    Args:
        kind: kind of the calls, for error messages and as the name of the quota: "calls" or "streams".
        total: permits for all addresses together.
        per_address: permits for one address.
    """

    def __init__(self, kind: str, total: int, per_address: int) -> None:
        self._kind, self._total, self._per_address = kind, total, per_address
        # Calls by address, oldest first. Addresses without calls have no entry.
        self._held_by_address: dict[str, dict[AnonymousCall, None]] = {}

    @property
    def held(self) -> int:
        """How many permits are held by all addresses together."""
        return sum(map(len, self._held_by_address.values()))

    @contextmanager
    def hold(self, address: str, end: Callable[[], bool] | None = None) -> Iterator[None]:
        """Holds a permit while the body runs.

        Args:
            address: where the call comes from.
            end: asks the call to end soon to make room for another one, and returns whether it will; None if
                it cannot be ended.

        Raises:
            QuotaExceededError: the address holds as many as one address may, and none of them can be ended.
            ResourceExhaustedError: all permits are held, and none of the busiest address can be ended.
        """
        own = self._held_by_address.get(address, {})
        if len(own) >= self._per_address and not self._end_oldest(address):
            detail = f"{self._per_address} {self._kind} without credentials are under way already"
            raise QuotaExceededError(self._kind, f"addresses/{address}", detail, RETRY_AFTER_S)
        if self.held >= self._total:
            busiest = max(self._held_by_address, key=lambda each: len(self._held_by_address[each]))
            if not self._end_oldest(busiest):
                detail = f"the server has {self._total} {self._kind} without credentials under way already"
                raise ResourceExhaustedError(detail, RETRY_AFTER_S)
        call = AnonymousCall(address, end)
        self._held_by_address.setdefault(address, {})[call] = None
        try:
            yield
        finally:
            self._remove(call)

    def _end_oldest(self, address: str) -> bool:
        for call in self._held_by_address[address]:
            if call.end is not None and call.end():
                # Its permit is free from now on: the call takes a moment to end, and must not be ended twice.
                self._remove(call)
                return True
        return False

    def _remove(self, call: AnonymousCall) -> None:
        calls = self._held_by_address.get(call.address, {})
        calls.pop(call, None)
        if not calls:
            self._held_by_address.pop(call.address, None)
