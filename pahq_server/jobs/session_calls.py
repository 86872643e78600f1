"""Calls of a patching session: circuits as clients describe them, and the queue of what measures them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.engine import Outcome, ResolvedObjective
from pahq_server.core.errors import InvalidRequestError, NotFoundError, ResourceExhaustedError, ServerError
from pahq_server.core.graph import Graph
from pahq_server.core.operations import Operation, ScorePasses

# The activations of each base circuit take memory, and sharing a batch saves base circuits nothing.
BASE_CIRCUITS_PER_BATCH = 4
# How many names of edges a reader remembers, since searches repeat them in every call.
KNOWN_NAMES = 1 << 16


@dataclass(frozen=True)
class SessionLimits:
    """Bounds of patching sessions.

    Args:
        sessions: how many may be open at the same time.
        idle_s: seconds that a session lives without a call.
        circuits: how many one call may ask for.
        calls: how many calls of one session may wait at the same time.
        user_sessions: how many sessions of one user may be open; None for no limit but ``sessions``.
    """

    sessions: int = 16
    idle_s: float = 600.0
    circuits: int = 4096
    calls: int = 16
    user_sessions: int | None = None


@dataclass(frozen=True)
class SessionCircuit:
    """A circuit as a client describes it.

    Args:
        names: names of edges; repetitions count once.
        complete: whether these are all edges of the circuit; else it is the base circuit without them.
    """

    names: Sequence[str]
    complete: bool


@dataclass(frozen=True, eq=False)
class Reading:
    """A `SessionCircuit` that was found valid, as indices. Its pass is built only when it is needed.

    Args:
        base: the base circuit that it is relative to.
        edges: int64, shape [named edges]: indices, each once, ascending except that the edge named last stays
            last.
        complete: as in `SessionCircuit`.
    """

    base: BaseCircuit
    edges: NDArray[np.int64]
    complete: bool

    @property
    def patched_pass(self) -> PatchedPass:
        """The pass that measures the circuit: from the base, or from scratch if the circuit is complete."""
        return (
            PatchedPass(BaseCircuit(self.circuit))
            if self.complete
            else PatchedPass(self.base, tuple(self.edges.tolist()))
        )

    @property
    def circuit(self) -> Circuit:
        """The circuit itself."""
        kept = np.zeros_like(self.base.circuit.kept) if self.complete else self.base.circuit.kept.copy()
        kept[self.edges] = self.complete
        return Circuit(self.base.circuit.graph, kept)


class SessionCircuitReader:
    """Turns the names in `SessionCircuit` into edges of one graph. May be used from any thread."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._edge = lru_cache(KNOWN_NAMES)(graph.parse_edge)

    def read(self, field: str, circuit: SessionCircuit, base: BaseCircuit) -> Reading:
        """Finds the edges of one circuit.

        Args:
            field: path of the circuit in the request.
            circuit: as the client described it.
            base: the circuit that it is relative to.

        Raises InvalidRequestError for an edge that the graph, or the base to remove it from, lacks.
        """
        field = f"{field}.{'edges' if circuit.complete else 'removed'}"
        named = np.fromiter(self._edges(field, circuit.names), dtype=np.int64)
        # Policies that promote a head choose it by the last edge.
        edges = np.append(np.setdiff1d(named, named[-1:]), named[-1:])
        if not circuit.complete:
            missing = edges[~base.circuit.kept[edges]]
            if len(missing):
                name = self._graph.edge_name(int(missing[0]))
                raise InvalidRequestError(field, f"the base circuit has no edge {name!r}")
        return Reading(base, edges, circuit.complete)

    def _edges(self, field: str, names: Iterable[str]) -> Iterator[int]:
        try:
            yield from map(self._edge, names)
        except InvalidRequestError as error:
            raise InvalidRequestError(field, error.detail) from None


@dataclass(eq=False)
class Call:
    """Passes to score, and their scores so far. Cancelling ``future`` drops the passes that are left.

    Args:
        passes: the passes that the engine was not asked for yet.
        count: number of all passes of the call.
        scores: scores of the passes that are done, in order.
        future: gives the scores of all passes.
    """

    passes: Iterator[PatchedPass]
    count: int
    scores: list[float] = field(default_factory=list)
    future: Future[list[float]] = field(default_factory=Future)

    def take(self, most: int) -> list[PatchedPass]:
        """Returns the next passes, few enough for one batch."""
        passes: list[PatchedPass] = []
        base_circuits: set[BaseCircuit] = set()
        for each in self.passes:
            passes.append(each)
            base_circuits.add(each.base_circuit)
            if len(passes) == most or len(base_circuits) == BASE_CIRCUITS_PER_BATCH:
                break
        return passes

    def finish(self, error: Exception | None) -> None:
        """Resolves ``future``, with the error if there is one."""
        if not self.future.set_running_or_notify_cancel():
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(self.scores)


class CallQueue:
    """The calls of one session, and whether it is still there.

    It is an `InteractiveSession` to the scheduler's worker; all other methods may be called from any thread.

    Args:
        name: name of the session, ``users/{user}/sessions/{id}``.
        resolved: its objective.
        limits: what it may take.
        batch: how many passes to ask for at once.
        clock: seconds, for the idle time.
        wake: wakes the worker; called when there is something to do.
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
        """Queues a call. Raises NotFoundError if the session is gone, ResourceExhaustedError."""
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

    # InteractiveSession

    def waiting(self) -> bool:
        return bool(self._calls) or self.released()

    def released(self) -> bool:
        return bool(self.gone)

    def next_operation(self) -> Operation | None:
        with self._lock:
            while self._calls and self._calls[0].future.cancelled():
                self._pop()
            call = self._calls[0] if self._calls else None
        passes = () if call is None else call.take(self._batch)
        return ScorePasses(passes) if passes else None

    def deliver(self, outcome: Outcome) -> None:
        call = self._calls[0]
        if not isinstance(outcome, Exception):
            assert isinstance(outcome, list), "the scheduler has checked it"
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
