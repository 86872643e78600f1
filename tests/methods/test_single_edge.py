from __future__ import annotations

import numpy as np
import pytest
from helpers.graphs import graphs
from helpers.scores import SetScore, answer
from helpers.topology import edge_names
from hypothesis import given, settings
from hypothesis import strategies as st

from pahq_server.core.graph import Graph
from pahq_server.methods.single_edge.method import SingleEdgeSearch

GRAPH = Graph(2, 2, 1)


@settings(max_examples=40)
@given(graphs(max_layers=2, max_kv_heads=2, max_group=2), st.integers(0, 255), st.integers(1, 50))
def test_scores_each_edge_alone_against_the_full_model(graph: Graph, seed: int, window: int) -> None:
    metric = SetScore(graph, seed)
    names = edge_names(graph)
    full = metric.of_names(set(names))
    expected = [metric.of_names(set(names) - {name}) - full for name in names]
    found = answer(SingleEdgeSearch(graph, None, window).run(), metric)
    assert found.scores.tolist() == expected
    assert [(v.index, v.delta, v.kept, v.gate) for v in found.verdicts] == [
        (edge, delta, True, False) for edge, delta in enumerate(expected)
    ]
    assert found.circuit.num_kept == graph.num_edges
    assert (found.metric_value, found.metric_full) == (full, full)
    assert found.metric_empty == metric.of_names(set())


@pytest.mark.parametrize("threshold", [0.0, 1.0, 3.0, 6.5])
def test_keeps_the_edges_whose_score_reaches_the_threshold(threshold: float) -> None:
    metric = SetScore(GRAPH, 8)
    everything = answer(SingleEdgeSearch(GRAPH, None).run(), metric)
    found = answer(SingleEdgeSearch(GRAPH, threshold, window=6).run(), metric)
    assert np.array_equal(found.circuit.kept, everything.scores >= threshold)
    assert np.array_equal(found.scores, everything.scores)
    assert found.metric_value == metric.of_circuit(found.circuit)


def test_some_scores_equal_a_threshold_in_the_test_above() -> None:
    scores = answer(SingleEdgeSearch(GRAPH, None).run(), SetScore(GRAPH, 8)).scores
    assert {0.0, 1.0, 3.0} <= set(scores.tolist())
    assert (scores < 0).any()


@pytest.mark.parametrize("window", [1, 7, 1000])
def test_resumes_from_any_prefix_of_its_log(window: int) -> None:
    metric = SetScore(GRAPH, 2)
    whole = answer(SingleEdgeSearch(GRAPH, 1.0).run(), metric)
    for length in range(GRAPH.num_edges + 1):
        search = SingleEdgeSearch(GRAPH, 1.0, window, verdicts=whole.verdicts[:length])
        resumed = answer(search.run(), metric)
        assert resumed.verdicts == whole.verdicts
        assert resumed.circuit.key == whole.circuit.key
        left = GRAPH.num_edges - length
        assert search.counts["passes"] == (left + 1 if left else 0)


def test_asks_for_at_most_a_window_of_edges_per_step() -> None:
    sizes: list[int] = []
    answer(SingleEdgeSearch(GRAPH, None, window=8).run(), lambda patched: 0.0, sizes)
    rest = GRAPH.num_edges % 8
    # The full model before the first edges, the sweep, and the three circuits of the result.
    assert sizes == [9, *[8] * (GRAPH.num_edges // 8 - 1), *([rest] if rest else []), 3]
