"""The scheduler: one worker thread that feeds the operations of all jobs and sessions to the engine."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence

from pahq_server.core.context import log_context
from pahq_server.core.engine import UNDER_WAY, Engine, EngineStateId, ResolvedObjective, Work
from pahq_server.core.errors import NoWorkerError, ResourceExhaustedError, ServerError, WorkerFailedError
from pahq_server.core.observer import Observer
from pahq_server.core.operations import Operation
from pahq_server.scheduler.batch import Finished, Part, run_batch
from pahq_server.scheduler.fairness import Accounts
from pahq_server.scheduler.interactive import InteractiveSession, InteractiveSessions
from pahq_server.scheduler.queue import QueueNotifier
from pahq_server.scheduler.run import Entry, Run
from pahq_server.scheduler.slots import Close, Limits, Slots

logger = logging.getLogger(__name__)

# How often an idle worker looks for expired sessions, since their expiry does not wake it.
TICK_S = 5.0
# The same while a job waits for memory that sessions hold, or for workers. It is tried again that often.
BLOCKED_TICK_S = 0.5
# Errors of the engine after which a job can go on once there is more memory.
OUT_OF_MEMORY = (ResourceExhaustedError, MemoryError)
# How often an engine that failed is checked, and the pause in between: memory may be short for a moment.
CHECKS, CHECK_PAUSE_S = 6, 0.5


class Scheduler:
    """Runs several jobs at a time beside interactive sessions; `fairness` decides who gets slots and turns.

    A step is one batch: one operation of every job whose user has a turn. A job without a slot keeps its run
    and the operation that it wants next, and no tensors: it goes on later with the same result.

    Args:
        engine: runs operations; used from the worker thread only.
        max_running: how many jobs hold tensors at the same time. Interactive sessions do not count.
        max_running_per_user: the same, of one user; None for no other limit.
        weights: weights of users; see `Accounts`.
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
        self._sessions = InteractiveSessions(engine, self._open_state, clock)
        self._notifier = QueueNotifier(self._slots, self._accounts, clock)
        self._failed, self._check_pause_s = failed, check_pause_s
        self._new: deque[Entry] = deque()  # since the last step
        # All entries that have not ended: after a failure in the middle of a step, only this is complete.
        self._entries: dict[int, Entry] = {}
        self._queued = 0
        self._queued_of: Counter[str] = Counter()
        # Whether a job waits for memory that only sessions hold, until one is closed or expires; or for
        # workers.
        self._blocked = False
        self._no_worker = False  # whether the engine had no worker when it was asked last
        self._wake = threading.Condition()
        self._closing = False
        self._failure = ""
        self._over = ServerError("the server stopped")  # the error of runs that are submitted after that
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

    def add_session(self, session: InteractiveSession) -> None:
        """Opens the state of a session soon; after `close` the session ends at once. From any thread."""
        with self._wake:
            closing = self._closing
            if not closing:
                self._sessions.add(session)
                self._wake.notify()
        if closing:
            session.end(self._over)

    def wake(self) -> None:
        """To be called when a session has something to do. May be called from any thread."""
        with self._wake:
            self._wake.notify()

    @property
    def queued(self) -> int:
        """How many runs have not begun yet."""
        return self._queued

    @property
    def running(self) -> int:
        """How many runs hold tensors. To be read from the worker thread."""
        return len(self._slots.open)

    def queued_of(self, user: str) -> int:
        """Returns how many of the `queued` runs are one user's."""
        return self._queued_of.get(user, 0)

    @property
    def failure(self) -> str:
        """Why the worker thread has ended although nobody asked it to; empty if it has not."""
        return self._failure

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
            self._sessions.close(error)
        except BaseException as raised:  # noqa: BLE001 - a thread that ends without a word leaves all waiting
            self._fail(raised)

    def _fail(self, raised: BaseException) -> None:
        """Ends everything that waits for this thread, which cannot go on.

        The failure may have come in the middle of a step, so slots and accounts cannot be relied on and are
        not used here.
        """
        why = f"{raised!r:.200}"
        self._failure = f"the server cannot compute any more ({why}) and has to be restarted"
        error = ServerError(self._failure)
        error.__cause__ = WorkerFailedError(why)
        try:
            logger.critical("the worker cannot go on; every run ends now", exc_info=raised)
            with self._wake:
                self._closing, self._over = True, error  # whatever comes from now on ends at once
                entries = list(self._entries.values())
            for entry in entries:
                _end(entry.run, error)
            self._sessions.abandon(error)
        finally:
            self._failed()

    def _wait_for_work(self) -> bool:
        with self._wake:
            tick = BLOCKED_TICK_S if self._blocked else TICK_S
            self._wake.wait_for(self._has_work, tick if self._blocked or len(self._sessions) else None)
            return not self._closing

    def _has_work(self) -> bool:
        jobs = self._new or (self._slots and not self._blocked)
        return bool(self._closing or jobs or self._sessions.waiting())

    def _step(self) -> None:
        self._take_in()
        waiting = self._sessions.users()
        self._accounts.attend([*self._slots.users, *sorted(waiting)])
        self._arrange()
        self._notifier.notify()
        self._batch(waiting)

    def _take_in(self) -> None:
        """Queues new runs, and ends those that were stopped, including those that wait for a slot."""
        while self._new:
            self._slots.add(self._new.popleft())
        for entry in [*self._slots.open, *self._slots.waiting()]:
            if entry.run.stopped():
                self._finish(entry, None)

    # Slots

    def _arrange(self) -> None:
        """Opens and closes states as `Slots.next` says, a bounded number per step: some may fail to open."""
        self._blocked = False
        for _ in range(4 * self._slots.limits.slots):
            change = self._slots.next()
            if change is None or self._blocked:
                return
            if isinstance(change, Close):
                if change.successor.user != change.claim.user:
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
            entry.state = self._open_state(entry.run.resolved)
        except WorkerFailedError:
            raise
        except Exception as raised:  # noqa: BLE001 - a job that cannot start must not stop the others
            error = raised
        seconds = self._clock() - started
        self._spend(entry, seconds)
        if error is None:
            self._accounts.measured_opening(seconds)
            self._opened(entry)
        elif isinstance(error, NoWorkerError):
            self._blocked = self._no_worker = True
        elif not (isinstance(error, OUT_OF_MEMORY) and self._waits_for_memory(entry)):
            self._finish(entry, error)

    def _open_state(self, resolved: ResolvedObjective) -> EngineStateId:
        """Opens a state; tries again if the engine failed for a moment only. Raises the engine's errors."""
        try:
            return self._engine.open(resolved)
        except ServerError:
            raise
        except Exception:
            if not self._recovered():
                raise
        return self._engine.open(resolved)

    def _recovered(self) -> bool:
        """Checks the engine after a failure.

        Returns:
            True if it failed the check at first and then passed it; False if it passed at once, so that the
            failure concerns one job alone.

        Raises WorkerFailedError if it fails every check.
        """
        for tried in range(CHECKS):
            if tried:
                time.sleep(self._check_pause_s)
            try:
                self._engine.check()
                return tried > 0
            except NoWorkerError:
                return True  # there will be others, or the same started anew
            except Exception as error:
                logger.error("the engine does not compute what it should", exc_info=error)
                last = error
        raise WorkerFailedError(f"the engine fails on what it should compute: {last}") from last

    def _waits_for_memory(self, entry: Entry) -> bool:
        """Tells whether an entry waits for memory, which another job or a session may free when it ends."""
        waits = self._slots.refused(entry)
        self._blocked = not waits and len(self._sessions) > 0
        return waits or self._blocked

    def _opened(self, entry: Entry) -> None:
        first = not entry.begun
        self._slots.opened(entry)
        if first:
            self._count_out(entry.user)
            self._observer.job_started(self._clock() - entry.submitted)
            self._advance(entry, entry.run.begin)

    def _suspend(self, entry: Entry, for_memory: bool = False) -> None:
        """Takes an entry's slot; the entry keeps its operation."""
        self._close(entry)
        self._slots.pause(entry, for_memory)

    # Batches

    def _batch(self, waiting: set[str]) -> None:
        """Runs one batch.

        Args:
            waiting: users whose sessions wait.
        """
        # A copy, since finished entries leave the list.
        ready = [entry for entry in [*self._slots.open] if not self._finished_if_stopped(entry)]
        users = {entry.user for entry in ready} | waiting
        # Without a worker nothing is charged, so that a turn would never pass on: all are told.
        turn = users if self._no_worker else self._accounts.turn(users)
        self._no_worker = False
        entries = [entry for entry in ready if entry.user in turn]
        asked = self._sessions.collect(turn, self._accounts.spend)
        parts = [_part(entry) for entry in entries]
        parts += [Part(session.resolved, work) for session, work in asked]
        if not parts:
            return
        finished = self._run(parts, len(asked))
        # An unexpected failure may come from the machine, and then every job would fail.
        unknown = any(_unknown_failure(part) for part in finished)
        recovered = unknown and self._recovered()
        done = [(part, end) for part, end in zip(parts, finished, strict=True) if not _goes_on(end)]
        ran = [part for part, end in done if not _had_no_worker(end)]
        seconds = sum(end.seconds for _, end in done)
        beside_others = len(self._slots.open) > 1
        for entry, end in zip(entries, finished, strict=False):
            entry.under_way = _goes_on(end)
        pairs = [pair for pair in zip(entries, finished, strict=False) if not _goes_on(pair[1])]
        if ran:
            self._accounts.measured_batch(seconds)
            self._observer.batch(sum(part.work.operation.weight for part in ran), seconds)
            passed = [entry for entry, part in pairs if not (_out_of_memory(part) or _had_no_worker(part))]
            self._slots.batch_passed(passed)
        for entry, part in pairs:
            self._spend(entry, part.seconds)
            if recovered and _unknown_failure(part):
                self._suspend(entry)  # it keeps its operation, which runs again in a new state
            else:
                self._deliver(entry, part, beside_others)
        for (session, _), part in zip(asked, finished[len(entries) :], strict=True):
            self._accounts.spend(session.user, part.seconds)
            session.deliver(part.outcome)

    def _run(self, parts: Sequence[Part], asked: int) -> list[Finished]:
        """Runs parts; returns when one of them is done, and the last ones, as many as were asked, all are."""
        finished = run_batch(self._engine, parts, self._clock)
        for number in range(len(parts) - asked, len(parts)):
            while _goes_on(finished[number]):
                (finished[number],) = run_batch(self._engine, [parts[number]], self._clock)
        return finished

    def _deliver(self, entry: Entry, part: Finished, beside_others: bool) -> None:
        """Hands an outcome to its run. A run that lacked memory beside others waits for its slot again."""
        if _had_no_worker(part):
            self._blocked = self._no_worker = True  # it is asked for again
        elif beside_others and _out_of_memory(part):
            self._suspend(entry, for_memory=True)
        elif isinstance(part.outcome, Exception):
            self._finish(entry, part.outcome)
        else:
            outcome = part.outcome
            self._advance(entry, lambda: entry.run.deliver(outcome))

    def _advance(self, entry: Entry, step: Callable[[], Operation | None]) -> None:
        """Gets the next operation of a run, which ends if there is none."""
        started = self._clock()
        error: Exception | None = None
        try:
            entry.operation = _valid(step())
        except Exception as raised:  # noqa: BLE001 - a method that breaks must not stop the others
            error = raised
        self._spend(entry, self._clock() - started)
        if error is None and entry.operation is None:
            self._notifier.ended(entry)
        if error is not None or entry.operation is None:
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
        """Notes that there is one queued run less."""
        with self._wake:
            self._queued -= 1
            self._queued_of[user] -= 1
            self._queued_of += Counter()  # drops those that have none

    def _close(self, entry: Entry) -> None:
        state, entry.state = entry.state, None
        if state is None:
            return
        try:
            self._engine.close(state)
        except Exception:
            logger.exception("the state of a run could not be closed")


def _valid(operation: Operation | None) -> Operation | None:
    """Returns the operation. Raises ValueError for a weight by which nobody could be charged."""
    if operation is not None and not operation.weight > 0:
        raise ValueError(f"the weight of an operation must be above 0, got {operation.weight}")
    return operation


def _part(entry: Entry) -> Part:
    assert entry.state is not None, "an entry with a slot has a state"
    assert entry.operation is not None, "an entry that has begun wants something, or has ended"
    return Part(entry.run.resolved, Work(entry.state, entry.operation))


def _unknown_failure(part: Finished) -> bool:
    """Tells whether a part failed with an unexpected exception."""
    return isinstance(part.outcome, Exception) and not isinstance(part.outcome, ServerError)


def _goes_on(part: Finished) -> bool:
    return part.outcome is UNDER_WAY


def _had_no_worker(part: Finished) -> bool:
    return isinstance(part.outcome, NoWorkerError)


def _out_of_memory(part: Finished) -> bool:
    return isinstance(part.outcome, OUT_OF_MEMORY)


def _end(run: Run, error: Exception | None) -> None:
    try:
        run.end(error)
    except Exception:
        logger.exception("a run broke at its end")
