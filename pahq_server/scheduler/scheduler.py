"""The scheduler: one worker thread that feeds the rows of all jobs and held sessions to the engine."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pahq_server.core.engine import Engine, Outcome, Prepared, Row, SessionId, Work
from pahq_server.core.errors import ResourceExhaustedError, ServerError
from pahq_server.scheduler.held import HeldSessions, Holder

logger = logging.getLogger(__name__)

# How often an idle worker looks for held sessions that were given up without a word.
TICK_S = 5.0


class Run(Protocol):
    """Something that needs scores, step by step. Its methods are called from the worker thread."""

    prepared: Prepared

    def begin(self) -> Sequence[Row]:
        """The first rows."""
        ...

    def deliver(self, scores: Sequence[float]) -> Sequence[Row]:
        """Takes the scores of the last rows; returns the next ones, empty at the end."""
        ...

    def stopped(self) -> bool:
        """Whether it was asked to stop; then nothing more is delivered."""
        ...

    def end(self, error: Exception | None) -> None:
        """Called once, last: with the reason if it failed or could not start."""
        ...


@dataclass
class _Active:
    run: Run
    session: SessionId
    rows: Sequence[Row]


class Scheduler:
    """Runs several jobs at a time, each in the order of its arrival, beside held sessions.

    Args:
        engine: scores rows; used from the worker thread only.
        max_running: how many jobs hold tensors at the same time. Held sessions do not count.
    """

    def __init__(self, engine: Engine, max_running: int = 4) -> None:
        self._engine, self._max_running = engine, max_running
        self._queue: deque[Run] = deque()
        self._active: list[_Active] = []
        # Runs that found no room beside the others; tried again when one of these has ended.
        self._paused: deque[_Active] = deque()
        self._ended = False  # whether a run ended since the last try
        self._held = HeldSessions(engine)
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._loop, name="pahq-worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, run: Run) -> None:
        """Queues a run; after `close` it ends at once. May be called from any thread."""
        with self._wake:
            closing = self._closing
            if not closing:
                self._queue.append(run)
                self._wake.notify()
        if closing:
            _end(run, ServerError("the server stopped"))

    def hold(self, holder: Holder) -> None:
        """Opens a session before the next step; after `close` it ends at once. From any thread."""
        with self._wake:
            closing = self._closing
            if not closing:
                self._held.add(holder)
                self._wake.notify()
        if closing:
            holder.end(ServerError("the server stopped"))

    def wake(self) -> None:
        """To be called when a holder begins to wait. May be called from any thread."""
        with self._wake:
            self._wake.notify()

    @property
    def queued(self) -> int:
        return len(self._queue)

    def close(self) -> None:
        """Ends the worker after its current step; every run that is left ends with an error."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _loop(self) -> None:
        while self._wait_for_work():
            self._step()
        for active in self._active:
            self._retire(active, ServerError("the server stopped"))
        for active in self._paused:
            _end(active.run, ServerError("the server stopped"))
        for run in self._queue:
            _end(run, ServerError("the server stopped"))
        self._held.close(ServerError("the server stopped"))

    def _wait_for_work(self) -> bool:
        with self._wake:
            self._wake.wait_for(
                lambda: self._closing or self._queue or self._active or self._paused or self._held.waiting(),
                TICK_S if len(self._held) else None,
            )
            return not self._closing

    def _step(self) -> None:
        self._drop_stopped()
        self._resume()
        self._admit()
        self._active = [active for active in self._active if not self._retired_if_stopped(active)]
        held = self._held.collect()
        work = [Work(active.session, active.rows) for active in self._active] + [item for _, item in held]
        outcomes = iter(self._outcomes(work))
        self._active = [active for active in self._active if self._deliver(active, next(outcomes))]
        for (holder, _), outcome in zip(held, outcomes, strict=True):
            holder.deliver(outcome)

    def _outcomes(self, work: Sequence[Work]) -> Sequence[Outcome]:
        """One per work."""
        try:
            return self._engine.score(work) if work else ()
        except Exception as error:  # noqa: BLE001 - a dead worker would leave every job hanging
            return [error] * len(work)

    def _drop_stopped(self) -> None:
        """Ends runs that were stopped while they waited: their turn may be hours away."""
        paused = [active.run for active in self._paused if active.run.stopped()]
        self._paused = deque(active for active in self._paused if active.run not in paused)
        with self._wake:
            stopped = [run for run in self._queue if run.stopped()]
            if stopped:
                self._queue = deque(run for run in self._queue if run not in stopped)
        for run in paused + stopped:
            _end(run, None)

    def _resume(self) -> None:
        """Opens a paused run again, once another one has ended: one at a time, or they would fail in turn."""
        if not self._paused or (self._active and not self._ended):
            return
        self._ended, active = False, self._paused.popleft()
        try:
            active.session = self._engine.open(active.run.prepared)
        except ResourceExhaustedError as error:
            if self._active:
                self._paused.appendleft(active)
            else:
                _end(active.run, error)
        except Exception as error:  # noqa: BLE001 - a job that cannot start must not stop the others
            _end(active.run, error)
        else:
            self._active.append(active)

    def _admit(self) -> None:
        while self._queue and len(self._active) < self._max_running:
            run = self._queue.popleft()
            if run.stopped():
                _end(run, None)
                continue
            try:
                session = self._engine.open(run.prepared)
            except ResourceExhaustedError as error:
                if self._active:
                    # There will be room when one of them has ended.
                    self._queue.appendleft(run)
                    return
                _end(run, error)
                continue
            except Exception as error:  # noqa: BLE001 - a job that cannot start must not stop the others
                _end(run, error)
                continue
            active = _Active(run, session, ())
            if self._advance(active, None):
                self._active.append(active)

    def _deliver(self, active: _Active, outcome: Outcome) -> bool:
        """Hands an outcome to its run. Returns whether the run goes on."""
        if isinstance(outcome, ResourceExhaustedError) and len(self._active) > 1:
            self._engine.close(active.session)
            self._paused.append(active)
            return False
        if isinstance(outcome, Exception):
            self._retire(active, outcome)
            return False
        return self._advance(active, outcome)

    def _advance(self, active: _Active, scores: Sequence[float] | None) -> bool:
        try:
            active.rows = active.run.begin() if scores is None else active.run.deliver(scores)
        except Exception as error:  # noqa: BLE001 - a search that breaks must not stop the others
            self._retire(active, error)
            return False
        if not active.rows:
            self._retire(active, None)
        return bool(active.rows)

    def _retired_if_stopped(self, active: _Active) -> bool:
        stopped = active.run.stopped()
        if stopped:
            self._retire(active, None)
        return stopped

    def _retire(self, active: _Active, error: Exception | None) -> None:
        self._ended = True
        if error is not None:
            logger.warning("a run failed", exc_info=error)
        try:
            self._engine.close(active.session)
        except Exception:
            logger.exception("a session could not be closed")
        _end(active.run, error)


def _end(run: Run, error: Exception | None) -> None:
    try:
        run.end(error)
    except Exception:
        logger.exception("a run broke at its end")
