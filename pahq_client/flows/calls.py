"""Calls within a time limit, and again after an interruption where that does no harm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from pahq_client.errors import (
    DeadlineExceeded,
    NotFound,
    PahqError,
    RateLimited,
    StorageUnavailable,
    Unavailable,
)
from pahq_client.flow import Call, Flow, Open, Pause, Read
from pahq_client.patience import Backoff, Deadline, jittered
from pahq_client.rpcs import Rpc

Q = TypeVar("Q")
A = TypeVar("A")
T = TypeVar("T")

# Tries after the first one at an address that never answered: a wrong one should show soon.
FIRST_TRIES = 2
# Where a server asks for a shorter one, or for none.
LEAST_PAUSE = 0.05


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

    def collect(self, rpc: Rpc[Q, A], request: Q, timeout: float | None = None) -> Flow[list[A]]:
        """One request, all messages of a stream."""

        def once(seconds: float) -> Flow[list[A]]:
            messages: list[A] = []
            stream = yield Open(rpc, request, seconds)
            try:
                while (message := (yield Read(stream))) is not None:
                    messages.append(message)
            finally:
                stream.close()
            return messages

        return self._repeat(rpc, once, timeout)

    def _repeat(self, rpc: Rpc[Any, Any], once: Callable[[float], Flow[T]], timeout: float | None) -> Flow[T]:
        """Tries until there is an answer, an error that stays, no more patience or no more time."""
        seconds = self.timeout if timeout is None else timeout
        deadline, delays = Deadline.after(seconds), self._delays()
        while True:
            try:
                result = yield from once(deadline.within(seconds))
            except PahqError as error:
                self._reached |= not isinstance(error, Unavailable)
                if not rpc.idempotent or isinstance(error, DeadlineExceeded):
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
        return jittered(max(error.retry_after or 0.0, LEAST_PAUSE))
    hopeless = isinstance(error, StorageUnavailable) and error.damaged
    if not isinstance(error, Unavailable) or hopeless or error.explanation:
        return None
    return next(delays, None)
