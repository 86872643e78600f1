"""The session service: opens, finds and closes sessions."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

from pahq_server.core.context import LOCAL_USER
from pahq_server.core.engine import Engine, Objective, ResolvedObjective
from pahq_server.core.errors import NotFoundError, QuotaExceededError, ResourceExhaustedError
from pahq_server.jobs.calls import CallQueue, SessionLimits
from pahq_server.jobs.session import Session
from pahq_server.scheduler.scheduler import Scheduler

# Sessions that are gone and of which it is still known why.
REMEMBERED = 1000
RETRY_S = 30.0


class SessionService:
    """Sessions of one server. Methods may be called from any thread.

    Args:
        engine: checks measurements.
        scheduler: holds the sessions' tensors; ends the sessions when it is closed.
        batch: how many rows a session may ask for at once.
        limits: what sessions may take.
        clock: seconds, for the idle time.
    """

    def __init__(
        self,
        engine: Engine,
        scheduler: Scheduler,
        batch: int,
        limits: SessionLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine, self._scheduler, self._batch = engine, scheduler, batch
        self._limits, self._clock = limits, clock
        self._sessions: dict[str, Session] = {}
        self._gone: dict[str, str] = {}
        self._lock = threading.Lock()

    def resolve(self, objective: Objective) -> ResolvedObjective:
        """Checks a measurement. Raises InvalidRequestError or NotFoundError (model)."""
        return self._engine.resolve(objective)

    def open(
        self, resolved: ResolvedObjective, user: str = LOCAL_USER
    ) -> tuple[Session, Future[list[float]]]:
        """A session; the future gives the metric of the full model and of the empty circuit.

        The session closes if the future fails or is cancelled. Raises ResourceExhaustedError.
        """
        name = f"users/{user}/sessions/{uuid.uuid4().hex}"
        calls = CallQueue(name, resolved, self._limits, self._batch, self._clock, self._scheduler.wake)
        session = Session(name, calls, self._limits)
        with self._lock:
            self._sweep()
            if len(self._sessions) >= self._limits.sessions:
                raise ResourceExhaustedError(f"{self._limits.sessions} sessions are open already", RETRY_S)
            self._check_quota(user)
            self._sessions[name] = session
        opened = session.measure_ends()
        opened.add_done_callback(lambda ends: _close_unless_open(session, ends))
        self._scheduler.hold(calls)
        return session, opened

    def _check_quota(self, user: str) -> None:
        most, owner = self._limits.user_sessions, f"users/{user}"
        if most is not None and sum(name.startswith(f"{owner}/") for name in self._sessions) >= most:
            detail = f"{most} sessions are open, as many as each user may have"
            raise QuotaExceededError("sessions", owner, detail, RETRY_S)

    def find(self, name: str) -> Session:
        """Raises NotFoundError, which says why for a session that is gone."""
        with self._lock:
            self._sweep()
            if name in self._sessions:
                return self._sessions[name]
            raise NotFoundError(f"session {name!r}", self._gone.get(name, ""))

    def count(self) -> int:
        """How many sessions are open."""
        with self._lock:
            self._sweep()
            return len(self._sessions)

    def close(self, name: str) -> None:
        """Raises NotFoundError."""
        self.find(name).close()

    def _sweep(self) -> None:
        """Forgets sessions that are gone, but not why."""
        for name, session in list(self._sessions.items()):
            if why := session.gone:
                self._gone[name] = why
                del self._sessions[name]
        while len(self._gone) > REMEMBERED:
            del self._gone[next(iter(self._gone))]


def _close_unless_open(session: Session, ends: Future[list[float]]) -> None:
    if ends.cancelled() or ends.exception() is not None:
        with suppress(NotFoundError):
            session.close()
