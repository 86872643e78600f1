"""Watching jobs: many watchers cost a job's thread no more than one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress

from pahq.v1 import discovery_pb2 as pb

from pahq_server.api import responses
from pahq_server.core.errors import ServerError
from pahq_server.jobs.job import Job

# A watcher hears of changes at most so often, and so do all watchers together: each event takes the
# interpreter from the worker for a moment. In between, changes are merged into the latest one. The end is
# told at once.
EVENTS_PER_SECOND, EVENTS_TO_ALL = 10, 200


class Watchers:
    """Those who watch jobs. All methods belong to the event loop."""

    def __init__(self) -> None:
        self._feeds: dict[Job, _Feed] = {}

    async def events(self, job: Job, after: int) -> AsyncGenerator[pb.Event]:
        """Events of a job with a sequence above ``after``, or a new place in the queue; the last is the end.

        Nothing is kept for a watcher but what it saw last: whoever is slow gets fewer events. Raises
        ServerError when the server stops before the job ends.
        """
        feed = self._feeds.get(job) or _Feed(job, self._pause)
        self._feeds[job] = feed
        changed = asyncio.Event()
        feed.waiting.add(changed)
        before, told = None, None
        try:
            while True:
                changed.clear()
                now = job.snapshot
                place = responses.place_of(job, now)
                position = place and place.position
                if now.sequence > after or (now.sequence == after and position not in (None, told)):
                    yield responses.event(job, now, before, place)
                    before, after, told = now, now.sequence, position
                if now.state.final:
                    return
                if job.interrupted:
                    raise ServerError("the server is stopping; the discovery goes on when it starts again")
                await changed.wait()
        finally:
            feed.waiting.discard(changed)
            if not feed.waiting and self._feeds.get(job) is feed:
                del self._feeds[job]
                feed.close()

    def _pause(self) -> float:
        """Seconds between two events of a watcher."""
        watchers = sum(len(feed.waiting) for feed in self._feeds.values())
        return max(1 / EVENTS_PER_SECOND, watchers / EVENTS_TO_ALL)


class _Feed:
    """Wakes the watchers of one job, after every change but not more often than they want to hear.

    `_notify` belongs to the thread that changes the job, the rest to the event loop. No change is missed:
    ``_new`` is set before ``_told`` is read, and read after ``_told`` is cleared.
    """

    def __init__(self, job: Job, pause: Callable[[], float]) -> None:
        self._job, self._pause = job, pause
        self.waiting: set[asyncio.Event] = set()
        self._loop = asyncio.get_running_loop()
        self._new = False  # something changed since `_wake`
        self._told = False  # the event loop will look
        self.close = job.listen(self._notify)

    def _notify(self) -> None:
        self._new = True
        if not self._told or self._job.snapshot.state.final:
            self._told = True
            # The loop is closed once the server has stopped; nobody is watching then.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._new = False
        for changed in self.waiting:
            changed.set()
        self._loop.call_later(self._pause(), self._listen_again)

    def _listen_again(self) -> None:
        self._told = False
        if self._new:
            self._notify()
