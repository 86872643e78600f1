from __future__ import annotations

import numpy as np
import pytest
from helpers.graphs import graphs
from helpers.topology import edge_names, heads_behind, receiver_names, senders_before, senders_into
from hypothesis import given

from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.graph import INPUT, Graph

GPT2_SMALL = Graph(layers=12, heads=12, kv_heads=12)
GROUPED = Graph(layers=2, heads=4, kv_heads=2)


@pytest.mark.parametrize(
    ("graph", "edges"),
    [
        (GPT2_SMALL, 32_491),
        (Graph(32, 32, 32, "query"), 1_592_881),
        (Graph(32, 32, 8, "query"), 1_592_881),
        # One layer, two heads: 6 q/k/v edges, 3 into the MLP, 4 into the logits.
        (Graph(1, 2, 2), 13),
        (Graph(1, 2, 2, mlps=False), 9),
        (Graph(1, 2, 2, parallel=True), 11),
        # 2 q, 1 k, 1 v receiver.
        (Graph(1, 2, 1, "group"), 11),
        (Graph(1, 2, 1, "query"), 13),
    ],
)
def test_number_of_edges(graph: Graph, edges: int) -> None:
    assert graph.num_edges == edges


def test_counts_of_gpt2_small() -> None:
    assert GPT2_SMALL.num_senders == 1 + 12 * 13
    assert GPT2_SMALL.num_receivers == 12 * 37 + 1
    qkv = [r for r in range(GPT2_SMALL.num_receivers) if GPT2_SMALL.receiver(r).kind in "qkv"]
    assert len(qkv) == 432  # the gates of ACDC as published


def test_grouping_is_the_same_graph_where_every_head_has_its_own_key_and_value() -> None:
    group, query = Graph(2, 3, 3, "group"), Graph(2, 3, 3, "query")
    assert [group.edge_name(e) for e in range(group.num_edges)] == [
        query.edge_name(e) for e in range(query.num_edges)
    ]


@given(graphs())
def test_every_edge_has_the_name_that_independent_loops_give_it(graph: Graph) -> None:
    assert [graph.edge_name(edge) for edge in range(graph.num_edges)] == edge_names(graph)


@given(graphs())
def test_senders_and_receivers_are_numbered_as_documented(graph: Graph) -> None:
    senders = [graph.sender_name(s) for s in range(graph.num_senders)]
    receivers = [graph.receiver_name(r) for r in range(graph.num_receivers)]
    assert senders == senders_before(graph, graph.layers)
    assert receivers == receiver_names(graph)
    assert receivers[graph.logits] == "logits"
    assert [graph.parse_sender(name) for name in senders] == list(range(graph.num_senders))
    assert [graph.parse_receiver(name) for name in receivers] == list(range(graph.num_receivers))


@given(graphs())
def test_edge_names_and_ends_round_trip(graph: Graph) -> None:
    for edge in range(graph.num_edges):
        assert graph.parse_edge(graph.edge_name(edge)) == edge
        assert graph.edge(*graph.edge_ends(edge)) == edge


@given(graphs())
def test_receivers_round_trip_through_their_parts(graph: Graph) -> None:
    for index in range(graph.num_receivers):
        kind, layer, unit = graph.receiver(index)
        assert graph.receiver_of(kind, layer, unit) == index


@given(graphs())
def test_upstream_agrees_with_the_names(graph: Graph) -> None:
    for index in range(graph.num_receivers):
        expected = senders_into(graph, graph.receiver_name(index))
        assert [graph.sender_name(s) for s in range(graph.upstream(index))] == expected


@given(graphs())
def test_outgoing_edges_are_exactly_those_that_start_at_the_sender(graph: Graph) -> None:
    by_sender: dict[int, list[int]] = {s: [] for s in range(graph.num_senders)}
    for edge in range(graph.num_edges):
        by_sender[graph.edge_ends(edge)[0]].append(edge)
    for sender, edges in by_sender.items():
        assert graph.outgoing(sender).tolist() == edges
        assert graph.edge_ends(edges[0])[1] == graph.first_receiver(sender)


@given(graphs())
def test_senders_behind_a_receiver(graph: Graph) -> None:
    for index in range(graph.num_receivers):
        behind = [graph.sender_name(s) for s in graph.senders_behind(index)]
        assert behind == heads_behind(graph, graph.receiver_name(index))


def test_a_head_feeds_the_mlp_of_its_own_layer_unless_they_run_in_parallel() -> None:
    serial, parallel = Graph(2, 2, 2), Graph(2, 2, 2, parallel=True)
    assert serial.parse_edge("a1.h0->m1") >= 0
    with pytest.raises(InvalidRequestError, match="does not come before"):
        parallel.parse_edge("a1.h0->m1")
    assert parallel.parse_edge("a0.h0->m1") >= 0


def test_offsets_partition_the_edges() -> None:
    assert GROUPED.offsets[0] == 0
    assert GROUPED.offsets[-1] == GROUPED.num_edges
    assert np.all(np.diff(GROUPED.offsets) >= 1)
    assert GROUPED.edge_ends(0) == (INPUT, 0)
    assert GROUPED.edge_ends(GROUPED.num_edges - 1) == (GROUPED.num_senders - 1, GROUPED.logits)
