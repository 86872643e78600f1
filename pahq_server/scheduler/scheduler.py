"""The scheduler: one worker thread that feeds the rows of all running jobs to the engine."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pahq_server.core.engine import Engine, Outcome, Prepared, Row, SessionId, Work
from pahq_server.core.errors import ServerError

logger = logging.getLogger(__name__)


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
    """Runs several jobs at a time, each in the order of its arrival.

    Args:
        engine: scores rows; used from the worker thread only.
        max_running: how many jobs hold tensors at the same time.
    """

    def __init__(self, engine: Engine, max_running: int = 4) -> None:
        self._engine, self._max_running = engine, max_running
        self._queue: deque[Run] = deque()
        self._active: list[_Active] = []
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._loop, name="pahq-worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, run: Run) -> None:
        """Queues a run. May be called from any thread."""
        with self._wake:
            self._queue.append(run)
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
        for run in self._queue:
            run.end(ServerError("the server stopped"))

    def _wait_for_work(self) -> bool:
        with self._wake:
            self._wake.wait_for(lambda: self._closing or self._queue or self._active)
            return not self._closing

    def _step(self) -> None:
        self._admit()
        self._active = [active for active in self._active if not self._retired_if_stopped(active)]
        outcomes = self._engine.score([Work(active.session, active.rows) for active in self._active])
        pairs = zip(self._active, outcomes, strict=True)
        self._active = [active for active, outcome in pairs if self._deliver(active, outcome)]

    def _admit(self) -> None:
        while self._queue and len(self._active) < self._max_running:
            run = self._queue.popleft()
            if run.stopped():
                run.end(None)
                continue
            try:
                session = self._engine.open(run.prepared)
            except Exception as error:  # noqa: BLE001 - a job that cannot start must not stop the others
                run.end(error)
                continue
            active = _Active(run, session, ())
            if self._advance(active, None):
                self._active.append(active)

    def _deliver(self, active: _Active, outcome: Outcome) -> bool:
        """Hands an outcome to its run. Returns whether the run goes on."""
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
        if error is not None:
            logger.warning("a run failed", exc_info=error)
        self._engine.close(active.session)
        active.run.end(error)
