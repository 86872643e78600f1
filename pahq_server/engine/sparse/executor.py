"""The sparse executor: the literal executor's scores, many rows at a time, for a fraction of the work."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pahq_server.core.circuit import Circuit
from pahq_server.core.engine import Anchor, Row
from pahq_server.core.graph import Graph
from pahq_server.core.task import TokenTask
from pahq_server.engine.metrics import finite
from pahq_server.engine.sparse.base import Base
from pahq_server.engine.sparse.clean import ablated_values, run_pass
from pahq_server.engine.sparse.reference import Reference
from pahq_server.engine.sparse.rows import Rows
from pahq_server.engine.sparse.scoring import DIFFERENCE_METRICS
from pahq_server.engine.sparse.sweep import Sweep
from pahq_server.engine.sparse.tokens import Tokens
from pahq_server.engine.sparse.weights import SparseWeights
from pahq_server.models.architecture import Model


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
        self._clean = Base.from_scratch(self.reference, Circuit.full(graph))
        # Bases of the last call, by anchor; the anchor is held so that its id stays its own.
        self._bases: dict[int, tuple[Anchor, Base]] = {}
        self._full_ND = self._normed(self._clean.kept_x(graph.logits)[None])[0]
        self._metric = DIFFERENCE_METRICS[metric](self.weights, task, self._full_ND)

    @torch.inference_mode()
    def score(self, rows: Sequence[Row]) -> list[float]:
        """The metric of every row, in order. Raises NonFiniteMetricError."""
        self._make_bases([row.anchor for row in rows])
        bases = [self._bases[id(row.anchor)][1] for row in rows]
        scores = [0.0] * len(rows)
        for numbers in _by_plan(bases):
            found = self._sweep([bases[i] for i in numbers], [rows[i].removed for i in numbers])
            for i, score in zip(numbers, found, strict=True):
                scores[i] = finite(score)
        return scores

    def _sweep(self, bases: Sequence[Base], removed: Sequence[Sequence[int]]) -> list[float]:
        """Scores of rows whose bases have one plan."""
        distinct = list(dict.fromkeys(bases))
        base_of = np.array([distinct.index(base) for base in bases])
        sweep = Sweep(Rows(distinct, base_of, removed))
        sweep.run()
        final = sweep.final_x()
        x_VPCD = torch.stack([base.kept_x(self.graph.logits) for base in distinct])
        index = base_of
        if final is not None:
            x_VPCD = torch.cat([x_VPCD, final[0]])
            index = np.where(final[1] < 0, base_of, final[1] + len(distinct))
        used, index = np.unique(index, return_inverse=True)
        values = self._metric(self._normed(x_VPCD[torch.from_numpy(used)]) - self._full_ND).tolist()
        return [values[i] for i in index]

    def _normed(self, x_VPCD: Tensor) -> Tensor:
        """What the unembedding reads: [V, N, D]."""
        x_VND = x_VPCD.flatten(1, 2)
        return x_VND * self.weights.inverse_norm(x_VND.square().sum(-1))

    def _make_bases(self, anchors: Sequence[Anchor]) -> None:
        """Bases of these anchors and of their ancestors; all others are forgotten."""
        known, self._bases = self._bases, {}
        wanted = {id(a): a for anchor in anchors for a in _lineage(anchor)}
        self._bases = {key: known[key] for key in wanted if key in known}
        new = [anchor for key, anchor in wanted.items() if key not in known]
        for anchor in new:
            if anchor.parent is None:
                self._keep(anchor, self._root(anchor.circuit))
        while new := [anchor for anchor in new if id(anchor) not in self._bases]:
            ready = [a for a in new if a.parent is not None and id(a.parent) in self._bases]
            self._derive(ready)

    def _root(self, circuit: Circuit) -> Base:
        return self._clean if circuit.kept.all() else Base.from_scratch(self.reference, circuit)

    def _derive(self, anchors: Sequence[Anchor]) -> None:
        """Bases of anchors whose parents have one: each a row of its parent."""
        parents = [self._bases[id(anchor.parent)][1] for anchor in anchors]
        for numbers in _by_plan(parents):
            distinct = list(dict.fromkeys(parents[i] for i in numbers))
            base_of = np.array([distinct.index(parents[i]) for i in numbers])
            circuits = [anchors[i].circuit for i in numbers]
            removed = [
                np.flatnonzero(parents[i].circuit.kept & ~anchors[i].circuit.kept).tolist() for i in numbers
            ]
            sweep = Sweep(Rows(distinct, base_of, removed), keep=True)
            sweep.run()
            for row, i in enumerate(numbers):
                self._keep(anchors[i], sweep.as_base(row, circuits[row]))

    def _keep(self, anchor: Anchor, base: Base) -> None:
        self._bases[id(anchor)] = (anchor, base)


def _lineage(anchor: Anchor) -> list[Anchor]:
    """The anchor and its ancestors, eldest first."""
    return [*(_lineage(anchor.parent) if anchor.parent is not None else []), anchor]


def _by_plan(bases: Sequence[Base]) -> list[list[int]]:
    """Numbers of the bases that share a plan; within one, equal bases stand together."""
    groups: dict[int, dict[int, list[int]]] = {}
    for i, base in enumerate(bases):
        groups.setdefault(id(base.plan), {}).setdefault(id(base), []).append(i)
    return [[i for same in group.values() for i in same] for group in groups.values()]
