"""The scheduler: one worker thread that feeds the rows of all jobs and held sessions to the engine."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence

from pahq_server.core.context import log_context
from pahq_server.core.engine import Engine, EngineStateId, ResolvedObjective, Work
from pahq_server.core.errors import ResourceExhaustedError, ServerError, WorkerFailedError
from pahq_server.core.observer import Observer
from pahq_server.scheduler.batch import Part, Scored, score
from pahq_server.scheduler.entry import Entry
from pahq_server.scheduler.fairness import Accounts
from pahq_server.scheduler.held import HeldSessions, Holder
from pahq_server.scheduler.run import Run
from pahq_server.scheduler.slots import Close, Limits, Slots
from pahq_server.scheduler.telling import Teller

logger = logging.getLogger(__name__)

# How often an idle worker looks for held sessions that were given up without a word...
TICK_S = 5.0
# ...and, where a job waits for their memory, whether the job was stopped or fits by now.
BLOCKED_TICK_S = 0.5
# What the engine says where a job could go on if it had more memory.
OUT_OF_MEMORY = (ResourceExhaustedError, MemoryError)
# How often an engine that failed is tried again, and after which pause: memory may be short for a moment.
CHECKS, CHECK_PAUSE_S = 6, 0.5


class Scheduler:
    """Runs several jobs at a time beside held sessions; who gets slots and turns is up to `fairness`.

    A step is one batch: rows of all jobs whose user has a turn. A job without a slot keeps its search and
    the rows that it wants scored, and no tensors: it goes on later with the same result.

    Args:
        engine: scores rows; used from the worker thread only.
        max_running: how many jobs hold tensors at the same time. Held sessions do not count.
        max_running_per_user: the same, of one user; None for no other limit.
        weights: of users; see `Accounts`.
        observer: is told of batches, starts and preemptions.
        clock: seconds.
        failed: called once, from the worker thread, if it cannot go on; every run has ended by then.
        check_pause_s: seconds between two tries of an engine that failed.
    """

    def __init__(
        self,
        engine: Engine,
        max_running: int = 4,
        max_running_per_user: int | None = None,
        weights: Mapping[str, float] | None = None,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.perf_counter,
        failed: Callable[[], object] = lambda: None,
        check_pause_s: float = CHECK_PAUSE_S,
    ) -> None:
        self._engine, self._observer, self._clock = engine, observer or Observer(), clock
        self._accounts = Accounts(weights)
        self._slots: Slots[Entry] = Slots(self._accounts, Limits(max_running, max_running_per_user))
        self._held = HeldSessions(engine, self._open_session, clock)
        self._teller = Teller(self._slots, self._accounts, clock)
        self._failed, self._check_pause_s = failed, check_pause_s
        self._new: deque[Entry] = deque()  # since the last step
        # All that have not ended. Where the worker fails halfway through a step, nothing else may know them.
        self._entries: dict[int, Entry] = {}
        self._queued = 0
        self._queued_of: Counter[str] = Counter()
        # Whether a job waits for the memory of held sessions alone: for one to be given up, or expire.
        self._blocked = False
        self._wake = threading.Condition()
        self._closing = False
        self._over = ServerError("the server stopped")  # what runs end with from then on
        self._thread = threading.Thread(target=self._loop, name="pahq-worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, run: Run) -> None:
        """Queues a run; after `close` it ends at once. May be called from any thread."""
        with self._wake:
            closing = self._closing
            if not closing:
                entry = Entry(user=run.user, run=run, submitted=self._clock())
                self._entries[id(entry)] = entry
                self._new.append(entry)
                self._queued += 1
                self._queued_of[run.user] += 1
                self._wake.notify()
        if closing:
            _end(run, self._over)

    def hold(self, holder: Holder) -> None:
        """Opens a session before a step soon; after `close` it ends at once. From any thread."""
        with self._wake:
            closing = self._closing
            if not closing:
                self._held.add(holder)
                self._wake.notify()
        if closing:
            holder.end(self._over)

    def wake(self) -> None:
        """To be called when a holder begins to wait. May be called from any thread."""
        with self._wake:
            self._wake.notify()

    @property
    def queued(self) -> int:
        """Runs that were not begun yet."""
        return self._queued

    def queued_of(self, user: str) -> int:
        """Of these, one user's."""
        return self._queued_of.get(user, 0)

    def close(self) -> None:
        """Ends the worker after its current step; every run that is left ends with an error."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _loop(self) -> None:
        try:
            while self._wait_for_work():
                self._step()
            error = ServerError("the server stopped")
            for entry in [*self._slots.open, *self._slots.waiting(), *self._new]:
                self._finish(entry, error)
            self._held.close(error)
        except BaseException as raised:  # noqa: BLE001 - a thread that ends without a word leaves all waiting
            self._fail(raised)

    def _fail(self, raised: BaseException) -> None:
        """Ends everything that waits for this thread, which cannot go on.

        What was raised came from between two steps of a run, or the engine computes nothing any more: what
        is noted of slots and turns cannot be relied on, so nothing of it is used here.
        """
        why = f"{raised!r:.200}"
        error = ServerError(f"the server cannot compute any more ({why}) and has to be restarted")
        error.__cause__ = WorkerFailedError(why)
        try:
            logger.critical("the worker cannot go on; every run ends now", exc_info=raised)
            with self._wake:
                self._closing, self._over = True, error  # whatever comes from now on ends at once
                entries = list(self._entries.values())
            for entry in entries:
                _end(entry.run, error)
            self._held.abandon(error)
        finally:
            self._failed()

    def _wait_for_work(self) -> bool:
        with self._wake:
            tick = BLOCKED_TICK_S if self._blocked else TICK_S
            self._wake.wait_for(self._has_work, tick if len(self._held) else None)
            return not self._closing

    def _has_work(self) -> bool:
        jobs = self._new or (self._slots and not self._blocked)
        return bool(self._closing or jobs or self._held.waiting())

    def _step(self) -> None:
        self._take_in()
        holders = self._held.users()
        self._accounts.attend([*self._slots.users, *sorted(holders)])
        self._arrange()
        self._teller.tell()
        self._batch(holders)

    def _take_in(self) -> None:
        """Takes new runs in; ends those that were stopped, also where they wait: it may be for hours."""
        while self._new:
            self._slots.add(self._new.popleft())
        for entry in [*self._slots.open, *self._slots.waiting()]:
            if entry.run.stopped():
                self._finish(entry, None)

    # Slots

    def _arrange(self) -> None:
        """Opens and closes sessions. Not without end: openings that fail must not hold up the others."""
        self._blocked = False
        for _ in range(4 * self._slots.limits.slots):
            change = self._slots.next()
            if change is None or self._blocked:
                return
            if isinstance(change, Close):
                if change.heir.user != change.claim.user:
                    self._observer.preempted()
                self._suspend(change.claim)
            else:
                self._open(change.claim)

    def _open(self, entry: Entry) -> None:
        if entry.run.stopped():
            self._finish(entry, None)
            return
        started = self._clock()
        error: Exception | None = None
        try:
            entry.session = self._open_session(entry.run.resolved)
        except WorkerFailedError:
            raise
        except Exception as raised:  # noqa: BLE001 - a job that cannot start must not stop the others
            error = raised
        seconds = self._clock() - started
        self._spend(entry, seconds)
        if error is None:
            self._accounts.measured_opening(seconds)
            self._opened(entry)
        elif not (isinstance(error, OUT_OF_MEMORY) and self._waits_for_memory(entry)):
            self._finish(entry, error)

    def _open_session(self, resolved: ResolvedObjective) -> EngineStateId:
        """Opens a session, once more if the engine failed for a moment. Raises what the engine raises."""
        try:
            return self._engine.open(resolved)
        except ServerError:
            raise
        except Exception:
            if not self._recovered():
                raise
        return self._engine.open(resolved)

    def _recovered(self) -> bool:
        """Whether the engine failed and works again; False if it works, so that the failure is a job's own.

        Raises WorkerFailedError if it goes on failing.
        """
        for tried in range(CHECKS):
            if tried:
                time.sleep(self._check_pause_s)
            try:
                self._engine.check()
                return tried > 0
            except Exception as error:
                logger.error("the engine does not compute what it should", exc_info=error)
                last = error
        raise WorkerFailedError(f"the engine fails on what it should compute: {last}") from last

    def _waits_for_memory(self, entry: Entry) -> bool:
        """Whether there may be room for an entry when another job or a held session has ended."""
        waits = self._slots.refused(entry)
        self._blocked = not waits and len(self._held) > 0
        return waits or self._blocked

    def _opened(self, entry: Entry) -> None:
        first = not entry.begun
        self._slots.opened(entry)
        if first:
            self._count_out(entry.user)
            self._observer.job_started(self._clock() - entry.submitted)
            self._advance(entry, None)

    def _suspend(self, entry: Entry, crowded: bool = False) -> None:
        """Takes an entry's slot; it keeps its rows."""
        self._close(entry)
        self._slots.pause(entry, crowded)

    # Batches

    def _batch(self, holders: set[str]) -> None:
        # A copy: those that are finished leave the list.
        ready = [entry for entry in [*self._slots.open] if not self._finished_if_stopped(entry)]
        turn = self._accounts.turn({entry.user for entry in ready} | holders)
        entries = [entry for entry in ready if entry.user in turn]
        held = self._held.collect(turn, self._accounts.spend)
        parts = [Part(entry.run.resolved, Work(_session(entry), entry.rows)) for entry in entries]
        parts += [Part(holder.resolved, work) for holder, work in held]
        if not parts:
            return
        started = self._clock()
        scored = score(self._engine, parts, self._clock)
        # Failures that have no name may be of the machine, and then every job would meet them.
        unknown = any(_unknown_failure(part) for part in scored)
        recovered = unknown and self._recovered()
        seconds = self._clock() - started
        self._accounts.measured_batch(seconds)
        self._observer.batch(sum(len(part.work.rows) for part in parts), seconds)
        crowd = len(self._slots.open) > 1
        pairs = list(zip(entries, scored, strict=False))
        self._slots.batch_passed([entry for entry, part in pairs if not _crowded_out(part)])
        for entry, part in pairs:
            self._spend(entry, part.seconds)
            if recovered and _unknown_failure(part):
                self._suspend(entry)  # it keeps its rows, and has them scored by a session of its own again
            else:
                self._deliver(entry, part, crowd)
        for (holder, _), part in zip(held, scored[len(entries) :], strict=True):
            self._accounts.spend(holder.user, part.seconds)
            holder.deliver(part.outcome)

    def _deliver(self, entry: Entry, part: Scored, crowd: bool) -> None:
        """Hands an outcome to its run."""
        if crowd and _crowded_out(part):
            self._suspend(entry, crowded=True)
        elif isinstance(part.outcome, Exception):
            self._finish(entry, part.outcome)
        else:
            self._advance(entry, part.outcome)

    def _advance(self, entry: Entry, scores: Sequence[float] | None) -> None:
        started = self._clock()
        error: Exception | None = None
        try:
            entry.rows = entry.run.begin() if scores is None else entry.run.deliver(scores)
        except Exception as raised:  # noqa: BLE001 - a search that breaks must not stop the others
            error = raised
        self._spend(entry, self._clock() - started)
        if error is None and not entry.rows:
            self._teller.ended(entry)
        if error is not None or not entry.rows:
            self._finish(entry, error)

    def _spend(self, entry: Entry, seconds: float) -> None:
        entry.charged += seconds
        self._accounts.spend(entry.user, seconds)
        entry.run.charge(seconds)

    # Ends

    def _finished_if_stopped(self, entry: Entry) -> bool:
        stopped = entry.run.stopped()
        if stopped:
            self._finish(entry, None)
        return stopped

    def _finish(self, entry: Entry, error: Exception | None) -> None:
        if error is not None and not self._closing:
            with log_context(job=entry.run.name, user=entry.user):
                logger.warning("a run failed", exc_info=error)
        self._close(entry)
        self._slots.leave(entry)
        if not entry.begun:
            self._count_out(entry.user)
        self._entries.pop(id(entry), None)
        _end(entry.run, error)

    def _count_out(self, user: str) -> None:
        """One queued run less."""
        with self._wake:
            self._queued -= 1
            self._queued_of[user] -= 1
            self._queued_of += Counter()  # drops those that have none

    def _close(self, entry: Entry) -> None:
        session, entry.session = entry.session, None
        if session is None:
            return
        try:
            self._engine.close(session)
        except Exception:
            logger.exception("a session could not be closed")


def _session(entry: Entry) -> EngineStateId:
    assert entry.session is not None, "an entry with a slot has a session"
    return entry.session


def _unknown_failure(part: Scored) -> bool:
    """Whether a part failed with something that no rule of the service raises."""
    return isinstance(part.outcome, Exception) and not isinstance(part.outcome, ServerError)


def _crowded_out(part: Scored) -> bool:
    return isinstance(part.outcome, OUT_OF_MEMORY)


def _end(run: Run, error: Exception | None) -> None:
    try:
        run.end(error)
    except Exception:
        logger.exception("a run broke at its end")
