"""What a search tells about itself while it runs."""

from __future__ import annotations

import pytest
from helpers.scores import SetScore, answer
from hypothesis import given
from hypothesis import strategies as st

from pahq_server.core.circuit import Circuit, PatchedPass
from pahq_server.core.graph import Graph
from pahq_server.methods.acdc.order import Test as Question
from pahq_server.methods.acdc.search import AcdcSearch
from pahq_server.methods.circuits import Search
from pahq_server.methods.single_edge.method import SingleEdgeSearch

GRAPH = Graph(2, 2, 1)


@pytest.mark.parametrize(
    "search",
    [
        AcdcSearch(GRAPH, 2.0, grouping="gates"),
        AcdcSearch(GRAPH, 2.0, grouping="none", window=7),
        SingleEdgeSearch(GRAPH, 1.0, window=5),
        SingleEdgeSearch(GRAPH, None),
    ],
    ids=["acdc", "acdc batched", "single edge", "single edge, all"],
)
def test_decided_edges_only_grow_up_to_all_of_them(search: Search) -> None:
    score, steps = SetScore(GRAPH, 4), search.run()
    passes, seen = next(steps), [search.progress()]
    while True:
        try:
            passes = steps.send([score(patched) for patched in passes])
        except StopIteration as stop:
            result = stop.value
            break
        seen.append(search.progress())
    decided, kept = [p.done for p in seen], [p.figures["kept"] for p in seen]
    assert decided == sorted(decided)
    assert kept == sorted(kept)
    assert decided[0] == 0
    assert (decided[-1], kept[-1]) == (GRAPH.num_edges, result.circuit.num_kept)


def test_the_metric_of_acdc_is_that_of_the_full_graph_without_what_was_removed() -> None:
    score, search = SetScore(GRAPH, 4), AcdcSearch(GRAPH, 3.0, grouping="none")
    steps = search.run()
    passes = next(steps)
    for _ in range(10):
        passes = steps.send([score(patched) for patched in passes])
        removed = [v.index for v in search.verdicts if not v.kept]
        assert search.progress().figures["metric"] == score.of_circuit(Circuit.full(GRAPH).without(removed))
    assert len({v.score for v in search.verdicts if not v.kept}) > 1


@given(st.integers(1, 40), st.booleans())
def test_a_right_prediction_wastes_nothing(window: int, gates: bool) -> None:
    search = AcdcSearch(GRAPH, 1.0, "gates" if gates else "none", window)
    sizes: list[int] = []
    answer(search.run(), lambda patched: 0.0, sizes)  # nothing matters: all is removed, as predicted
    *steps, endpoints = sizes
    assert endpoints == 3
    assert (search.counts["batches"], search.counts["passes"]) == (len(steps), sum(steps))
    assert search.counts["wasted"] == 0
    # A test asks for one pass, and for its base circuit's if it is the first of its group.
    assert max(steps) <= 2 * window
    assert (len(steps) < len(search.verdicts)) == (window > 1)


def test_a_wrong_prediction_costs_passes_but_no_verdict() -> None:
    middle = GRAPH.num_edges - 4  # into the logits, which are tested first

    def score(patched: PatchedPass) -> float:
        return 0.0 if patched.circuit.kept[middle] else 9.0  # one edge matters

    search = AcdcSearch(GRAPH, 1.0, grouping="none", window=GRAPH.num_edges, clock=lambda: 0.0)
    answer(search.run(), score)
    plain = AcdcSearch(GRAPH, 1.0, grouping="none")
    answer(plain.run(), score)
    assert search.verdicts == plain.verdicts
    assert [verdict.index for verdict in search.verdicts if verdict.kept] == [middle]
    assert search.counts["wasted"] > 0
    assert search.counts["passes"] == plain.counts["passes"] + search.counts["wasted"]
    assert search.counts["batches"] < plain.counts["batches"]


def test_a_predictor_that_is_always_wrong_is_not_followed() -> None:
    def predict_keeping(test: Question) -> bool:
        return True

    search = AcdcSearch(GRAPH, 1.0, grouping="none", window=4, predictor=predict_keeping)
    answer(search.run(), lambda patched: 0.0)
    plain = AcdcSearch(GRAPH, 1.0, grouping="none")
    answer(plain.run(), lambda patched: 0.0)
    assert search.verdicts == plain.verdicts
    assert search.counts["batches"] == len(search.verdicts)
    assert search.counts["wasted"] == 0
