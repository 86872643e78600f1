"""A session: a measurement that is kept ready to score circuits, call by call."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future

from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.errors import ConflictError, InvalidRequestError
from pahq_server.jobs import warnings
from pahq_server.jobs.calls import Call, CallQueue, SessionLimits
from pahq_server.jobs.hypotheses import Hypothesis, HypothesisReader


class Session:
    """Scores circuits, many of them relative to a base circuit. Methods may be called from any thread.

    Args:
        name: resource name.
        calls: where its calls wait.
        limits: what it may take.
    """

    def __init__(self, name: str, calls: CallQueue, limits: SessionLimits) -> None:
        self.name, self.resolved, self.limits = name, calls.resolved, limits
        self._calls = calls
        self._reader = HypothesisReader(self.resolved.graph)
        # The engine keeps values of an anchor by its identity: one object per committed circuit.
        self._base = BaseCircuit(Circuit.full(self.resolved.graph))
        self._lock = threading.Lock()

    def measure_ends(self) -> Future[list[float]]:
        """The metric of the full model and of the empty circuit. Raises as `submit` does."""
        rows = PatchedPass(self._base), PatchedPass(BaseCircuit(Circuit.empty(self.resolved.graph)))
        return self.submit(Call(iter(rows), len(rows)))

    def warnings(self, full: float, empty: float) -> tuple[str, ...]:
        """What may mislead about its scores, given what `measure_ends` found."""
        ends = warnings.Ends(self.resolved.objective.metric, full, empty)
        return (
            *warnings.of_request(self.resolved),
            *warnings.of_baseline(ends, self.resolved.clean_run),
        )

    def read(self, hypotheses: Sequence[Hypothesis]) -> Call:
        """A call that scores circuits, relative to the present base. Nothing happens before its `submit`.

        Raises InvalidRequestError for an edge that is not there, or too many hypotheses.
        """
        most = self.limits.hypotheses
        if len(hypotheses) > most:
            raise InvalidRequestError("hypotheses", f"{len(hypotheses)} are too many for one call: {most}")
        base, read = self._base, self._reader.read
        readings = [read(f"hypotheses[{i}]", hypothesis, base) for i, hypothesis in enumerate(hypotheses)]
        return Call((reading.row for reading in readings), len(readings))

    def submit(self, call: Call) -> Future[list[float]]:
        """Queues a call; the future gives the metric of every hypothesis, in order.

        Raises NotFoundError if the session is gone, ResourceExhaustedError.
        """
        self._calls.submit(call)
        return call.future

    def commit(self, hypothesis: Hypothesis) -> int:
        """Sets the base circuit; returns its number of edges.

        Raises InvalidRequestError, NotFoundError if the session is gone, and ConflictError if another
        commit came in between.
        """
        base = self._base
        circuit = self._reader.read("circuit", hypothesis, base).circuit
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
