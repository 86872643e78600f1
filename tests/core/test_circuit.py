from __future__ import annotations

import numpy as np
import pytest
from helpers.graphs import graphs
from hypothesis import given
from hypothesis import strategies as st

from pahq_server.core.circuit import Circuit
from pahq_server.core.engine import Anchor, Row
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
    anchor = Anchor(Circuit.full(GRAPH).without([0]))
    assert Row(anchor).circuit.key == anchor.circuit.key
    assert np.flatnonzero(~Row(anchor, (4, 2)).circuit.kept).tolist() == [0, 2, 4]
