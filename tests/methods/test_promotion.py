"""Searches where a score also depends on the heads under investigation.

A test is compared with the current circuit as it measures under the same heads.
"""

from __future__ import annotations

from collections.abc import Collection

import pytest
from helpers.scores import SetScore, SumScore, answer
from helpers.topology import heads_behind
from reference.bisect import PlainBisect

from pahq_server.core.circuit import Circuit, PatchedPass
from pahq_server.core.graph import Graph
from pahq_server.methods.acdc.order import GROUPINGS, Grouping
from pahq_server.methods.acdc.search import AcdcSearch
from pahq_server.methods.single_edge.method import SingleEdgeSearch

from .naive_acdc import NaiveAcdc

GRAPHS = [Graph(2, 2, 2), Graph(2, 4, 2, kv_receivers="group"), Graph(2, 2, 1, mlps=False)]


class PromotedScore:
    """A metric of its own for every set of heads under investigation."""

    def __init__(self, graph: Graph, kind: type[SetScore] = SetScore) -> None:
        self._graph, self._kind, self._seeds = graph, kind, {(): 5}

    def of_names(self, names: Collection[str], receiver: str | None) -> float:
        heads = tuple(sorted(heads_behind(self._graph, receiver))) if receiver and "<" in receiver else ()
        seed = self._seeds.setdefault(heads, 6 + sum(map(ord, "".join(heads))))
        return self._kind(self._graph, seed % 251).of_names(names)

    def __call__(self, patched: PatchedPass) -> float:
        own, circuit = patched.promoted_receiver, patched.circuit
        names = {self._graph.edge_name(int(edge)) for edge in circuit.kept.nonzero()[0]}
        return self.of_names(names, None if own is None else self._graph.receiver_name(own))


class PromotingAcdc(NaiveAcdc):
    """Measures the current circuit anew for every single test."""

    def __init__(self, graph: Graph, score: PromotedScore, threshold: float, gates: bool) -> None:
        super().__init__(graph, lambda names: score.of_names(names, self.receiver), threshold, gates)
        self.receiver: str | None = None

    def _test(self, subject: str, edges: list[str], gate: bool) -> None:
        self.receiver = subject if gate else subject.split("->")[1]
        self.current = self.metric(self.kept)
        super()._test(subject, edges, gate)


class PromotingBisect(PlainBisect):
    """Measures the current circuit anew for every group, under the heads of its last receiver."""

    def __init__(self, graph: Graph, score: PromotedScore, threshold: float) -> None:
        super().__init__(graph, lambda names: score.of_names(names, self.receiver), threshold)
        self.receiver: str | None = None

    def _test(self, edges: list[str]) -> None:
        if edges:
            self.receiver = edges[-1].split("->")[1]
            self.current = self.metric(self.kept)
        super()._test(edges)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("threshold", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("window", [1, 2, 7, 64])
def test_groups_promote_the_heads_of_their_last_receiver(graph: Graph, threshold: float, window: int) -> None:
    score = PromotedScore(graph, SumScore)
    plain = PromotingBisect(graph, score, threshold)
    plain.run()
    search = AcdcSearch(graph, threshold, "bisect", window, baseline_depends_on_promotion=True)
    found = answer(search.run(), score)
    assert [(v.size, v.delta, v.kept) for v in found.verdicts] == [v[2:] for v in plain.verdicts]
    assert {graph.edge_name(int(e)) for e in found.circuit.kept.nonzero()[0]} == plain.kept
    unaware = answer(AcdcSearch(graph, threshold, "bisect", window).run(), score)
    assert [v.delta for v in unaware.verdicts] != [v.delta for v in found.verdicts]


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("gates", [True, False])
@pytest.mark.parametrize("threshold", [0.0, 2.0])
@pytest.mark.parametrize("window", [1, 5, 40])
def test_acdc_finds_what_the_plainest_search_finds(
    graph: Graph, gates: bool, threshold: float, window: int
) -> None:
    score = PromotedScore(graph)
    naive = PromotingAcdc(graph, score, threshold, gates)
    naive.run()
    grouping: Grouping = "gates" if gates else "none"
    search = AcdcSearch(graph, threshold, grouping, window, baseline_depends_on_promotion=True)
    found = answer(search.run(), score)
    assert {graph.edge_name(int(e)) for e in found.circuit.kept.nonzero()[0]} == naive.kept
    assert [(v.delta, v.kept, v.gate) for v in found.verdicts] == [v[1:] for v in naive.verdicts]
    unaware = answer(AcdcSearch(graph, threshold, grouping, window).run(), score)
    assert [v.delta for v in unaware.verdicts] != [v.delta for v in found.verdicts]


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_acdc_resumes_from_any_prefix_of_its_log(grouping: Grouping) -> None:
    graph = GRAPHS[0]
    score = PromotedScore(graph)
    whole = answer(AcdcSearch(graph, 2.0, grouping, baseline_depends_on_promotion=True).run(), score)
    for length in range(len(whole.verdicts) + 1):
        search = AcdcSearch(
            graph, 2.0, grouping, 7, verdicts=whole.verdicts[:length], baseline_depends_on_promotion=True
        )
        assert answer(search.run(), score).verdicts == whole.verdicts


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("window", [1, 5, 1000])
def test_single_edges_are_compared_with_the_full_model_under_the_same_heads(
    graph: Graph, window: int
) -> None:
    score = PromotedScore(graph)
    found = answer(SingleEdgeSearch(graph, 1.0, window, baseline_depends_on_promotion=True).run(), score)
    full = Circuit.full(graph)
    names = {graph.edge_name(int(e)) for e in full.kept.nonzero()[0]}
    for edge, verdict in enumerate(found.verdicts):
        receiver = graph.receiver_name(graph.edge_ends(edge)[1])
        without = score.of_names(names - {graph.edge_name(edge)}, receiver)
        assert verdict.delta == without - score.of_names(names, receiver)
