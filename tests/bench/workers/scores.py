"""Scores that are made up: what the removal of each edge of a graph does to the metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.circuit import Circuit, PatchedPass
from pahq_server.core.graph import Graph
from pahq_server.methods.acdc.speculation import KeepPredictor
from pahq_server.methods.verdicts import Verdict

# What lies further from the threshold, on the scale log(delta / tau), is all the same to whoever predicts it.
BOUND = KeepPredictor.BOUND


@dataclass(frozen=True)
class Effects:
    """How the effects of edges differ, as log(delta / tau).

    Args:
        of_senders, of_receivers, rest: variances. An effect is the sum of three normal parts: its sender's,
            its receiver's and its own.
        kept: share of all edges whose effect is at least the threshold.
    """

    of_senders: float
    of_receivers: float
    rest: float
    kept: float

    @classmethod
    def of_search(cls, graph: Graph, verdicts: Sequence[Verdict], threshold: float) -> Effects:
        """Estimates them from a search for single edges, as in an analysis of variance of two ways.

        Args:
            graph: that was searched.
            verdicts: of single edges. Edges that went without a test count as not kept.
            threshold: tau, above 0.
        """
        ends = np.array([graph.edge_ends(verdict.index) for verdict in verdicts])
        deltas = np.array([verdict.delta for verdict in verdicts])
        least, most = threshold * np.exp(-BOUND), threshold * np.exp(BOUND)
        effects = np.log(np.clip(deltas, least, most) / threshold)
        within = [_variance_within(effects, ends[:, column]) for column in (0, 1)]
        total = float(effects.var())
        of_senders, of_receivers = (max(0.0, total - each) for each in within)
        rest = max(total - of_senders - of_receivers, 0.1 * total)
        return cls(of_senders, of_receivers, rest, sum(v.kept for v in verdicts) / graph.num_edges)

    def draw(self, graph: Graph, seed: int) -> NDArray[np.float64]:
        """Draws delta / tau of every edge of a graph: [edges]."""
        generator = np.random.default_rng(seed)
        fan_in = np.diff(graph.offsets)
        receivers = np.repeat(np.arange(graph.num_receivers), fan_in)
        senders = np.arange(graph.num_edges) - graph.offsets[receivers]
        effects = generator.normal(0.0, self.of_senders**0.5, graph.num_senders)[senders]
        effects += generator.normal(0.0, self.of_receivers**0.5, graph.num_receivers)[receivers]
        effects += generator.normal(0.0, self.rest**0.5, graph.num_edges)
        return np.exp(effects - np.quantile(effects, 1 - self.kept))


def _variance_within(values: NDArray[np.float64], groups: NDArray[np.int64]) -> float:
    """Returns the variance of values within groups of two or more; all of it if there are none."""
    _, number = np.unique(groups, return_inverse=True)
    count = np.bincount(number)
    means = np.bincount(number, values) / count
    shared = count[number] > 1
    freedom = int((count[count > 1] - 1).sum())
    if not freedom:
        return float(values.var())
    return float(((values - means[number])[shared] ** 2).sum() / freedom)


class Scorer:
    """Scores of passes: the sum of the effects of the edges that a pass lacks beyond its base circuit.

    A search compares scores under one base circuit only, so that its verdict on an edge is the edge's effect.
    """

    def __init__(self, effects: NDArray[np.float64]) -> None:
        self._effects: list[float] = effects.tolist()

    def __call__(self, passes: Sequence[PatchedPass]) -> list[float]:
        return [sum(map(self._effects.__getitem__, each.removed)) for each in passes]


def sample(graph: Graph, every: int) -> Circuit:
    """Returns the circuit of all edges into every so many receivers, and into the logits."""
    kept = np.zeros(graph.num_edges, dtype=bool)
    for receiver in {*range(0, graph.num_receivers, every), graph.logits}:
        kept[graph.offsets[receiver] : graph.offsets[receiver + 1]] = True
    return Circuit(graph, kept)
