"""A time limit for tokenizing.

The expressions of a tokenizer.json can take exponential time, and the tokenizers library, written in Rust,
cannot be interrupted. So whatever tokenizes runs in a thread of its own. After the limit nobody waits for the
thread any more, and the call that waited fails. The thread ends before its next text; only within one text it
cannot be stopped. A tokenizer that holds several such threads is taken for broken until one comes back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, Generic, TypeVar

from pahq_server.core.errors import InvalidRequestError, ResourceExhaustedError

T = TypeVar("T")

# Below the usual 30 seconds that clients wait: they are told why.
TOKENIZE_S = 20.0
# Threads of one tokenizer that may be left behind: each keeps a core of the machine busy.
MOST_STUCK = 2
RETRY_AFTER_S = 60.0


class TimeLimit:
    """Runs the tokenizing of one model. Used from any thread.

    Args:
        seconds: for all texts of a request.
        most_stuck: threads that may be left behind before everything is refused at once.
    """

    def __init__(self, seconds: float = TOKENIZE_S, most_stuck: int = MOST_STUCK) -> None:
        self._seconds, self._most_stuck = seconds, most_stuck
        self._stuck: list[_Attempt[Any]] = []
        self._lock = threading.Lock()

    def run(self, work: Callable[[Callable[[], bool]], T], field: str = "task") -> T:
        """Returns what the work returns, or raises what it raises.

        Args:
            work: what to do; gets a function that tells whether it was given up.
            field: of the request, for the error.

        Raises:
            InvalidRequestError: it took too long.
            ResourceExhaustedError: the tokenizer still holds threads that took too long.
        """
        self._check()
        attempt = _Attempt(work)
        if not attempt.wait(self._seconds):
            with self._lock:
                self._stuck.append(attempt)
            detail = f"tokenizing took longer than {self._seconds:g} s and was given up"
            raise InvalidRequestError(field, f"{detail}: send fewer or shorter texts, or token ids")
        return attempt.result()

    def _check(self) -> None:
        with self._lock:
            self._stuck = [attempt for attempt in self._stuck if not attempt.ended]
            count = len(self._stuck)
        if count >= self._most_stuck:
            detail = f"the model's tokenizer hangs: {count} requests have been tokenized for more than"
            detail = f"{detail} {self._seconds:g} s and cannot be stopped; send token ids"
            raise ResourceExhaustedError(detail, RETRY_AFTER_S)


class _Attempt(Generic[T]):
    """Work in a thread that nobody has to wait for, not even the end of the process."""

    def __init__(self, work: Callable[[Callable[[], bool]], T]) -> None:
        self._work: Callable[[Callable[[], bool]], T] | None = work
        self._value: T | None = None
        self._error: BaseException | None = None
        self._given_up, self._done = threading.Event(), threading.Event()
        context = copy_context()
        threading.Thread(target=lambda: context.run(self._run), name="tokenizing", daemon=True).start()

    @property
    def ended(self) -> bool:
        return self._done.is_set()

    def wait(self, seconds: float) -> bool:
        """Whether it ended in time; if not, it is given up."""
        if not self._done.wait(seconds):
            self._given_up.set()
        return not self._given_up.is_set()

    def result(self) -> T:
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # it knows this frame
        return self._value  # type: ignore[return-value]

    def _run(self) -> None:
        assert self._work is not None
        try:
            self._value = self._work(self._given_up.is_set)
        except BaseException as error:  # noqa: BLE001 - raised where the result is awaited
            self._error = error
        finally:
            self._work = None
            if self._given_up.is_set():  # nobody asks
                self._value = self._error = None
            self._done.set()
