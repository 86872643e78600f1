"""Runs the jobs of one model, whatever room there is for them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from pahq_server.core.circuit import PatchedPass
from pahq_server.core.errors import ResourceExhaustedError
from pahq_server.core.graph import Graph
from pahq_server.core.operations import in_groups
from pahq_server.core.task import TokenTask
from pahq_server.engine.metrics import Scores
from pahq_server.engine.sparse.executor import SharedModel, SparseExecutor, score_together
from pahq_server.engine.sparse.memory import DeviceMemory
from pahq_server.engine.sparse.quantized import QuantizedModel
from pahq_server.memory.pool import OutOfPagesError
from pahq_server.models.architecture import Model

logger = logging.getLogger(__name__)

# What is raised where there is no memory: by the pool, by Python, by torch on a GPU. On a CPU torch raises
# a plain RuntimeError, which is told by its text.
_OUT_OF_MEMORY = (OutOfPagesError, MemoryError, torch.OutOfMemoryError)
_ALLOCATION_FAILED = "allocate memory"
RETRY_S = 10.0

Job = tuple[SparseExecutor, Sequence[PatchedPass]]


class SparseBackend:
    """Jobs of one model.

    Under memory pressure, in this order: what other jobs keep for later is dropped; jobs are scored one by
    one; a job has fewer anchors at a time, and keeps less of them; its rows are scored in smaller and smaller
    parts. Scores keep their bits all the while. A job does without these bounds again after some calls that
    had room, and then shares sweeps with others again.

    Args:
        model: folded (see `models.folding`).
        memory: of the device that the model is on.
        namespace: names the model's weights among all models on the device.
        rounded: what rows multiply with; None for the model's weights.
    """

    def __init__(
        self, model: Model, memory: DeviceMemory, namespace: bytes, quantized: QuantizedModel | None = None
    ) -> None:
        self._memory, self._shared = memory, SharedModel(model, memory, namespace, quantized)

    def open(self, graph: Graph, task: TokenTask, metric: str, ablation: str) -> SparseExecutor:
        """Raises ResourceExhaustedError if there is no room for the job beside those that are open."""
        try:
            return SparseExecutor(self._shared, graph, task, metric, ablation)
        except Exception as error:
            if not _is_memory(error):
                raise
        self._memory.preempt(keep=())
        try:
            return SparseExecutor(self._shared, graph, task, metric, ablation)
        except Exception as error:
            if not _is_memory(error):
                raise
            raise ResourceExhaustedError(f"not enough memory for the job: {error}", RETRY_S) from error

    def score(self, work: Sequence[Job]) -> list[Scores]:
        """One outcome per job, in order: a failing one does not hurt the others."""
        return in_groups(lambda item: item[0].graph, work, self._score_group)

    def _score_group(self, group: Sequence[Job]) -> list[Scores]:
        """Jobs of one graph: together if that works, else one by one."""
        outcomes: dict[int, Scores] = {}
        free = [number for number, (job, _) in enumerate(group) if not job.memory_limited]
        if free:
            together = [group[number] for number in free]
            try:
                outcomes.update(zip(free, score_together(together, self._memory.batch_bytes), strict=True))
                for job, _ in together:
                    job.note_room()
            except Exception as error:
                if not _is_memory(error):
                    if len(group) == 1:
                        return [error]
                    # Alone, each gets its own error.
                    logger.warning("jobs are scored one by one: together they failed", exc_info=error)
        for number, (job, rows) in enumerate(group):
            if number in outcomes:
                continue
            self._memory.preempt(keep=(job,))
            try:
                outcomes[number] = self._score_alone(job, rows)
                job.note_room()
            except Exception as error:  # noqa: BLE001 - reported as the job's outcome
                outcomes[number] = error
        return [outcomes[number] for number in range(len(group))]

    def _score_alone(self, job: SparseExecutor, rows: Sequence[PatchedPass]) -> list[float]:
        """Passes of one job, in parts as large as there is room for."""
        scores: list[float] = []
        for part in _split_by_base_circuits(rows, job.max_base_circuits):
            try:
                scores += job.score(part, self._memory.batch_bytes)
            except Exception as error:
                if not _is_memory(error):
                    raise
                scores += self._score_smaller(job, part, error)
        return scores

    def _score_smaller(
        self, job: SparseExecutor, rows: Sequence[PatchedPass], error: Exception
    ) -> list[float]:
        """Passes that were too removes_most at once: with fewer anchors at a time, then with fewer rows."""
        job.drop_bases()
        base_circuits = len({id(row.base_circuit) for row in rows})
        if base_circuits > 1 or not job.recomputes:
            # The states that a recomputes job computes again are a fifth of its time: rather fewer anchors.
            job.limit_memory(max(1, base_circuits // 2), recomputes=base_circuits == 1)
            return self._score_alone(job, rows)
        if len(rows) == 1:
            raise ResourceExhaustedError(f"not enough memory for one row: {error}", RETRY_S) from error
        half = len(rows) // 2
        return self._score_alone(job, rows[:half]) + self._score_alone(job, rows[half:])


def _split_by_base_circuits(rows: Sequence[PatchedPass], most: int) -> list[list[PatchedPass]]:
    """The rows in order, in parts with at most so removes_most anchors each."""
    parts: list[list[PatchedPass]] = []
    base_circuits: set[int] = set()
    for row in rows:
        if not parts or (id(row.base_circuit) not in base_circuits and len(base_circuits) == most):
            parts.append([])
            base_circuits = set()
        parts[-1].append(row)
        base_circuits.add(id(row.base_circuit))
    return parts


def _is_memory(error: Exception) -> bool:
    return isinstance(error, _OUT_OF_MEMORY) or (
        isinstance(error, RuntimeError) and _ALLOCATION_FAILED in str(error)
    )
