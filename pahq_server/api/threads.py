"""What takes long happens in threads, of which there are few."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from pahq_server.api.calls import ExpiredError, current_call

T = TypeVar("T")


class Threads:
    """Runs the work of calls. What waits is bounded by how many calls are admitted.

    Args:
        workers: how many threads.
    """

    def __init__(self, workers: int) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="call")

    async def run(self, work: Callable[[], T], undo: Callable[[T], object] | None = None) -> T:
        """Does the work of the present call, unless the call ends before a thread is free.

        Args:
            work: to do.
            undo: gets the result of work that was under way when its call ended.

        Raises what the work raises, ExpiredError.
        """
        future = self._pool.submit(copy_context().run, _unless_expired, work)
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


def _unless_expired(work: Callable[[], T]) -> T:
    if current_call().expired:
        raise ExpiredError
    return work()


def _undo(done: Future[T], undo: Callable[[T], object]) -> None:
    if not done.cancelled() and done.exception() is None:
        undo(done.result())
