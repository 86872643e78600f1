"""Runs the jobs of one model, with little memory or much."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from pahq_server.core.circuit import PatchedPass
from pahq_server.core.graph import Graph
from pahq_server.core.operations import in_groups
from pahq_server.core.task import TokenTask
from pahq_server.engine.devices import is_out_of_memory, not_enough_memory
from pahq_server.engine.metrics import Scores
from pahq_server.engine.sparse.executor import SharedModel, SparseExecutor, score_together
from pahq_server.engine.sparse.memory import DeviceMemory
from pahq_server.engine.sparse.quantized import QuantizedModel
from pahq_server.models.architecture import Model

logger = logging.getLogger(__name__)

Job = tuple[SparseExecutor, Sequence[PatchedPass]]


class SparseBackend:
    """The jobs of one model under one precision policy.

    Under memory pressure, in this order: what other jobs keep for later is dropped; jobs are scored one by
    one; a job has fewer base circuits at a time and keeps less of them; its passes are scored in smaller and
    smaller parts. Scores keep their bits all the while. After some calls with enough memory, a job tries
    without these limits again and then shares batches with others again.

    Args:
        model: folded (see `models.folding`).
        memory: of the device that the model is on.
        namespace: names the model's weights among all models on the device.
        quantized: the matrices of a precision policy, for patched passes; None for full precision.
    """

    def __init__(
        self, model: Model, memory: DeviceMemory, namespace: bytes, quantized: QuantizedModel | None = None
    ) -> None:
        self._memory, self._shared = memory, SharedModel(model, memory, namespace, quantized)
        self.quantized = quantized

    def open(self, graph: Graph, task: TokenTask, metric: str, ablation: str) -> SparseExecutor:
        """Opens a job.

        Raises ResourceExhaustedError if there is no memory for it beside the jobs that are open.
        """
        try:
            return SparseExecutor(self._shared, graph, task, metric, ablation)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        self._memory.preempt(keep=())
        try:
            return SparseExecutor(self._shared, graph, task, metric, ablation)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise not_enough_memory("the job", error) from error

    def score(self, work: Sequence[Job]) -> list[Scores]:
        """Scores the passes of several jobs.

        Returns one outcome per job, in order: a job that fails does not affect the others.
        """
        return in_groups(lambda item: item[0].graph, work, self._score_group)

    def _score_group(self, group: Sequence[Job]) -> list[Scores]:
        """Scores jobs of one graph: together where that works, else one by one."""
        outcomes: dict[int, Scores] = {}
        free = [number for number, (job, _) in enumerate(group) if not job.memory_limited]
        if free:
            together = [group[number] for number in free]
            try:
                outcomes.update(zip(free, score_together(together, self._memory.batch_bytes), strict=True))
                for job, _ in together:
                    job.note_room()
            except Exception as error:
                if not is_out_of_memory(error):
                    if len(group) == 1:
                        return [error]
                    # Scored one by one, each job gets its own error.
                    logger.warning("jobs are scored one by one: together they failed", exc_info=error)
        for number, (job, passes) in enumerate(group):
            if number in outcomes:
                continue
            self._memory.preempt(keep=(job,))
            try:
                outcomes[number] = self._score_alone(job, passes)
                job.note_room()
            except Exception as error:  # noqa: BLE001 - reported as the job's outcome
                outcomes[number] = error
        return [outcomes[number] for number in range(len(group))]

    def _score_alone(self, job: SparseExecutor, passes: Sequence[PatchedPass]) -> list[float]:
        """Scores the passes of one job, in parts as large as there is memory for."""
        scores: list[float] = []
        for part in _split_by_base_circuits(passes, job.max_base_circuits):
            try:
                scores += job.score(part, self._memory.batch_bytes)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                scores += self._score_smaller(job, part, error)
        return scores

    def _score_smaller(
        self, job: SparseExecutor, passes: Sequence[PatchedPass], error: Exception
    ) -> list[float]:
        """Scores passes that were too many at once: with fewer base circuits at a time, then in halves."""
        job.drop_bases()
        base_circuits = len({id(each.base_circuit) for each in passes})
        if base_circuits > 1 or not job.recomputes:
            # Computing states of receivers again takes a fifth of a job's time, so there are fewer base
            # circuits first.
            job.limit_memory(max(1, base_circuits // 2), recomputes=base_circuits == 1)
            return self._score_alone(job, passes)
        if len(passes) == 1:
            raise not_enough_memory("one patched pass", error) from error
        half = len(passes) // 2
        return self._score_alone(job, passes[:half]) + self._score_alone(job, passes[half:])


def _split_by_base_circuits(passes: Sequence[PatchedPass], most: int) -> list[list[PatchedPass]]:
    """Divides passes, in order, into parts with at most ``most`` base circuits each."""
    parts: list[list[PatchedPass]] = []
    base_circuits: set[int] = set()
    for each in passes:
        if not parts or (id(each.base_circuit) not in base_circuits and len(base_circuits) == most):
            parts.append([])
            base_circuits = set()
        parts[-1].append(each)
        base_circuits.add(id(each.base_circuit))
    return parts
