"""Housekeeping: stores the ends of jobs that could not be stored at once, and deletes old jobs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from pahq_server.core.errors import StorageError
from pahq_server.jobs.job import Job
from pahq_server.store.base import JobStore
from pahq_server.store.records import Retention

logger = logging.getLogger(__name__)

# Seconds between two tries to store an end.
RETRY_S = 1.0
# Least seconds between two searches for jobs to delete.
PAUSE_S = 0.2
# Seconds between two looks at the jobs of all users, since jobs may grow too old. When a job ends, the older
# jobs of its user are looked at at once, since there may be too many.
PRUNE_S = 600.0
# Seconds between deleting two portions of old jobs, so that others can write in between.
PORTION_PAUSE_S = 0.01

# A clock that is ahead by more than the tolerance has jumped; so has one that, after a restart, is ahead of
# the last stored time by more than the downtime. A jump is believed once it has lasted for `DOUBT_S`.
TOLERANCE_S, DOWNTIME_S, DOUBT_S = 600.0, 86_400.0, 86_400.0


def steady_clock() -> float:
    """Returns seconds that nobody can set; they also pass while the machine sleeps, if the system can."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)


class RetentionClock:
    """Tells the time by which finished jobs grow old.

    This is the time of the wall clock, except that a jump ahead is believed only after a day: a clock that is
    set wrong for a moment must not cause every artifact to be deleted. A clock that is set back makes jobs be
    kept longer.

    Args:
        known: the latest time that an earlier process stored; None if there is none.
        wall: seconds since the epoch.
        steady: seconds that pass whatever the wall clock is set to.
    """

    def __init__(
        self,
        known: float | None,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = steady_clock,
    ) -> None:
        self._wall, self._steady = wall, steady
        # The wall clock was at most here when the steady one was there.
        self._at, self._since = wall() if known is None else known + DOWNTIME_S, steady()
        self._doubted: float | None = None  # since when it is ahead, on the steady clock

    def now(self) -> float:
        """Returns seconds since the epoch."""
        wall, steady = self._wall(), self._steady()
        expected = self._at + steady - self._since
        if wall > expected + TOLERANCE_S:
            if self._doubted is None:
                self._doubted = steady
                logger.warning(
                    "the clock is %.0f s ahead of what it should be: jobs grow old by it only when that has "
                    "lasted a day",
                    wall - expected,
                )
            if steady - self._doubted < DOUBT_S:
                return expected
        self._at, self._since, self._doubted = wall, steady, None
        return wall


class Housekeeper:
    """Stores late ends and deletes old jobs, in a thread of its own.

    Args:
        store: the store of jobs.
        retention: how long finished jobs are kept.
        retry_s: seconds between two tries to store an end.
    """

    def __init__(self, store: JobStore, retention: Retention, retry_s: float = RETRY_S) -> None:
        self._store, self._retention, self._retry_s = store, retention, retry_s
        self._pending: list[tuple[Job, Callable[[], None]]] = []
        self._ended: set[str] = set()  # users whose jobs have ended
        self._all_at = 0.0  # when to look at all users again, on the monotonic clock
        self._clock: RetentionClock | None = None  # once the store was asked what time it was
        self._closing = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._loop, name="pahq-housekeeper", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def later(self, job: Job, end: Callable[[], None]) -> None:
        """Ends a job as soon as that can be stored. May be called from any thread."""
        with self._wake:
            self._pending.append((job, end))
            self._wake.notify()

    def ended(self, user: str) -> None:
        """To be called, from any thread, when a job of a user has ended: an older one may have to go."""
        with self._wake:
            self._ended.add(user)
            self._wake.notify()

    def close(self) -> None:
        """Ends the thread; jobs whose end could not be stored are left to a later process."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()
        for job, _ in self._pending:
            job.interrupt()

    def _loop(self) -> None:
        self._work()
        while self._wait():
            self._work()
            with self._wake:
                self._wake.wait_for(lambda: self._closing, PAUSE_S)

    def _work(self) -> None:
        try:
            self._retry()
            self._prune()
        except Exception:  # nobody would notice that ends are stored and old jobs deleted no more
            logger.exception("housekeeping failed, and is tried again")

    def _wait(self) -> bool:
        """Waits until there is something to do; returns False at the end."""
        with self._wake:
            if self._pending:
                self._wake.wait_for(lambda: self._closing, self._retry_s)
            else:
                self._wake.wait_for(lambda: self._closing or self._pending or self._ended, PRUNE_S)
            return not self._closing

    def _retry(self) -> None:
        with self._wake:
            pending = list(self._pending)
        for one in pending:
            job, end = one
            try:
                end()
            except StorageError as error:
                if not error.damaged:
                    return  # the others would fail as well
                job.fail_unstored(error)
            except Exception:  # nobody else would store the ends of other jobs
                logger.exception("the end of %s is not stored", job.name)
            with self._wake:
                self._pending.remove(one)

    def _prune(self) -> None:
        with self._wake:
            users: set[str] | set[None] = self._ended
            self._ended = set()
        if time.monotonic() >= self._all_at:
            users, self._all_at = {None}, time.monotonic() + PRUNE_S
        try:
            if self._clock is None:
                self._clock = RetentionClock(self._store.latest())
            now = self._clock.now()
            for user in users:
                while self._store.prune(self._retention, now, user) and not self._closing:
                    time.sleep(PORTION_PAUSE_S)
        except StorageError as error:
            logger.warning("old jobs could not be deleted: %s", error)
