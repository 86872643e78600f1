"""The present call: who makes it, its deadline, and the threads that do its work."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pahq_server.core.context import Caller
from pahq_server.core.errors import NotFoundError

T = TypeVar("T")


class ExpiredError(Exception):
    """The deadline of the call has passed: nobody waits for its result any more."""


@dataclass(frozen=True)
class Call:
    """A call that was admitted.

    Args:
        caller: who makes it.
        deadline: on the monotonic clock, in seconds; infinite for none.
    """

    caller: Caller = field(default_factory=lambda: Caller(admin=True))
    deadline: float = float("inf")

    @property
    def expired(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() >= self.deadline


_current: ContextVar[Call] = ContextVar("pahq_call", default=Call())  # noqa: B039 - Call is frozen


def current_call() -> Call:
    """Returns the call that this task or thread works on."""
    return _current.get()


def set_call(call: Call) -> None:
    """Sets the call that the rest of this task works on. gRPC runs every call in a task of its own."""
    _current.set(call)


def check_owner(kind: str, name: str) -> None:
    """Checks that a resource belongs to the present caller. Admins may use everybody's.

    Args:
        kind: kind of the resource, in words: "job" or "session".
        name: name of the resource.

    Raises:
        NotFoundError: it is somebody else's. The error is the same as for a resource that does not exist.
    """
    if not current_call().caller.owns(name):
        raise NotFoundError(f"{kind} {name!r}")


@dataclass(frozen=True, eq=False)
class _Work:
    """A piece of work of one call: its user, whether it may take seconds, and the future of its result."""

    user: str
    slow: bool
    future: Future[Any]
    do: Callable[[], Any]


async def within(seconds: float, future: Future[T]) -> T:
    """Waits for the result of a future, which is cancelled if that takes longer.

    Raises:
        ExpiredError: it took longer.
    """
    try:
        async with asyncio.timeout(seconds):
            return await asyncio.wrap_future(future)
    except TimeoutError:
        raise ExpiredError from None


class FairThreadPool:
    """Runs the work of calls in a few threads, in which users take turns, however much one of them asks for.

    The number of admitted calls bounds how much can wait. Work of one user and one kind (slow or not) begins
    in order. Neither one user nor all slow work together may take the last thread, and one user's slow work
    takes half of the threads at most. In a pool of one thread, which cannot reserve any, all work takes
    turns.

    Args:
        workers: number of threads.
    """

    def __init__(self, workers: int) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="call")
        self._workers = workers
        self._most_of_user = self._most_slow = max(1, workers - 1)
        self._most_slow_of_user = max(1, workers // 2)
        # Work that waits, by user. The user whose turn is next comes first.
        self._waiting: dict[str, deque[_Work]] = {}
        self._running: Counter[str] = Counter()
        self._running_slow: Counter[str] = Counter()
        self._closed = False
        self._lock = threading.Lock()

    async def run(
        self, work: Callable[[], T], undo: Callable[[T], object] | None = None, slow: bool = False
    ) -> T:
        """Does the work of the present call, unless the call ends before a thread is free.

        Args:
            work: the function to call, in a copy of the present context.
            undo: called with the result if the call ends while the work is under way.
            slow: whether the work may take seconds, as tokenizing may.

        Raises:
            ExpiredError: the deadline of the call passed before a thread was free.
            Exception: whatever the work raises.
        """
        future: Future[T] = Future()
        context = copy_context()
        user = current_call().caller.user
        item = _Work(user, slow, future, lambda: context.run(_unless_expired, work))
        with self._lock:
            if self._closed:
                future.cancel()
            else:
                self._waiting.setdefault(user, deque()).append(item)
                self._begin()
        try:
            # Cancelling this cancels the future, which has no effect on work that is under way.
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if undo is not None:
                future.add_done_callback(lambda done: _undo(done, undo))
            raise

    def close(self) -> None:
        """Drops work that waits. Work that is under way is not waited for."""
        with self._lock:
            self._closed = True
            waiting = [item.future for items in self._waiting.values() for item in items]
            self._waiting.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)
        for future in waiting:
            future.cancel()

    def _begin(self) -> None:
        """Begins all work that may begin. The lock is held."""
        while (item := self._next()) is not None:
            self._running[item.user] += 1
            self._running_slow[item.user] += item.slow
            self._pool.submit(self._do, item)

    def _next(self) -> _Work | None:
        """Removes and returns the next work that may begin; None if there is none or all threads are busy."""
        if self._running.total() >= self._workers:
            return None
        for user, items in self._waiting.items():
            item = next((item for item in items if self._may_begin(item)), None)
            if item is not None:
                items.remove(item)
                del self._waiting[user]
                if items:
                    self._waiting[user] = items  # inserted last: the others' turns come first
                return item
        return None

    def _may_begin(self, item: _Work) -> bool:
        if item.future.cancelled():
            return True  # it takes no time
        if self._running[item.user] >= self._most_of_user:
            return False
        if not item.slow:
            return True
        own, all_slow = self._running_slow[item.user], self._running_slow.total()
        return own < self._most_slow_of_user and all_slow < self._most_slow

    def _do(self, item: _Work) -> None:
        future = item.future
        try:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = item.do()
            except BaseException as error:  # noqa: BLE001 - raised where the result is awaited
                future.set_exception(error)
            else:
                future.set_result(result)
        finally:
            with self._lock:
                self._running[item.user] -= 1
                self._running_slow[item.user] -= item.slow
                # Users come and go: their counts must not stay.
                for counts in (self._running, self._running_slow):
                    if not counts[item.user]:
                        del counts[item.user]
                if not self._closed:
                    self._begin()
            # The traceback of an error refers to this frame, and the frame to the future that holds the
            # error. Without these references the cycle would keep all of them until a garbage collection.
            del future, item


def _unless_expired(work: Callable[[], T]) -> T:
    if current_call().expired:
        raise ExpiredError
    return work()


def _undo(done: Future[T], undo: Callable[[T], object]) -> None:
    if not done.cancelled() and done.exception() is None:
        undo(done.result())
