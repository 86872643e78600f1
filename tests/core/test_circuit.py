from __future__ import annotations

import numpy as np
import pytest
from helpers.graphs import graphs
from helpers.topology import on_paths
from hypothesis import given
from hypothesis import strategies as st

from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.graph import INPUT, Graph

GRAPH = Graph(layers=2, heads=2, kv_heads=2)


def test_full_and_empty() -> None:
    full, empty = Circuit.full(GRAPH), Circuit.empty(GRAPH)
    assert (full.num_kept, empty.num_kept) == (GRAPH.num_edges, 0)
    assert full.kept.all()
    assert not empty.kept.any()


def test_from_names_keeps_exactly_the_named_edges() -> None:
    names = ["m1->logits", "input->a0.h1<v>", "a0.h1->m1"]
    circuit = Circuit.from_names(GRAPH, [*names, names[0]])
    assert {GRAPH.edge_name(e) for e in np.flatnonzero(circuit.kept)} == set(names)


def test_from_no_names_is_the_empty_circuit() -> None:
    assert Circuit.from_names(GRAPH, []).key == Circuit.empty(GRAPH).key


def test_from_names_refuses_an_unknown_edge() -> None:
    with pytest.raises(InvalidRequestError, match=r"the graph has no sender 'm7'"):
        Circuit.from_names(GRAPH, ["m1->logits", "m7->logits"])


def test_without_leaves_the_original_as_it_was() -> None:
    full = Circuit.full(GRAPH)
    less = full.without([3, 5]).without((5,))
    assert np.flatnonzero(~less.kept).tolist() == [3, 5]
    assert full.num_kept == GRAPH.num_edges
    assert less.without([]) is less


@given(graphs(max_layers=2), st.data())
def test_keys_are_equal_exactly_for_equal_sets(graph: Graph, data: st.DataObject) -> None:
    edges = st.sets(st.integers(0, graph.num_edges - 1), max_size=4)
    one, other = data.draw(edges), data.draw(edges)
    keys = [Circuit.full(graph).without(sorted(removed)).key for removed in (one, other)]
    assert (keys[0] == keys[1]) == (one == other)


@given(graphs(), st.integers(0, 2**32 - 1), st.floats(0.02, 1))
def test_paths_are_those_of_networkx(graph: Graph, seed: int, share: float) -> None:
    circuit = Circuit(graph, np.random.default_rng(seed).random(graph.num_edges) < share)
    names = [graph.edge_name(edge) for edge in np.flatnonzero(circuit.kept)]
    assert {graph.edge_name(edge) for edge in np.flatnonzero(circuit.on_paths())} == on_paths(graph, names)
    assert not (circuit.on_paths() & ~circuit.kept).any()


def test_all_edges_of_the_full_graph_are_on_paths() -> None:
    for mlps in (True, False):
        graph = Graph(layers=3, heads=4, kv_heads=2, mlps=mlps)
        assert Circuit.full(graph).on_paths().all()
        assert not Circuit.empty(graph).on_paths().any()


@pytest.mark.parametrize(
    ("names", "on_path"),
    [
        (["input->a0.h1<q>", "a0.h1->logits"], 2),  # a query alone makes a path
        (["input->a0.h1<q>", "a0.h0->logits"], 0),  # of another head
        (["m0->m1", "m1->logits"], 0),  # nothing comes from the input
        (["input->m0", "m0->m1"], 0),  # nothing goes to the output
        (["input->m0", "m0->a1.h0<k>", "a1.h0->m1", "m1->logits", "m0->a1.h1<v>"], 4),
        (["input->logits", "a0.h0->logits"], 1),
    ],
)
def test_what_a_path_is(names: list[str], on_path: int) -> None:
    circuit = Circuit.from_names(GRAPH, names)
    assert circuit.on_paths().sum() == on_path
    assert (circuit.on_paths() & circuit.kept).sum() == on_path


def test_the_key_of_a_group_leads_to_all_of_its_heads() -> None:
    graph = Graph(layers=1, heads=4, kv_heads=2)
    for head, reached in ((0, False), (1, False), (2, True), (3, True)):
        circuit = Circuit.from_names(graph, ["input->a0.g1<k>", f"a0.h{head}->logits"])
        assert circuit.on_paths().any() == reached


@given(graphs(), st.data())
def test_incoming_is_by_sender(graph: Graph, data: st.DataObject) -> None:
    edge = data.draw(st.integers(0, graph.num_edges - 1))
    sender, receiver = graph.edge_ends(edge)
    circuit = Circuit.full(graph).without([edge])
    assert np.flatnonzero(~circuit.incoming(receiver)).tolist() == [sender]
    assert all(circuit.incoming(r).all() for r in range(graph.num_receivers) if r != receiver)


@given(graphs())
def test_a_sender_dies_with_its_last_outgoing_edge(graph: Graph) -> None:
    for sender in (INPUT, graph.num_senders - 1):
        *others, last = graph.outgoing(sender).tolist()
        nearly = Circuit.full(graph).without(others)
        assert not nearly.is_dead(sender)
        assert nearly.without([last]).is_dead(sender)


def test_row_is_the_anchor_without_some_edges() -> None:
    base_circuit = BaseCircuit(Circuit.full(GRAPH).without([0]))
    assert PatchedPass(base_circuit).circuit.key == base_circuit.circuit.key
    assert np.flatnonzero(~PatchedPass(base_circuit, (4, 2)).circuit.kept).tolist() == [0, 2, 4]
