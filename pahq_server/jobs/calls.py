"""Calls of a session: each asks for the scores of some rows, and they are answered one after another."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from pahq_server.core.circuit import BaseCircuit, PatchedPass
from pahq_server.core.engine import Outcome, ResolvedObjective
from pahq_server.core.errors import NotFoundError, ResourceExhaustedError, ServerError

# The values of each anchor take memory, and sharing a step saves anchors nothing.
BASE_CIRCUITS_PER_STEP = 4


@dataclass(frozen=True)
class SessionLimits:
    """What sessions may take.

    Args:
        sessions: open at the same time.
        user_sessions: of one user; None for no other limit.
        idle_s: seconds that a session lives without a call.
        hypotheses: per call.
        calls: of one session that wait at the same time.
    """

    sessions: int = 16
    idle_s: float = 600.0
    hypotheses: int = 4096
    calls: int = 16
    user_sessions: int | None = None


@dataclass(eq=False)
class Call:
    """Rows to score, and their scores so far. Cancelling ``future`` drops the rows that are left."""

    rows: Iterator[PatchedPass]
    count: int
    scores: list[float] = field(default_factory=list)
    future: Future[list[float]] = field(default_factory=Future)

    def take(self, most: int) -> list[PatchedPass]:
        """The next rows, few enough for one step."""
        rows: list[PatchedPass] = []
        base_circuits: set[BaseCircuit] = set()
        for row in self.rows:
            rows.append(row)
            base_circuits.add(row.base_circuit)
            if len(rows) == most or len(base_circuits) == BASE_CIRCUITS_PER_STEP:
                break
        return rows

    def finish(self, error: Exception | None) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(self.scores)


class CallQueue:
    """The calls of one session, and whether it is still there.

    It is a `Holder` to the scheduler's worker; all other methods may be called from any thread.

    Args:
        name: of the session, ``users/{user}/sessions/{id}``.
        prepared: its measurement.
        limits: what it may take.
        batch: how many rows to ask for at once.
        clock: seconds, for the idle time.
        wake: to be called when there is something to do.
    """

    def __init__(
        self,
        name: str,
        resolved: ResolvedObjective,
        limits: SessionLimits,
        batch: int,
        clock: Callable[[], float],
        wake: Callable[[], None],
    ) -> None:
        self.resolved, self.user = resolved, name.split("/")[1]
        self._name, self._limits, self._batch = name, limits, batch
        self._clock, self._wake = clock, wake
        self._calls: deque[Call] = deque()
        self._used = clock()
        self._gone = ""  # why the session is not there any more
        self._lock = threading.Lock()

    def submit(self, call: Call) -> None:
        """Raises NotFoundError if the session is gone, ResourceExhaustedError."""
        with self._lock:
            self._touch()
            if len(self._calls) >= self._limits.calls:
                raise ResourceExhaustedError(f"{len(self._calls)} calls of {self._name} wait already", 1.0)
            if call.count:
                self._calls.append(call)
        if call.count:
            self._wake()
        else:
            call.finish(None)

    def touch(self) -> None:
        """Counts as use. Raises NotFoundError if the session is gone."""
        with self._lock:
            self._touch()

    def close(self) -> None:
        """Gives the session up; calls that wait fail. Raises NotFoundError if it is gone already."""
        with self._lock:
            self._touch()
            self._gone = "it was closed"
        self._wake()

    @property
    def gone(self) -> str:
        """Why the session is not there any more; empty while it is."""
        with self._lock:
            self._expire()
            return self._gone

    # Holder

    def waiting(self) -> bool:
        return bool(self._calls) or self.released()

    def released(self) -> bool:
        return bool(self.gone)

    def next_rows(self) -> Sequence[PatchedPass]:
        with self._lock:
            while self._calls and self._calls[0].future.cancelled():
                self._pop()
            call = self._calls[0] if self._calls else None
        return () if call is None else call.take(self._batch)

    def deliver(self, outcome: Outcome) -> None:
        call = self._calls[0]
        if not isinstance(outcome, Exception):
            call.scores += outcome
            if len(call.scores) < call.count:
                return
        with self._lock:
            self._pop()
        call.finish(outcome if isinstance(outcome, Exception) else None)

    def end(self, error: Exception | None) -> None:
        with self._lock:
            # An unexpected exception may quote anything; its details belong into the log.
            self._gone = self._gone or (str(error) if isinstance(error, ServerError) else "it failed to open")
            calls, self._calls = self._calls, deque()
        for call in calls:
            call.finish(error or NotFoundError(f"session {self._name!r}", self._gone))

    # With the lock held

    def _touch(self) -> None:
        self._expire()
        if self._gone:
            raise NotFoundError(f"session {self._name!r}", self._gone)
        self._used = self._clock()

    def _expire(self) -> None:
        if not self._gone and not self._calls and self._clock() - self._used >= self._limits.idle_s:
            self._gone = f"it expired after {self._limits.idle_s:g} s without a call"

    def _pop(self) -> None:
        self._calls.popleft()
        self._used = self._clock()
