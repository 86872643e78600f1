"""The sparse executor: the literal executor's scores, many rows at a time, for a fraction of the work."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from pahq_server.core.circuit import Circuit
from pahq_server.core.engine import Anchor, Row
from pahq_server.core.graph import Graph
from pahq_server.core.task import TokenTask
from pahq_server.engine.metrics import finite
from pahq_server.engine.sparse.base import Base, Reference
from pahq_server.engine.sparse.clean import ablated_values, run_pass
from pahq_server.engine.sparse.cuts import CutCache
from pahq_server.engine.sparse.scoring import DIFFERENCE_METRICS
from pahq_server.engine.sparse.sweep import Sweep
from pahq_server.engine.sparse.tokens import Tokens
from pahq_server.engine.sparse.weights import SparseWeights
from pahq_server.models.architecture import Model

# Bases that are kept: the one of the layer and a few of its receivers.
KEPT_BASES = 4


class SparseExecutor:
    """Scores rows of one job.

    Args:
        model: folded (see `models.folding`).
        graph: a graph of that model.
        task: prompts; ``resample`` ablation needs corrupted ones.
        metric: name of a metric.
        ablation: ``resample``, ``zero`` or ``mean``.
    """

    @torch.inference_mode()
    def __init__(self, model: Model, graph: Graph, task: TokenTask, metric: str, ablation: str) -> None:
        self.graph = graph
        self.weights = SparseWeights(model, graph)
        tokens = Tokens.of(model.architecture, task, ablation)
        clean = run_pass(model, tokens, tokens.clean)
        ablated = ablated_values(model, tokens, clean, ablation)
        self.reference = Reference(self.weights, tokens, clean, ablated)
        self._bases: OrderedDict[int, tuple[Anchor, Base]] = OrderedDict()
        self._cuts = CutCache()
        self._clean = Base.from_scratch(self.reference, Circuit.full(graph))
        self._full_ND = self._normed(self._clean.kept_x(graph.logits)[None])[0]
        self._metric = DIFFERENCE_METRICS[metric](self.weights, task, self._full_ND)

    @torch.inference_mode()
    def score(self, rows: Sequence[Row]) -> list[float]:
        """The metric of every row, in order. Raises NonFiniteMetricError."""
        scores = [0.0] * len(rows)
        for anchor, numbers in _by_anchor(rows):
            found = self._score_at(anchor, [rows[i].removed for i in numbers])
            for i, score in zip(numbers, found, strict=True):
                scores[i] = finite(score)
        return scores

    def _score_at(self, anchor: Anchor, removed: Sequence[Sequence[int]]) -> list[float]:
        base = self._base(anchor)
        sweep = Sweep(base, removed, self._cuts)
        sweep.run()
        change = sweep.final_x()
        same = base.kept_x(self.graph.logits)[None]
        x_VPCD = same if change is None else torch.cat([change.values, same])
        values = self._metric(self._normed(x_VPCD) - self._full_ND).tolist()
        # The last value is the base's own: index -1 is what unchanged rows have.
        return [values[-1]] * len(removed) if change is None else [values[i] for i in change.variant]

    def _normed(self, x_VPCD: Tensor) -> Tensor:
        """What the unembedding reads: [V, N, D]."""
        x_VND = x_VPCD.flatten(1, 2)
        return x_VND * self.weights.inverse_norm(x_VND.square().sum(-1))

    def _base(self, anchor: Anchor) -> Base:
        key = id(anchor)
        if key not in self._bases:
            self._bases[key] = (anchor, self._new_base(anchor))
            while len(self._bases) > KEPT_BASES:
                self._bases.popitem(last=False)
        self._bases.move_to_end(key)
        return self._bases[key][1]

    def _new_base(self, anchor: Anchor) -> Base:
        if anchor.circuit.kept.all():
            return self._clean
        if anchor.parent is None:
            return Base.from_scratch(self.reference, anchor.circuit)
        parent = self._base(anchor.parent)
        removed = (parent.circuit.kept & ~anchor.circuit.kept).nonzero()[0]
        if not len(removed):
            return parent
        sweep = Sweep(parent, [removed.tolist()], CutCache())
        sweep.run()
        return sweep.as_base(anchor.circuit)


def _by_anchor(rows: Sequence[Row]) -> list[tuple[Anchor, list[int]]]:
    """Row numbers by anchor, in order of first appearance."""
    groups: dict[int, tuple[Anchor, list[int]]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(id(row.anchor), (row.anchor, []))[1].append(i)
    return list(groups.values())
