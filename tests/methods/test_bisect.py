"""Grouped ACDC against its plain twin: at any window, from any circuit, and resumed from anywhere."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.graphs import graphs
from helpers.scores import BasedScore, SetScore, SumScore, answer
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.bisect import PlainBisect

from pahq_server.core.circuit import Circuit, PatchedPass
from pahq_server.core.graph import Graph
from pahq_server.methods.acdc.order import Test as Question
from pahq_server.methods.acdc.order import TestOrder
from pahq_server.methods.acdc.search import AcdcSearch
from pahq_server.methods.circuits import from_scratch
from pahq_server.methods.verdicts import SearchResult

from .naive_acdc import NaiveAcdc

thresholds = st.integers(0, 4).map(float)
seeds = st.integers(0, 255)
windows = st.sampled_from([1, 2, 7, 64])


def told(graph: Graph, found: SearchResult) -> list[tuple[str, str, int, float, bool]]:
    """The verdicts as the plain twin tells them."""
    return [
        (
            graph.edge_name(v.index),
            graph.edge_name(v.index if v.last is None else v.last),
            v.size,
            v.delta,
            v.kept,
        )
        for v in found.verdicts
    ]


@st.composite
def circuits(draw: st.DrawFn) -> Circuit:
    graph = draw(graphs(max_kv_heads=2, max_group=2))
    share, chance = draw(st.sampled_from([0.0, 0.2, 0.7, 1.0])), np.random.default_rng(draw(seeds))
    return Circuit(graph, chance.random(graph.num_edges) < share)


@settings(max_examples=120)
@given(graphs(max_kv_heads=3, max_group=2), thresholds, seeds, windows)
def test_equals_the_plain_twin(graph: Graph, threshold: float, seed: int, window: int) -> None:
    metric = SumScore(graph, seed)
    plain = PlainBisect(graph, metric.of_names, threshold)
    plain.run()
    found = answer(AcdcSearch(graph, threshold, "bisect", window).run(), metric)
    assert told(graph, found) == plain.verdicts
    assert {graph.edge_name(e) for e in np.flatnonzero(found.circuit.kept)} == plain.kept
    assert found.metric_value == plain.current


@settings(max_examples=100)
@given(circuits(), thresholds, seeds, windows)
def test_equals_the_plain_twin_within_a_circuit(
    start: Circuit, threshold: float, seed: int, window: int
) -> None:
    graph, metric = start.graph, SumScore(start.graph, seed)
    names = {graph.edge_name(e) for e in np.flatnonzero(start.kept)}
    plain = PlainBisect(graph, metric.of_names, threshold, names)
    plain.run()
    found = answer(AcdcSearch(graph, threshold, "bisect", window, start=start).run(), metric)
    assert told(graph, found) == plain.verdicts
    assert {graph.edge_name(e) for e in np.flatnonzero(found.circuit.kept)} == plain.kept


@settings(max_examples=100)
@given(circuits(), thresholds, st.booleans(), seeds, windows)
def test_single_tests_within_a_circuit(
    start: Circuit, threshold: float, gates: bool, seed: int, window: int
) -> None:
    graph, metric = start.graph, SumScore(start.graph, seed)
    naive = NaiveAcdc(graph, metric.of_names, threshold, gates)
    naive.start = {graph.edge_name(e) for e in np.flatnonzero(start.kept)}
    naive.run()
    grouping = "gates" if gates else "none"
    found = answer(AcdcSearch(graph, threshold, grouping, window, start=start).run(), metric)
    assert [(v.delta, v.kept, v.gate) for v in found.verdicts] == [v[1:] for v in naive.verdicts]
    assert {graph.edge_name(e) for e in np.flatnonzero(found.circuit.kept)} == naive.kept


def test_a_whole_and_an_empty_circuit_to_start_from() -> None:
    graph, score = Graph(2, 2, 1), BasedScore(Graph(2, 2, 1), 3, SumScore)
    for grouping in ("none", "gates", "bisect"):
        whole = answer(AcdcSearch(graph, 2.0, grouping, start=Circuit.full(graph)).run(), score)
        assert whole.verdicts == answer(AcdcSearch(graph, 2.0, grouping).run(), score).verdicts
        assert whole.metric_start is None
        nothing = answer(AcdcSearch(graph, 2.0, grouping, start=Circuit.empty(graph)).run(), score)
        assert (nothing.verdicts, nothing.circuit.num_kept) == ((), 0)
        assert nothing.metric_value == nothing.metric_empty == nothing.metric_start


def test_the_circuit_to_start_from_is_measured() -> None:
    graph = Graph(2, 2, 1)
    score = BasedScore(graph, 3, SumScore)
    start = Circuit(graph, np.arange(graph.num_edges) % 2 == 0)
    found = answer(AcdcSearch(graph, 2.0, "bisect", start=start).run(), score)
    assert found.metric_start == score(from_scratch(start)) != found.metric_value


def test_the_order_of_groups_and_halves() -> None:
    """Everything matters, so every group is halved to its single edges."""
    graph = Graph(1, 3, 3)
    search = AcdcSearch(graph, 0.0, "bisect")
    found = answer(search.run(), lambda patched: 0.0)
    groups = [told(graph, found)[i][:3] for i in range(len(found.verdicts))]
    names = ["m0->logits", "a0.h2->logits", "a0.h1->logits", "a0.h0->logits", "input->logits"]
    m0, a2, a1, a0, into = names
    assert groups[:9] == [
        *((m0, into, 5), (m0, a1, 3), (m0, a2, 2), (m0, m0, 1), (a2, a2, 1), (a1, a1, 1)),
        *((a0, into, 2), (a0, a0, 1), (into, into, 1)),
    ]
    v2, v1, v0 = (f"input->a0.h{head}<v>" for head in (2, 1, 0))
    assert groups[16:21] == [(v2, v0, 3), (v2, v1, 2), (v2, v2, 1), (v1, v1, 1), (v0, v0, 1)]
    assert [kind[0][-2] for kind in groups[16:]] == ["v"] * 5 + ["k"] * 5 + ["q"] * 5


def test_a_second_half_whose_sibling_went_costs_no_pass() -> None:
    graph = Graph(1, 1, 1)  # into the logits: m0, a0.h0, input
    needed = graph.parse_edge("input->logits")
    asked: list[PatchedPass] = []

    def score(patched: PatchedPass) -> float:
        asked.append(patched)
        return 0.0 if patched.circuit.kept[needed] else 1.0

    found = answer(AcdcSearch(graph, 0.5, "bisect").run(), score)
    assert [(v.size, v.delta, v.kept) for v in found.verdicts] == [
        (3, 1.0, True),
        (2, 0.0, False),
        (1, 1.0, True),
    ]
    # The current circuit, the group, its first half, and the endpoints; the rest is dead.
    assert len(asked) == 3 + 3


@settings(max_examples=80)
@given(graphs(max_layers=2, max_kv_heads=2, max_group=2), thresholds, seeds, windows, st.data())
def test_the_window_and_an_interruption_change_no_bit(
    graph: Graph, threshold: float, seed: int, window: int, data: st.DataObject
) -> None:
    score = BasedScore(graph, seed, SumScore)
    whole = answer(AcdcSearch(graph, threshold, "bisect").run(), score)
    prefix = whole.verdicts[: data.draw(st.integers(0, len(whole.verdicts)))]
    search = AcdcSearch(graph, threshold, "bisect", window, verdicts=prefix)
    assert answer(search.run(), score).verdicts == whole.verdicts


def test_verdicts_of_another_search_are_refused() -> None:
    graph, score = Graph(2, 2, 2), SetScore(Graph(2, 2, 2), 1)
    found = answer(AcdcSearch(graph, 1.0, "none").run(), score)
    with pytest.raises(ValueError, match="a verdict is on"):
        AcdcSearch(graph, 1.0, "bisect", verdicts=found.verdicts)


def test_both_verdicts_are_speculated() -> None:
    """Whatever comes, a step goes on from it: with many tests at once there are far fewer steps."""
    graph, score = Graph(2, 4, 4), SumScore(Graph(2, 4, 4), 11)
    plain, wide = (AcdcSearch(graph, 1.0, "bisect", window, clock=lambda: 0.0) for window in (1, 64))
    for search in (plain, wide):
        answer(search.run(), score)
    assert wide.verdicts == plain.verdicts
    assert 2 * wide.counts["batches"] < plain.counts["batches"]
    assert wide.counts["wasted"] > 0
    assert wide.counts["passes"] - wide.counts["wasted"] == plain.counts["passes"]


def test_a_new_base_circuit_never_comes_between_tests_that_are_compared() -> None:
    graph = Graph(3, 4, 4)
    order, score = TestOrder(graph, "bisect"), SumScore(graph, 7)
    state, bases, rebased = order.start(), {}, 0
    current = score.of_circuit(state.circuit)

    def key(test: Question) -> tuple[int, ...]:
        return test.edges

    while (test := state.test) is not None:
        bases[key(test)] = state.base_circuit
        if test.parent is not None and test.sibling is None:
            assert bases[key(test.parent)] is state.base_circuit
        if test.has_parents_score:
            assert bases[key(test.parent)] is bases[key(test.sibling)] is state.base_circuit
            assert (
                state.circuit.without(test.edges).key
                == bases[key(test.parent)].circuit.without(state.removed + test.edges).key
            )
        found = score(state.patched_pass)
        keep = found - current >= 1
        current = current if keep else found
        group, state = state.group, order.advance(state, keep)
        rebased += state.has_new_base and state.group == group
        assert score.of_circuit(state.circuit) == current
    assert rebased > 0
