"""What takes long happens in threads, of which there are few; users take turns for them."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar

from pahq_server.api.calls import ExpiredError, current_call

T = TypeVar("T")


class Threads:
    """Runs the work of calls: of each user in order, of several in turn, however much one of them asked for.

    What waits is bounded by how many calls are admitted.

    Args:
        workers: how many threads.
    """

    def __init__(self, workers: int) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="call")
        # What waits, by user; whose turn it is comes first.
        self._lines: dict[str, deque[tuple[Future[Any], Callable[[], Any]]]] = {}
        self._lock = threading.Lock()

    async def run(self, work: Callable[[], T], undo: Callable[[T], object] | None = None) -> T:
        """Does the work of the present call, unless the call ends before a thread is free.

        Args:
            work: to do.
            undo: gets the result of work that was under way when its call ended.

        Raises what the work raises, ExpiredError.
        """
        future: Future[T] = Future()
        context = copy_context()
        with self._lock:
            line = self._lines.setdefault(current_call().caller.user, deque())
            line.append((future, lambda: context.run(_unless_expired, work)))
        self._pool.submit(self._do_next)
        try:
            # If this is cancelled, so is the future; it has no effect on work that has begun.
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if undo is not None:
                future.add_done_callback(lambda done: _undo(done, undo))
            raise

    def close(self) -> None:
        """Waits for nothing: what has begun ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            waiting = [future for line in self._lines.values() for future, _ in line]
            self._lines.clear()
        for future in waiting:
            future.cancel()

    def _do_next(self) -> None:
        """One piece of work; there is one of these for each."""
        with self._lock:
            if not self._lines:  # closed
                return
            user = next(iter(self._lines))
            line = self._lines.pop(user)
            future, work = line.popleft()
            if line:
                self._lines[user] = line  # behind the others
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - raised where the result is awaited
            future.set_exception(error)
            # The error knows this frame: if that knew the future, they would keep each other.
            del future, work
        else:
            future.set_result(result)


def _unless_expired(work: Callable[[], T]) -> T:
    if current_call().expired:
        raise ExpiredError
    return work()


def _undo(done: Future[T], undo: Callable[[T], object]) -> None:
    if not done.cancelled() and done.exception() is None:
        undo(done.result())
