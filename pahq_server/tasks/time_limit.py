"""A time limit for tokenizing.

Regular expressions in a tokenizer.json can take exponential time, and the tokenizers library, written in
Rust, cannot be interrupted. So tokenizing runs in a thread of its own. After the limit the call that waits
for the thread fails, and the thread ends before its next text; within one text it cannot be stopped. While
several threads of a tokenizer are stuck like this, further requests are refused at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pahq_server.core.errors import InvalidRequestError, ResourceExhaustedError, ServerError

T = TypeVar("T")

RETRY_AFTER_S = 60.0
_LEAST_WAIT_S = 0.01


@dataclass(frozen=True)
class Bounds:
    """How long tokenizing may take.

    Args:
        text_s: seconds of CPU time for one text. A text that fits into a context takes a fraction of a
            second.
        all_s: seconds of CPU time for all texts of a request.
        waiting: limits on wall-clock time, as a multiple of these. CPU time alone would take very long to run
            out on a machine that is busy with other work.
        stuck: number of threads that cannot be stopped, each of which keeps a core busy, from which on
            further requests fail.
    """

    text_s: float = 5.0
    all_s: float = 30.0
    waiting: float = 3.0
    stuck: int = 2


class TimeLimit:
    """Runs the tokenizing of one model. May be used from any thread.

    Args:
        bounds: for each call of `run`.
    """

    def __init__(self, bounds: Bounds | None = None) -> None:
        self._bounds = bounds or Bounds()
        self._running: set[_Attempt[Any]] = set()
        self._stuck: list[_Attempt[Any]] = []
        self._closed = False
        self._lock = threading.Lock()

    def run(self, work: Callable[[Callable[[], bool]], T], field: str = "task") -> T:
        """Runs a function in a thread; returns its result or raises its error.

        Args:
            work: tokenizes; must call its argument, ``out_of_time``, before each text.
            field: of the request, for the error.

        Raises:
            InvalidRequestError: if it took too long.
            ResourceExhaustedError: if too many threads of this tokenizer are stuck.
            ServerError: if the server stops.
        """
        with self._lock:
            self._check()
            attempt = _Attempt(work, self._bounds)
            self._running.add(attempt)
        attempt.start()
        too_long = attempt.wait()
        with self._lock:
            self._running.remove(attempt)
            if not attempt.ended:
                self._stuck.append(attempt)
            if self._closed and not attempt.ended:
                raise ServerError("the server is stopping")
        if too_long is not None:
            detail = f"tokenizing {too_long} and was given up: send fewer or shorter texts, or token ids"
            raise InvalidRequestError(field, detail)
        return attempt.result()

    def close(self) -> None:
        """Makes all calls of `run` fail now, because the server stops."""
        with self._lock:
            self._closed = True
            for attempt in self._running:
                attempt.abandon()

    def _check(self) -> None:
        if self._closed:
            raise ServerError("the server is stopping")
        self._stuck = [attempt for attempt in self._stuck if not attempt.ended]
        if len(self._stuck) >= self._bounds.stuck:
            detail = (
                f"the model's tokenizer hangs: {len(self._stuck)} requests have taken too long and cannot be"
            )
            raise ResourceExhaustedError(f"{detail} stopped; send token ids", RETRY_AFTER_S)


class _Attempt(Generic[T]):
    """A call of a function in a daemon thread, which may be abandoned."""

    def __init__(self, work: Callable[[Callable[[], bool]], T], bounds: Bounds) -> None:
        self._work: Callable[[Callable[[], bool]], T] | None = work
        self._bounds = bounds
        self._value: T | None = None
        self._error: BaseException | None = None
        self._wake = threading.Event()
        self._given_up = self.ended = False
        self._clock: int | None = None  # of the thread's CPU time
        # When the present text began: CPU time and wall-clock time.
        self._text_computed, self._text_began = 0.0, time.monotonic()

    def start(self) -> None:
        context = copy_context()
        threading.Thread(target=lambda: context.run(self._run), name="tokenizing", daemon=True).start()

    def wait(self) -> str | None:
        """Waits until the thread has ended or was abandoned; returns what it exceeded if it took too long."""
        began, left = time.monotonic(), min(self._bounds.text_s, self._bounds.all_s)
        while not self._wake.wait(max(left, _LEAST_WAIT_S)):
            text_left = self._left(self._bounds.text_s, self._text_computed, self._text_began)
            all_left = self._left(self._bounds.all_s, 0.0, began)
            left = min(text_left, all_left)
            if left <= 0:
                self._given_up = True
                one = text_left <= all_left
                what = f"of one text took longer than {self._bounds.text_s:g} s"
                return what if one else f"took longer than {self._bounds.all_s:g} s"
        return None

    def abandon(self) -> None:
        """Makes `wait` return now."""
        self._given_up = True
        self._wake.set()

    def result(self) -> T:
        """Returns the function's result or raises its error, once, after the thread has ended."""
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # it refers to this frame: a cycle
        return self._value  # type: ignore[return-value]

    def _left(self, seconds: float, computed: float, began: float) -> float:
        """Returns the seconds left, of CPU time since ``computed`` and of wall-clock time since ``began``."""
        by_clock = began + self._bounds.waiting * seconds - time.monotonic()
        now = self._computed()
        return by_clock if now is None else min(by_clock, computed + seconds - now)

    def _computed(self) -> float | None:
        """Returns the thread's CPU time in seconds; None if the system does not tell."""
        try:
            return None if self._clock is None else time.clock_gettime(self._clock)
        except OSError:  # the thread has just ended
            return None

    def _out_of_time(self) -> bool:
        """Begins the time of a text; returns whether the thread was given up. Called before each text."""
        self._text_computed, self._text_began = self._computed() or 0.0, time.monotonic()
        return self._given_up

    def _run(self) -> None:
        assert self._work is not None
        # The thread asks for its own clock, because asking for that of a thread that has ended is undefined.
        if hasattr(time, "pthread_getcpuclockid"):
            self._clock = time.pthread_getcpuclockid(threading.get_ident())
        try:
            self._value = self._work(self._out_of_time)
        except BaseException as error:  # noqa: BLE001 - raised where the result is awaited
            self._error = error
        finally:
            self._work = None
            if self._given_up:  # the result will not be used
                self._value = self._error = None
            self.ended = True
            self._wake.set()
