"""Patching sessions: the tensors of an objective stay in memory, to score circuits call by call."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress

from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.context import LOCAL_USER
from pahq_server.core.engine import Engine, Objective, ResolvedObjective
from pahq_server.core.errors import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    QuotaExceededError,
    ResourceExhaustedError,
)
from pahq_server.jobs import warnings as request_warnings
from pahq_server.jobs.session_calls import (
    Call,
    CallQueue,
    SessionCircuit,
    SessionCircuitReader,
    SessionLimits,
)
from pahq_server.methods import warnings as circuit_warnings
from pahq_server.scheduler.scheduler import Scheduler

# For how many closed or expired sessions it is remembered why they are gone.
REMEMBERED = 1000
RETRY_S = 30.0


class PatchingSession:
    """Scores circuits of one objective, many of them relative to a base circuit.

    Methods may be called from any thread.

    Args:
        name: resource name.
        calls: the queue of its calls.
        limits: bounds of sessions and their calls.
    """

    def __init__(self, name: str, calls: CallQueue, limits: SessionLimits) -> None:
        self.name, self.resolved, self.limits = name, calls.resolved, limits
        self._calls = calls
        self._reader = SessionCircuitReader(self.resolved.graph)
        # The engine keeps activations of a base circuit by its identity: one object per committed circuit.
        self._base = BaseCircuit(Circuit.full(self.resolved.graph))
        self._lock = threading.Lock()

    def measure_endpoints(self) -> Future[list[float]]:
        """Measures the full model and the empty circuit. Raises as `submit` does."""
        passes = PatchedPass(self._base), PatchedPass(BaseCircuit(Circuit.empty(self.resolved.graph)))
        return self.submit(Call(iter(passes), len(passes)))

    def warnings(self, full: float, empty: float) -> tuple[str, ...]:
        """Returns what may mislead about its scores, given what `measure_endpoints` found."""
        endpoints = circuit_warnings.Endpoints(self.resolved.objective.metric, full, empty)
        return (
            *request_warnings.of_request(self.resolved),
            *circuit_warnings.of_baseline(endpoints, self.resolved.clean_run),
        )

    def read(self, circuits: Sequence[SessionCircuit]) -> Call:
        """Returns a call that scores circuits, relative to the present base, to be queued by `submit`.

        Raises InvalidRequestError for an edge that is not there, or too many circuits.
        """
        most = self.limits.circuits
        if len(circuits) > most:
            raise InvalidRequestError("circuits", f"{len(circuits)} are too many for one call: {most}")
        base, read = self._base, self._reader.read
        readings = [read(f"circuits[{i}]", circuit, base) for i, circuit in enumerate(circuits)]
        return Call((reading.patched_pass for reading in readings), len(readings))

    def submit(self, call: Call) -> Future[list[float]]:
        """Queues a call; the future gives the metric of every circuit, in order.

        Raises NotFoundError if the session is gone, ResourceExhaustedError.
        """
        self._calls.submit(call)
        return call.future

    def commit(self, described: SessionCircuit) -> int:
        """Sets the base circuit; returns its number of edges.

        Raises InvalidRequestError, NotFoundError if the session is gone, and ConflictError if another
        commit came in between.
        """
        base = self._base
        circuit = self._reader.read("circuit", described, base).circuit
        with self._lock:
            self._calls.touch()
            if self._base is not base:
                raise ConflictError(f"the base circuit of {self.name} was changed at the same time")
            if circuit.key != base.circuit.key:
                self._base = BaseCircuit(circuit)
        return circuit.num_kept

    def close(self) -> None:
        """Gives the session up; calls that wait fail. Raises NotFoundError if it is gone already."""
        self._calls.close()

    @property
    def gone(self) -> str:
        """Why the session is not there any more; empty while it is."""
        return self._calls.gone


class SessionService:
    """Sessions of one server. Methods may be called from any thread.

    Args:
        engine: checks objectives.
        scheduler: keeps the sessions' tensors; ends the sessions when it is closed.
        batch: how many passes a session may ask for at once.
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
        self._sessions: dict[str, PatchingSession] = {}
        self._gone: dict[str, str] = {}
        self._lock = threading.Lock()

    def resolve(self, objective: Objective) -> ResolvedObjective:
        """Checks an objective. Raises InvalidRequestError or NotFoundError (model)."""
        return self._engine.resolve(objective)

    def open(
        self, resolved: ResolvedObjective, user: str = LOCAL_USER
    ) -> tuple[PatchingSession, Future[list[float]]]:
        """Opens a session; the future gives the metric of the full model and of the empty circuit.

        The session closes if the future fails or is cancelled. Raises ResourceExhaustedError.
        """
        name = f"users/{user}/sessions/{uuid.uuid4().hex}"
        calls = CallQueue(name, resolved, self._limits, self._batch, self._clock, self._scheduler.wake)
        session = PatchingSession(name, calls, self._limits)
        with self._lock:
            self._sweep()
            if len(self._sessions) >= self._limits.sessions:
                raise ResourceExhaustedError(f"{self._limits.sessions} sessions are open already", RETRY_S)
            self._check_quota(user)
            self._sessions[name] = session
        opened = session.measure_endpoints()
        opened.add_done_callback(lambda endpoints: _close_unless_open(session, endpoints))
        self._scheduler.add_session(calls)
        return session, opened

    def _check_quota(self, user: str) -> None:
        most, owner = self._limits.user_sessions, f"users/{user}"
        if most is not None and sum(name.startswith(f"{owner}/") for name in self._sessions) >= most:
            detail = f"{most} sessions are open, as many as each user may have"
            raise QuotaExceededError("sessions", owner, detail, RETRY_S)

    def find(self, name: str) -> PatchingSession:
        """Returns a session. Raises NotFoundError, which says why it is gone, where that is known."""
        with self._lock:
            self._sweep()
            if name in self._sessions:
                return self._sessions[name]
            raise NotFoundError(f"session {name!r}", self._gone.get(name, ""))

    def count(self) -> int:
        """Returns how many sessions are open."""
        with self._lock:
            self._sweep()
            return len(self._sessions)

    def close(self, name: str) -> None:
        """Gives a session up. Raises NotFoundError."""
        self.find(name).close()

    def _sweep(self) -> None:
        """Drops sessions that are gone, and remembers why they are."""
        for name, session in list(self._sessions.items()):
            if why := session.gone:
                self._gone[name] = why
                del self._sessions[name]
        while len(self._gone) > REMEMBERED:
            del self._gone[next(iter(self._gone))]


def _close_unless_open(session: PatchingSession, endpoints: Future[list[float]]) -> None:
    """Closes a session whose endpoints could not be measured, so that it could not be opened."""
    if endpoints.cancelled() or endpoints.exception() is not None:
        with suppress(NotFoundError):
            session.close()
