"""Circuits from scores: compared with slow twins, and what is refused."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from helpers import topology
from helpers.graphs import graphs
from hypothesis import given
from hypothesis import strategies as st
from reference import selection as reference

from pahq_client import EdgeScores, Graph, InvalidRequest
from pahq_client.edge_index import edge_index, pack
from pahq_client.graph import Edge, edges_on_paths
from pahq_server.core import graph as server_graph

SMALL = Graph(layers=2, heads=4, kv_heads=2, kv_receivers="group", parallel=False)


def client_graph(graph: server_graph.Graph) -> Graph:
    return Graph(graph.layers, graph.heads, graph.kv_heads, graph.kv_receivers, graph.parallel, graph.mlps)


def made_up(graph: Graph, seed: int = 0, values: int | None = None) -> EdgeScores:
    """Random scores; with ``values`` of so many distinct ones, so that many are equal."""
    random = np.random.default_rng(seed)
    scores = random.standard_normal(graph.num_edges)
    if values is not None:
        scores = random.integers(-values, values + 1, graph.num_edges).astype(float)
    return EdgeScores(scores, graph, "made up", "l2", 0.0, 1.0)


@given(graphs())
def test_the_index_has_the_edges_that_independent_loops_list(graph: server_graph.Graph) -> None:
    index = edge_index(client_graph(graph))
    names = topology.edge_names(graph)
    assert [index.name(i) for i in range(index.num_edges)] == names
    assert ["->".join(ends) for ends in index.edges(range(index.num_edges))] == names
    assert index.numbers(map(Edge.parse, names)).tolist() == list(range(len(names)))
    for receiver, feeds in zip(index.receivers, index.feeds, strict=True):
        assert [index.senders[sender] for sender in feeds] == topology.heads_behind(graph, receiver)
    for sender, read in enumerate(index.read_by):
        assert read == tuple(r for r, feeds in enumerate(index.feeds) if sender in feeds)


@given(graphs(), st.integers(0, 2**32 - 1), st.floats(0.02, 1))
def test_edges_on_paths_are_those_of_the_names(graph: server_graph.Graph, seed: int, share: float) -> None:
    index = edge_index(client_graph(graph))
    kept = np.random.default_rng(seed).random(index.num_edges) < share
    names = {index.name(number) for number in np.flatnonzero(kept)}
    found = {index.name(number) for number in np.flatnonzero(index.on_paths(kept))}
    assert found == topology.on_paths(graph, names)
    by_name = edges_on_paths([Edge.parse(name) for name in names], client_graph(graph))
    assert found == set(map(str, by_name))


@given(
    graphs(max_layers=2, max_kv_heads=2, max_group=2),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 3, None]),
    st.sampled_from(["absolute", "harm"]),
    st.floats(0, 1),
)
def test_top_and_greedy_are_those_of_the_slow_twins(
    graph: server_graph.Graph, seed: int, values: int | None, rank: str, share: float
) -> None:
    scores = made_up(client_graph(graph), seed, values)
    count = 1 + int(share * (graph.num_edges - 1))
    by_name = dict(zip(topology.edge_names(graph), scores.scores.tolist(), strict=True))
    for found, expected in (
        (scores.top(edges=count, rank=rank), reference.top(graph, by_name, rank, count)),
        (scores.greedy(edges=count, rank=rank), reference.greedy(graph, by_name, rank, count)),
    ):
        assert [str(edge) for edge in found.edges] == expected
        assert [edge.score for edge in found.edges] == [by_name[name] for name in expected]


def test_a_circuit_from_scores_says_where_it_is_from() -> None:
    provenance = {"request": {"model_revision": "c0ffee"}, "run": {"model": "demo", "warnings": ["careful"]}}
    scores = dataclasses.replace(made_up(SMALL), provenance=provenance)
    circuit = scores.top(fraction=0.5, rank="harm")
    assert circuit.provenance["request"] == {
        "model_revision": "c0ffee",
        "selection": "top",
        "rank": "harm",
        "edges": SMALL.num_edges // 2,
    }
    assert circuit.model == scores.model == "demo"
    assert circuit.warnings == ("careful",)
    assert (circuit.verdicts, circuit.num_evaluations, circuit.num_edges_total) == ((), 0, SMALL.num_edges)
    assert (circuit.metric.name, circuit.metric.full, circuit.metric.empty) == ("l2", 0.0, 1.0)
    assert not circuit.is_measured
    assert math.isnan(circuit.metric_value)
    assert circuit.faithfulness is None
    assert "l2 not measured" in repr(circuit)
    assert "evaluations" not in repr(circuit)
    partial = dataclasses.replace(scores, partial=True).greedy(edges=3)
    assert partial.provenance["request"]["selection"] == "greedy"
    assert [text[:30] for text in partial.warnings] == ["careful", "The scores are those of a job "]


def test_fractions_are_rounded_down_as_doubles() -> None:
    graph = Graph(2, 4, 2, "group", False, mlps=False)
    scores = made_up(graph)
    assert graph.num_edges == 57
    # 0.07 · 100 would be 7.000000000000001; 0.57 · 100 is 56.99999999999999.
    asked = [circuit.request["edges"] for circuit in scores.curve_circuits([1 / 57, 0.29, 1.0])]
    assert asked == [1, 16, 57]
    hundred = made_up(Graph(1, 33, 33, "query", True, mlps=False))
    assert hundred.graph.num_edges == 133
    assert hundred.top(fraction=3 / 7).request["edges"] == int(3 / 7 * 133) == 57
    assert [len(circuit) for circuit in scores.curve_circuits([0.01, 1.0])] == [0, 57]
    assert len(scores.curve_circuits()) == 10


@pytest.mark.parametrize(
    ("arguments", "field", "words"),
    [
        ({}, "edges", "either edges= or fraction=, got neither"),
        ({"edges": 3, "fraction": 0.5}, "edges", "got both"),
        ({"edges": 0}, "edges", "from 1 to 82.*got 0"),
        ({"edges": 83}, "edges", "from 1 to 82.*got 83"),
        ({"edges": 2.5}, "edges", "integer"),
        ({"edges": True}, "edges", "integer"),
        ({"fraction": 0.0}, "fraction", "above 0 and at most 1, got 0"),
        ({"fraction": -0.1}, "fraction", "got -0.1"),
        ({"fraction": 1.01}, "fraction", "got 1.01"),
        ({"fraction": math.nan}, "fraction", "got nan"),
        ({"fraction": "5%"}, "fraction", "number"),
        ({"edges": 3, "rank": "best"}, "rank", "'absolute', 'harm', got 'best'"),
    ],
)
@pytest.mark.parametrize("choose", ["top", "greedy"])
def test_what_cannot_be_chosen_is_refused(
    arguments: dict[str, object], field: str, words: str, choose: str
) -> None:
    with pytest.raises(InvalidRequest, match=words) as raised:
        getattr(made_up(SMALL), choose)(**arguments)
    assert raised.value.field == field


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (np.zeros(81), r"shape \[82\], got shape \[81\]"),
        (np.zeros((82, 1)), r"got shape \[82, 1\]"),
        (["high"] * 82, "must be numbers"),
        (np.where(np.arange(82) == 7, np.nan, 0.0), "must be finite, got nan for input->a0.g1<v>"),
        (np.full(82, -np.inf), "must be finite, got -inf for input->a0.h0<q>"),
    ],
)
def test_scores_that_are_not_one_finite_number_per_edge_are_refused(scores: object, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        EdgeScores(scores, SMALL, "x", "l2")  # type: ignore[arg-type]


def test_an_edge_that_the_graph_does_not_have_is_named() -> None:
    index = edge_index(SMALL)
    for name in ("m1->m0", "a0.h1->a1.h2<k>", "a0.h4->logits", "a1.h0->a1.h1<q>"):
        with pytest.raises(InvalidRequest, match=f"no edge {name}"):
            index.kept([Edge.parse(name)])


def test_bits_are_packed_lowest_first() -> None:
    kept = np.zeros(10, bool)
    kept[[0, 3, 9]] = True
    assert pack(kept) == bytes([0b1001, 0b10])


def test_node_totals_are_sums_over_names() -> None:
    scores = made_up(SMALL)
    totals = {total.node: total for total in scores.by_node()}
    named = dict(zip(SMALL.edge_names(), scores.scores.tolist(), strict=True))
    for node in ("input", "a0.h1", "a1.h3", "m1", "logits"):
        out = [score for name, score in named.items() if name.startswith(f"{node}->")]
        into = [
            score
            for name, score in named.items()
            if node in (SMALL.senders_behind(name.split("->")[1]) or ("logits",))
        ]
        total = totals[node]
        assert total.incoming == pytest.approx(math.fsum(into))
        assert total.outgoing == pytest.approx(math.fsum(out))
        assert (total.num_incoming, total.num_outgoing) == (len(into), len(out))
        assert total.total == pytest.approx(math.fsum(map(abs, into + out)))
    assert [t.total for t in scores.by_node()] == sorted((t.total for t in totals.values()), reverse=True)
    assert (totals["a1.h3"].kind, totals["a1.h3"].layer, totals["a1.h3"].head) == ("head", 1, 3)
    assert (totals["m1"].kind, totals["m1"].layer, totals["m1"].head) == ("mlp", 1, None)
    assert (totals["input"].kind, totals["input"].layer) == ("input", None)
    assert (totals["logits"].kind, totals["logits"].layer) == ("logits", None)
