"""Scores of policies: along the path of the fp32 search, of single edges, and searches of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bench.precision.subjects import Subject
from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.engine.literal_rounded import RoundedExecutor, RoundedModel
from pahq_server.engine.sparse.backend import SparseBackend
from pahq_server.engine.sparse.executor import SparseExecutor
from pahq_server.engine.sparse.memory import DeviceMemory
from pahq_server.engine.sparse.quantized import QuantizedModel
from pahq_server.methods.acdc.order import TestOrder
from pahq_server.methods.acdc.search import AcdcSearch
from pahq_server.methods.verdicts import SearchResult
from pahq_server.models.folding import fold
from pahq_server.precision.policy import POLICIES, Policy

Floats = NDArray[np.float64]
WINDOW = 32
MEMORY_BYTES = 2 << 30


@dataclass(frozen=True)
class Step:
    """A verdict of the fp32 search: the row it is about, the row of the circuit before, and the delta."""

    candidate: PatchedPass
    current: PatchedPass
    delta: float


class Bench:
    """One subject under all policies."""

    def __init__(self, subject: Subject) -> None:
        self.subject, self.plain = subject, subject.model()
        self.folded = fold(self.plain)
        self.graph = self.plain.architecture.graph("group")
        self.fp32 = self.sparse(POLICIES["fp32"])
        self._edges: dict[str, Floats] = {}

    def executor(self, policy: Policy) -> SparseExecutor | RoundedExecutor:
        return self.literal(policy) if policy.operand == "activations" else self.sparse(policy)

    def sparse(self, policy: Policy) -> SparseExecutor:
        """A new executor of a policy that rounds differences."""
        rounded = QuantizedModel.of(self.folded, policy)
        backend = SparseBackend(self.folded, DeviceMemory(MEMORY_BYTES), b"bench", rounded)
        return backend.open(self.graph, self.subject.task, "kl_divergence", "resample")

    def literal(self, policy: Policy) -> RoundedExecutor:
        rounded = RoundedModel(self.plain, policy)
        return RoundedExecutor(rounded, self.graph, self.subject.task, "kl_divergence", "resample")

    def search(
        self,
        job: SparseExecutor | RoundedExecutor,
        threshold: float,
        baseline_depends_on_promotion: bool = False,
    ) -> SearchResult:
        """A search to its end; ``baseline_depends_on_promotion`` as in `ResolvedObjective`."""
        steps = AcdcSearch(
            self.graph,
            threshold,
            grouping="none",
            window=WINDOW,
            baseline_depends_on_promotion=baseline_depends_on_promotion,
        ).run()
        rows = next(steps)
        while True:
            try:
                rows = steps.send(job.score(rows))
            except StopIteration as end:
                result: SearchResult = end.value
                return result

    def path(self, result: SearchResult) -> list[Step]:
        """The verdicts of the fp32 search."""
        order, steps = TestOrder(self.graph, grouping="none"), []
        state = order.start()
        for verdict in result.verdicts:
            if state.has_new_base:
                current = PatchedPass(state.base_circuit)
            steps.append(Step(state.patched_pass, current, verdict.delta))
            if not verdict.kept:
                current = state.patched_pass
            state = order.advance(state, verdict.kept)
        return steps

    def kl(self, circuit: Circuit) -> float:
        """Of a circuit, in fp32."""
        return self.fp32.score([PatchedPass(BaseCircuit(circuit))])[0]

    def scores_of_edges(self, name: str, policy: Policy) -> Floats:
        """The score of every edge alone, under a policy that goes by this name."""
        if name not in self._edges:
            full = BaseCircuit(Circuit.full(self.graph))
            rows = [PatchedPass(full, (edge,)) for edge in range(self.graph.num_edges)]
            self._edges[name] = in_batches(self.executor(policy), rows)
        return self._edges[name]


def deltas_of_differences(job: SparseExecutor, steps: Sequence[Step]) -> Floats:
    """What a policy that rounds differences finds at every step."""
    rows = [row for step in steps for row in (step.candidate, step.current)]
    distinct = {(id(row.base_circuit), row.removed): row for row in rows}
    scores = dict(zip(distinct, in_batches(job, list(distinct.values())), strict=True))
    found = np.array([scores[id(row.base_circuit), row.removed] for row in rows])
    return found[0::2] - found[1::2]


def deltas_of_activations(job: RoundedExecutor, steps: Sequence[Step]) -> Floats:
    """What a policy that rounds activations finds, the current circuit measured under the same promotion."""
    deltas = []
    for step in steps:
        own = step.candidate.promoted_receiver
        before = job.measure(step.current.circuit, own)
        deltas.append(job.measure(step.candidate.circuit, own) - before)
    return np.array(deltas)


def in_batches(job: SparseExecutor | RoundedExecutor, rows: Sequence[PatchedPass]) -> Floats:
    return np.array([score for i in range(0, len(rows), 64) for score in job.score(rows[i : i + 64])])


def area_under_curve(scores: Floats, labels: NDArray[np.bool_]) -> float:
    """AUC-ROC: how often a labelled edge scores above another, ties counting half."""
    positive = int(labels.sum())
    above = stats.rankdata(scores)[labels].sum() - positive * (positive + 1) / 2
    return float(above / (positive * (len(labels) - positive)))


def largest(scores: Floats, count: int) -> NDArray[np.bool_]:
    labels = np.zeros(len(scores), dtype=bool)
    labels[np.argsort(-scores, kind="stable")[:count]] = True
    return labels


def kendall_tau(a: Floats, b: Floats) -> float:
    return float(stats.kendalltau(a, b).statistic)
