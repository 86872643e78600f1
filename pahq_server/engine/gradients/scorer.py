"""The operation `EdgeGradients` on a job."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pahq_server.core.graph import Graph
from pahq_server.core.operations import CLEAN_RUN, EXACT, BackwardRule, EdgeGradients, GradientPoint
from pahq_server.core.task import TokenTask
from pahq_server.engine.backends import EngineState
from pahq_server.engine.cost import job_bytes
from pahq_server.engine.devices import is_out_of_memory, not_enough_memory
from pahq_server.engine.gradients.activations import InterpolatedRun, PartRun, PromptPart
from pahq_server.engine.gradients.backward import BackwardPass, ReceiverGradients
from pahq_server.engine.gradients.contraction import SenderDifferences, edge_scores
from pahq_server.engine.sparse.backend import SparseBackend
from pahq_server.engine.sparse.executor import SparseExecutor
from pahq_server.engine.sparse.memory import DeviceMemory, page_bytes_for
from pahq_server.engine.sparse.unpatched import RunActivations, UnpatchedRuns
from pahq_server.models.architecture import Model
from pahq_server.models.folding import fold

_SCORER = "edge gradients"
# For a job of the literal executor: the least memory for the runs that gradients are taken in.
LEAST_BYTES = 64 << 20


def edge_gradients(state: EngineState, operation: EdgeGradients) -> NDArray[np.float64]:
    """Runs an `EdgeGradients` operation; see `engine.runners`.

    Beside what the job keeps for patched passes, this takes about as much again for the prompts of the
    operation, and `contraction.CONTRACTION_BYTES` at most for all but large models.

    Raises ResourceExhaustedError if there is no memory for that.
    """
    try:
        if _SCORER not in state.kept:
            state.kept[_SCORER] = _scorer(state)
        scorer: EdgeGradientScorer = state.kept[_SCORER]
        return scorer.score(operation.first, operation.last, operation.rule, operation.points)
    except Exception as error:
        if is_out_of_memory(error):
            raise not_enough_memory("the gradients of a few prompts", error) from error
        raise


def _scorer(state: EngineState) -> EdgeGradientScorer:
    """Makes the scorer of a job, from its clean and ablated run where the sparse executor has them."""
    resolved, model, executor = state.resolved, state.loaded.model, state.executor
    graph, task, objective = resolved.graph, resolved.task, resolved.objective
    if not isinstance(executor, SparseExecutor):
        model = fold(model)
        size = max(LEAST_BYTES, 2 * job_bytes(model.architecture, task))
        memory = DeviceMemory(size, page_bytes_for([model]), model.device)
        backend = SparseBackend(model, memory, b"gradients")
        executor = backend.open(graph, task, objective.metric, objective.ablation)
    return EdgeGradientScorer(model, graph, executor.unpatched, task, objective.metric, objective.ablation)


class EdgeGradientScorer:
    """Scores the edges of one job's graph by gradients.

    Args:
        model: folded; its weights may be read from files.
        graph: of that model.
        unpatched: the job's clean and ablated run, in memory while this is used.
        task: all prompts of the job.
        metric: name of a metric.
        ablation: ``resample``, ``zero`` or ``mean``.
    """

    def __init__(
        self,
        model: Model,
        graph: Graph,
        unpatched: UnpatchedRuns,
        task: TokenTask,
        metric: str,
        ablation: str,
    ) -> None:
        self._model, self._graph, self._unpatched = model, graph, unpatched
        self._task, self._metric, self._ablation = task, metric, ablation

    @torch.inference_mode()
    def score(
        self,
        first: int,
        last: int,
        rule: BackwardRule = EXACT,
        points: tuple[GradientPoint, ...] = CLEAN_RUN,
    ) -> NDArray[np.float64]:
        """Scores all edges, summed over the prompts from ``first`` until before ``last``: [edges].

        See `EdgeGradients`. A result is a pure function of job and arguments.
        """
        unpatched, graph = self._unpatched, self._graph
        part = PromptPart(unpatched.tokens, first, last)
        tokens = part.ablated_tokens(self._ablation, self._model.architecture.causal)
        clean, ablated = PartRun(unpatched.clean, part), PartRun(unpatched.ablated, part)
        backward = BackwardPass(self._model, graph, unpatched, self._task, self._metric, part, tokens, rule)
        gradients = ReceiverGradients()

        def run_at(point: GradientPoint) -> RunActivations:
            if point.clean_share == 1:
                return clean
            if point.clean_share == 0 and self._ablation == "resample":
                return ablated
            return InterpolatedRun(self._model, unpatched, part, point.clean_share)

        for point in points:
            backward.add(run_at(point), clean, point.weight, gradients)
        differences = SenderDifferences.of(graph, clean, ablated, tokens)
        return edge_scores(self._model, graph, differences, gradients)
