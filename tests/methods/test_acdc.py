"""ACDC against an independent implementation, at any window, and from any point of its log."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.graphs import graphs
from helpers.scores import BasedScore, SetScore, answer
from hypothesis import given, settings
from hypothesis import strategies as st

from pahq_server.core.graph import Graph
from pahq_server.methods.acdc import order
from pahq_server.methods.acdc.order import GROUPINGS, Grouping
from pahq_server.methods.acdc.search import AcdcSearch
from pahq_server.methods.verdicts import SearchResult, Verdict

from .naive_acdc import NaiveAcdc

# With 7 values, differences are in -6 … 6: some thresholds keep most edges, some nearly none.
thresholds = st.integers(0, 6).map(float)
groupings = st.sampled_from(GROUPINGS)
seeds = st.integers(0, 255)
small_graphs = graphs(max_layers=2, max_kv_heads=2, max_group=2)


def named(graph: Graph, verdicts: list[Verdict] | tuple[Verdict, ...]) -> list[tuple[str, float, bool, bool]]:
    return [
        (graph.receiver_name(v.index) if v.gate else graph.edge_name(v.index), v.delta, v.kept, v.gate)
        for v in verdicts
    ]


@settings(max_examples=250)
@given(
    graphs(max_kv_heads=2, max_group=2),
    thresholds,
    st.sampled_from(["none", "gates"]),
    seeds,
    st.integers(1, 50),
)
def test_equals_the_naive_implementation(
    graph: Graph, threshold: float, grouping: Grouping, seed: int, window: int
) -> None:
    metric = SetScore(graph, seed)
    naive = NaiveAcdc(graph, metric.of_names, threshold, grouping == "gates")
    naive.run()
    found = answer(AcdcSearch(graph, threshold, grouping, window).run(), metric)
    assert named(graph, found.verdicts) == naive.verdicts
    assert {graph.edge_name(e) for e in np.flatnonzero(found.circuit.kept)} == naive.kept
    assert [graph.receiver_name(v.index) for v in found.verdicts if v.gate and v.kept] == naive.gates_kept
    assert found.metric_value == naive.current


@settings(max_examples=200)
@given(small_graphs, thresholds, groupings, seeds, st.integers(2, 64), st.booleans())
def test_the_window_changes_nothing(
    graph: Graph, threshold: float, grouping: Grouping, seed: int, window: int, optimistic: bool
) -> None:
    """Nor does the predictor: not even the last bit of a score that depends on its anchors."""

    def predictor(test: order.Test) -> bool:
        return optimistic and test.index % 3 == 0

    score = BasedScore(graph, seed)
    one_by_one = answer(AcdcSearch(graph, threshold, grouping).run(), score)
    batched = answer(AcdcSearch(graph, threshold, grouping, window, predictor=predictor).run(), score)
    assert batched.verdicts == one_by_one.verdicts
    _assert_equal(batched, one_by_one)


@settings(max_examples=200)
@given(small_graphs, thresholds, groupings, seeds, st.integers(1, 50), st.data())
def test_resumes_from_any_prefix_of_its_log(
    graph: Graph, threshold: float, grouping: Grouping, seed: int, window: int, data: st.DataObject
) -> None:
    score = BasedScore(graph, seed)
    whole = answer(AcdcSearch(graph, threshold, grouping).run(), score)
    prefix = whole.verdicts[: data.draw(st.integers(0, len(whole.verdicts)))]
    resumed = answer(AcdcSearch(graph, threshold, grouping, window, verdicts=prefix).run(), score)
    assert resumed.verdicts == whole.verdicts
    _assert_equal(resumed, whole)


def test_resumes_from_every_prefix_where_the_full_model_does_not_score_zero() -> None:
    """The first verdicts keep their edges: only the full model's own score says what to compare with."""
    graph = Graph(2, 2, 1)
    score = BasedScore(graph, seed=9)
    whole = answer(AcdcSearch(graph, 2.0, grouping="gates").run(), score)
    assert whole.verdicts[0].kept
    assert whole.metric_full != 0
    for length in range(len(whole.verdicts) + 1):
        resumed = AcdcSearch(graph, 2.0, grouping="gates", verdicts=whole.verdicts[:length])
        assert answer(resumed.run(), score).verdicts == whole.verdicts


