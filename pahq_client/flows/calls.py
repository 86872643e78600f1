"""Calls within a time limit, and again after an interruption where that does no harm."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

from pahq_client.errors import (
    DeadlineExceeded,
    NotFound,
    PahqError,
    RateLimited,
    StorageUnavailable,
    Unavailable,
)
from pahq_client.flow import Call
from pahq_client._calls import Steps as Flow
from pahq_client.flow import Open
from pahq_client.flow import Pause
from pahq_client.flow import Read
from pahq_client.patience import Backoff, Deadline, jittered
from pahq_client.rpcs import Rpc

Q = TypeVar("Q")
A = TypeVar("A")
T = TypeVar("T")
C = TypeVar("C", contravariant=True)
R = TypeVar("R", covariant=True)

# Tries after the first one at an address that never answered: a wrong one should show soon.
FIRST_TRIES = 2
# Where a server asks for a shorter one, or for none.
LEAST_PAUSE = 0.05
# Where a server asks for a longer one, the caller is told so instead of waiting without a word.
MOST_PAUSE = 600.0


class Collector(Protocol[C, R]):
    """Puts the messages of a stream together, one at a time, so that it can refuse them one at a time."""

    def add(self, message: C, /) -> None:
        """Takes in the next message."""

    def result(self) -> R:
        """What they are together, after the last one."""


class Calls:
    """Makes calls to one server.

    Args:
        address: of the server, for errors.
        timeout: seconds that a call may take unless it says otherwise, all of its tries together.
        backoff: pauses between tries.
    """

    def __init__(self, address: str, timeout: float, backoff: Backoff) -> None:
        self.address = address
        self.timeout = timeout
        self.backoff = backoff
        self._reached = False  # whether anything ever answered

    def call(
        self, rpc: Rpc[Q, A], request: Q, timeout: float | None = None, gone: A | None = None
    ) -> Flow[A]:
        """One request, one response.

        Args:
            rpc: what to call.
            request: what to send.
            timeout: seconds for all tries together; None for the usual.
            gone: of a call that removes something, the answer that was lost if another try finds nothing.
        """
        tries = 0

        def once(seconds: float) -> Flow[A]:
            nonlocal tries
            tries += 1
            try:
                response: A = yield Call(rpc, request, seconds)
            except NotFound:
                if gone is None or tries == 1:
                    raise
                return gone
            return response

        return self._repeat(rpc, once, timeout)

    def collect(
        self, rpc: Rpc[Q, A], request: Q, into: Callable[[], Collector[A, T]], timeout: float | None = None
    ) -> Flow[T]:
        """One request, all messages of a stream.

        Args:
            rpc: what to call.
            request: what to send.
            into: makes what takes the messages in, anew for every try.
            timeout: seconds for all tries together; None for the usual.
        """

        def once(seconds: float) -> Flow[T]:
            taken = into()
            stream = yield Open(rpc, request, seconds)
            try:
                while (message := (yield Read(stream))) is not None:
                    taken.add(message)
            finally:
                stream.close()
            return taken.result()

        return self._repeat(rpc, once, timeout)

    def _repeat(self, rpc: Rpc[Any, Any], once: Callable[[float], Flow[T]], timeout: float | None) -> Flow[T]:
        """Tries until there is an answer, an error that stays, no more patience or no more time."""
        seconds = self.timeout if timeout is None else timeout
        deadline, delays = Deadline.after(seconds), self._delays()
        while True:
            began = time.monotonic()
            try:
                result = yield from once(deadline.within(seconds))
            except PahqError as error:
                self._reached |= not isinstance(error, Unavailable)
                if not rpc.idempotent or isinstance(error, DeadlineExceeded):
                    raise
                lost = rpc.costly and time.monotonic() - began > self.timeout
                if lost and not isinstance(error, RateLimited):
                    raise
                delay = next_delay(error, delays)
                if delay is None or delay >= deadline.within(seconds):
                    raise
            else:
                self._reached = True
                return result
            yield Pause(delay)

    def _delays(self) -> Iterator[float]:
        attempts = self.backoff.attempts if self._reached else min(FIRST_TRIES, self.backoff.attempts)
        return Backoff(attempts, self.backoff.first_s, self.backoff.most_s).delays()


def next_delay(error: PahqError, delays: Iterator[float]) -> float | None:
    """Seconds until another try is sensible; None if none is."""
    if isinstance(error, RateLimited):
        pause = max(error.retry_after or 0.0, LEAST_PAUSE)
        return jittered(pause) if pause <= MOST_PAUSE else None
    hopeless = isinstance(error, StorageUnavailable) and error.damaged
    if not isinstance(error, Unavailable) or hopeless or error.explanation:
        return None
    return next(delays, None)
