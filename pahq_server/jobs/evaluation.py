"""Evaluations: given circuits are measured, when it is their user's turn, and nothing is stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.circuit import Circuit, EdgeSet, PatchedPass
from pahq_server.core.context import LOCAL_USER
from pahq_server.core.engine import Objective, ResolvedObjective
from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.operations import Operation, ScorePasses
from pahq_server.jobs import warnings as request_warnings
from pahq_server.jobs.session_calls import BASE_CIRCUITS_PER_BATCH, KNOWN_NAMES
from pahq_server.jobs.unstored_run import UnstoredRun, UnstoredService
from pahq_server.methods import warnings as circuit_warnings
from pahq_server.methods.circuits import from_scratch, full_and_empty

# How many circuits one evaluation measures at most.
MOST_CIRCUITS = 1000

GivenCircuit: TypeAlias = EdgeSet | Sequence[str]
"""A circuit of a client: its edges by number, or their names in any order; repetitions count once."""


@dataclass(frozen=True)
class CircuitMetrics:
    """The metric of circuits, in order, of the full model and of the empty circuit. Lower is better."""

    values: tuple[float, ...]
    full: float
    empty: float


class PackedCircuit:
    """A circuit in little memory: a thousand circuits of a large graph may wait in one evaluation."""

    def __init__(self, circuit: Circuit) -> None:
        self._graph = circuit.graph
        bits, edges = np.packbits(circuit.kept), np.flatnonzero(circuit.kept)
        # A request of a few bytes, such as a thousand empty circuits, is not to take a bit for every edge.
        self._packed: NDArray[Any] = bits if bits.nbytes < edges.nbytes else edges

    def unpack(self) -> Circuit:
        """Returns the circuit."""
        count = self._graph.num_edges
        if self._packed.dtype == np.uint8:
            return Circuit(self._graph, np.unpackbits(self._packed, count=count).astype(bool))
        kept = np.zeros(count, dtype=bool)
        kept[self._packed] = True
        return Circuit(self._graph, kept)


class EvaluationRun(UnstoredRun[CircuitMetrics]):
    """Measures circuits, the full model and the empty circuit.

    Args:
        resolved: the objective.
        circuits: the circuits that are measured.
        user: who asked for it.
    """

    def __init__(self, resolved: ResolvedObjective, circuits: Sequence[PackedCircuit], user: str) -> None:
        super().__init__(resolved, user)
        self.circuits = circuits
        self._passes = self._all_passes()
        self._scores: list[float] = []

    def _all_passes(self) -> Iterator[PatchedPass]:
        """Yields passes for the full model, the empty circuit and the circuits, each from scratch."""
        given = (from_scratch(packed.unpack()) for packed in self.circuits)
        return chain(full_and_empty(self.resolved.graph), given)

    def next_operation(self) -> Operation | None:
        """Returns an operation of one batch, since others wait for their turn meanwhile; None at the end."""
        passes = tuple(islice(self._passes, BASE_CIRCUITS_PER_BATCH))
        return ScorePasses(passes) if passes else None

    def take(self, result: object) -> None:
        assert isinstance(result, list), "the scheduler has checked it"
        self._scores += result

    def result(self) -> CircuitMetrics:
        full, empty, *values = self._scores
        return CircuitMetrics(tuple(values), full, empty)

    def done(self) -> float:
        return len(self._scores) / (2 + len(self.circuits))


class Evaluation:
    """An evaluation that waits for its turn, runs or is done.

    ``future`` gives the metrics. Cancelling it gives the evaluation up.
    """

    def __init__(self, run: EvaluationRun) -> None:
        self._circuits = run.circuits
        self.resolved, self.future = run.resolved, run.future

    def warnings(self) -> tuple[str, ...]:
        """Returns what may mislead about the metrics, once ``future`` is done.

        Of several circuits, only what holds for all of them: a curve measures circuits that are too small,
        and random ones, on purpose.
        """
        found, resolved = self.future.result(), self.resolved
        full_and_empty = circuit_warnings.Endpoints(resolved.objective.metric, found.full, found.empty)
        told = request_warnings.of_request(resolved)
        if len(self._circuits) > 1:
            return (*told, *circuit_warnings.of_baseline(full_and_empty, resolved.clean_run))
        circuit = self._circuits[0].unpack()
        (value,) = found.values
        return (*told, *circuit_warnings.of_circuit(resolved.clean_run, circuit, value, full_and_empty))


class EvaluationService(UnstoredService):
    """Evaluates circuits under the same quotas as jobs."""

    def evaluate(
        self,
        objective: Objective,
        circuits: Sequence[GivenCircuit],
        user: str = LOCAL_USER,
    ) -> Evaluation:
        """Measures circuits.

        Args:
            objective: how they are measured.
            circuits: at least one, at most `MOST_CIRCUITS`.
            user: who asks.

        Raises InvalidRequestError, NotFoundError (model), OtherModelError if a circuit was found in another
        model, and ResourceExhaustedError.
        """
        if not 1 <= len(circuits) <= MOST_CIRCUITS:
            detail = f"must be from 1 to {MOST_CIRCUITS} circuits, got {len(circuits)}"
            raise InvalidRequestError("circuits", detail)
        resolved = self._engine.resolve(objective)
        run = EvaluationRun(resolved, _packed(resolved, circuits), user)
        self._submit(run)
        return Evaluation(run)


def _packed(resolved: ResolvedObjective, circuits: Sequence[GivenCircuit]) -> list[PackedCircuit]:
    """Reads circuits. Raises InvalidRequestError with the path of what is wrong, or OtherModelError."""
    graph, edge = resolved.graph, lru_cache(KNOWN_NAMES)(resolved.graph.parse_edge)
    packed = []
    for i, given in enumerate(circuits):
        if isinstance(given, EdgeSet):
            circuit = given.circuit(f"circuits[{i}].edges", graph, resolved.revision)
        else:
            kept = np.zeros(graph.num_edges, dtype=bool)
            try:
                kept[list(map(edge, given))] = True
            except InvalidRequestError as error:
                raise InvalidRequestError(f"circuits[{i}].names", error.detail) from None
            circuit = Circuit(graph, kept)
        packed.append(PackedCircuit(circuit))
    return packed