def test_a_delta_equal_to_the_threshold_keeps_the_edge() -> None:
    graph = Graph(1, 1, 1, mlps=False)
    # Only the edge head -> logits matters, and it matters by exactly 0.5.
    important = graph.parse_edge("a0.h0->logits")

    def kept(threshold: float) -> bool:
        search = AcdcSearch(graph, threshold, grouping="none")
        found = answer(search.run(), lambda patched: 0.0 if patched.circuit.kept[important] else 0.5)
        return bool(found.circuit.kept[important])

    assert kept(0.5)
    assert not kept(float(np.nextafter(0.5, 1)))


def test_a_threshold_of_zero_keeps_what_makes_no_difference() -> None:
    graph = Graph(2, 2, 2)
    found = answer(AcdcSearch(graph, 0.0, grouping="gates").run(), lambda patched: 1.25)
    assert found.circuit.num_kept == graph.num_edges
    assert all(v.kept and v.delta == 0 for v in found.verdicts)


def test_a_removal_that_helps_has_a_negative_delta_and_lowers_the_bar() -> None:
    graph = Graph(1, 1, 1, mlps=False)
    found = answer(
        AcdcSearch(graph, 0.25, grouping="none").run(),
        lambda patched: -float(graph.num_edges - patched.circuit.num_kept),
    )
    assert found.circuit.num_kept == 0
    # Head and input into the logits; q, k and v die with the head.
    assert [(v.delta, v.score) for v in found.verdicts] == [(-1.0, -1.0), (-1.0, -2.0)]


@pytest.mark.parametrize(
    ("gates", "evaluations"),
    # Five senders into the logits; m1 is dead then. Three senders into v, k and q of the head in layer 1,
    # tested singly or as gates; then all of layer 0 is dead.
    [(True, 5 + 3), (False, 5 + 9)],
)
def test_what_a_gate_or_death_removed_is_not_evaluated(gates: bool, evaluations: int) -> None:
    graph = Graph(2, 1, 1)
    important = graph.parse_edge("a1.h0->logits")
    search = AcdcSearch(graph, 0.5, "gates" if gates else "none")
    found = answer(search.run(), lambda patched: 0.0 if patched.circuit.kept[important] else 1.0)
    assert [graph.edge_name(e) for e in np.flatnonzero(found.circuit.kept)] == ["a1.h0->logits"]
    assert len(found.verdicts) == evaluations


def test_scores_are_the_deltas_of_the_edges_own_verdicts() -> None:
    graph = Graph(2, 2, 2)
    found = answer(AcdcSearch(graph, 3.0, grouping="gates").run(), SetScore(graph, 5))
    own = {v.index: v.delta for v in found.verdicts if not v.gate}
    assert {int(e): found.scores[e] for e in np.flatnonzero(~np.isnan(found.scores))} == own
    assert len(own) < graph.num_edges  # some went without a verdict of their own


def test_endpoints_are_measured_from_scratch() -> None:
    graph = Graph(2, 2, 2)
    score = SetScore(graph, 9)
    found = answer(AcdcSearch(graph, 2.0, grouping="none").run(), score)
    assert found.metric_value == score.of_circuit(found.circuit)
    assert found.metric_full == score.of_names([graph.edge_name(e) for e in range(graph.num_edges)])
    assert found.metric_empty == score.of_names([])


def _assert_equal(one: SearchResult, other: SearchResult) -> None:
    assert one.circuit.key == other.circuit.key
    assert np.array_equal(one.scores, other.scores, equal_nan=True)
    assert (one.metric_value, one.metric_full, one.metric_empty) == (
        other.metric_value,
        other.metric_full,
        other.metric_empty,
    )
