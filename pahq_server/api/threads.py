"""What takes long happens in threads, of which there are few; users take turns for them."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, TypeVar

from pahq_server.api.calls import ExpiredError, current_call

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class _Work:
    """Work of one call.

    Args:
        user: whose call it is.
        slow: whether it may take seconds.
        future: of its result.
        do: does it.
    """

    user: str
    slow: bool
    future: Future[Any]
    do: Callable[[], Any]


class Threads:
    """Runs the work of calls: of several users in turn, however much one of them asked for.

    What waits is bounded by how many calls are admitted. Of each user, work of one kind begins in order. No
    user holds all threads, nor does all slow work together, so that what is quick finds one at once. For slow
    work, a user has half of the threads. Where there is one thread only, all take turns for it.

    Args:
        workers: how many threads.
    """

    def __init__(self, workers: int) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="call")
        self._workers = workers
        self._most_of_user = self._most_slow = max(1, workers - 1)
        self._most_slow_of_user = max(1, workers // 2)
        # What waits, by user; whose turn it is comes first.
        self._lines: dict[str, deque[_Work]] = {}
        self._running: Counter[str] = Counter()
        self._slow: Counter[str] = Counter()
        self._closed = False
        self._lock = threading.Lock()

    async def run(
        self, work: Callable[[], T], undo: Callable[[T], object] | None = None, slow: bool = False
    ) -> T:
        """Does the work of the present call, unless the call ends before a thread is free.

        Args:
            work: to do.
            undo: gets the result of work that was under way when its call ended.
            slow: whether it may take seconds, as tokenizing may.

        Raises what the work raises, ExpiredError.
        """
        future: Future[T] = Future()
        context = copy_context()
        user = current_call().caller.user
        item = _Work(user, slow, future, lambda: context.run(_unless_expired, work))
        with self._lock:
            if self._closed:
                future.cancel()
            else:
                self._lines.setdefault(user, deque()).append(item)
                self._begin()
        try:
            # If this is cancelled, so is the future; it has no effect on work that has begun.
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if undo is not None:
                future.add_done_callback(lambda done: _undo(done, undo))
            raise

    def close(self) -> None:
        """Waits for nothing: what has begun ends by itself."""
        with self._lock:
            self._closed = True
            waiting = [item.future for line in self._lines.values() for item in line]
            self._lines.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)
        for future in waiting:
            future.cancel()

    def _begin(self) -> None:
        """Begins whatever may begin. The lock is held."""
        while (item := self._next()) is not None:
            self._running[item.user] += 1
            self._slow[item.user] += item.slow
            self._pool.submit(self._do, item)

    def _next(self) -> _Work | None:
        """Takes the next piece of work out of its line; None if all threads are busy or none may begin."""
        if self._running.total() >= self._workers:
            return None
        for user, line in self._lines.items():
            item = next((item for item in line if self._may_begin(item)), None)
            if item is not None:
                line.remove(item)
                del self._lines[user]
                if line:
                    self._lines[user] = line  # behind the others
                return item
        return None

    def _may_begin(self, item: _Work) -> bool:
        if item.future.cancelled():
            return True  # it is over at once
        if self._running[item.user] >= self._most_of_user:
            return False
        if not item.slow:
            return True
        return self._slow[item.user] < self._most_slow_of_user and self._slow.total() < self._most_slow

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
                self._slow[item.user] -= item.slow
                # What is zero is dropped: users come and go.
                for counts in (self._running, self._slow):
                    if not counts[item.user]:
                        del counts[item.user]
                if not self._closed:
                    self._begin()
            # An error knows this frame: if that knew the future, they would keep each other.
            del future, item


def _unless_expired(work: Callable[[], T]) -> T:
    if current_call().expired:
        raise ExpiredError
    return work()


def _undo(done: Future[T], undo: Callable[[T], object]) -> None:
    if not done.cancelled() and done.exception() is None:
        undo(done.result())
