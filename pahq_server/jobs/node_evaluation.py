"""Evaluations of circuits of nodes: measured when it is their user's turn, and nothing is stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from pahq_server.core.context import LOCAL_USER
from pahq_server.core.engine import Objective, ResolvedObjective
from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.operations import Operation
from pahq_server.core.pruning import Mask, MaskFigures, MeasureMasks, NodeLayout, NodeSet
from pahq_server.jobs import warnings as request_warnings
from pahq_server.jobs.evaluation import MOST_CIRCUITS
from pahq_server.jobs.unstored_run import UnstoredRun, UnstoredService
from pahq_server.methods.node_pruning.artifact import of_full_model
from pahq_server.methods.node_pruning.parameters import check_objective
from pahq_server.methods.warnings import Endpoints, of_baseline

# How many circuits are measured before others get their turn: about as much work as a step of training.
MASKS_PER_OPERATION = 4


@dataclass(frozen=True)
class NodeFigures:
    """Figures of circuits of nodes, in order, of the full model and of the empty circuit."""

    values: tuple[MaskFigures, ...]
    full: MaskFigures
    empty: MaskFigures


class NodeEvaluationRun(UnstoredRun[NodeFigures]):
    """Measures the full model, the empty circuit and circuits.

    Args:
        resolved: the objective.
        layout: of its model.
        circuits: what is measured.
        user: who asked for it.
    """

    def __init__(
        self, resolved: ResolvedObjective, layout: NodeLayout, circuits: Sequence[Mask], user: str
    ) -> None:
        super().__init__(resolved, user)
        self._layout = layout
        # An eighth of the memory: a thousand circuits of a large model may wait here.
        self._packed = [np.packbits(mask) for mask in circuits]
        self._masks, self._found = self._all_masks(), list[MaskFigures]()

    def _all_masks(self) -> Iterator[Mask]:
        size = self._layout.size
        yield np.ones(size, dtype=bool)
        yield np.zeros(size, dtype=bool)
        for bits in self._packed:
            yield np.unpackbits(bits, count=size).astype(bool)

    def next_operation(self) -> Operation | None:
        masks = tuple(islice(self._masks, MASKS_PER_OPERATION))
        return MeasureMasks(self._layout, masks) if masks else None

    def take(self, result: object) -> None:
        assert isinstance(result, list), "the scheduler has checked it"
        self._found += result

    def result(self) -> NodeFigures:
        full, empty, *values = self._found
        return NodeFigures(tuple(values), full, empty)

    def done(self) -> float:
        return len(self._found) / (2 + len(self._packed))


class NodeEvaluation:
    """An evaluation that waits for its turn, runs or is done.

    ``future`` gives the figures. Cancelling it gives the evaluation up.
    """

    def __init__(self, run: NodeEvaluationRun) -> None:
        self.resolved, self.future = run.resolved, run.future

    def warnings(self) -> tuple[str, ...]:
        """Returns what may mislead about the figures of all circuits, once ``future`` is done."""
        found, resolved = self.future.result(), self.resolved
        ends = Endpoints(resolved.objective.metric, found.full.kl, found.empty.kl)
        told = (*request_warnings.of_request(resolved), *of_full_model(resolved, found.full))
        return (*told, *of_baseline(ends, resolved.clean_run))


class NodeEvaluationService(UnstoredService):
    """Evaluates circuits of nodes under the same quotas as jobs."""

    def evaluate(
        self, objective: Objective, circuits: Sequence[NodeSet], user: str = LOCAL_USER
    ) -> NodeEvaluation:
        """Measures circuits of nodes.

        Args:
            objective: how they are measured; its metric is ``kl_divergence``.
            circuits: at least one, at most `MOST_CIRCUITS`.
            user: who asks.

        Raises InvalidRequestError, NotFoundError (model), OtherModelError if a circuit was found in another
        model, and ResourceExhaustedError.
        """
        if not 1 <= len(circuits) <= MOST_CIRCUITS:
            detail = f"must be from 1 to {MOST_CIRCUITS} circuits, got {len(circuits)}"
            raise InvalidRequestError("circuits", detail)
        resolved = self._engine.resolve(objective, activations=False)
        layout = check_objective(resolved)
        masks = [
            given.mask(f"circuits[{number}]", layout, resolved.revision)
            for number, given in enumerate(circuits)
        ]
        run = NodeEvaluationRun(resolved, layout, masks, user)
        self._submit(run)
        return NodeEvaluation(run)
