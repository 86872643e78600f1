"""The order of tests, spelled out once for small graphs."""

from __future__ import annotations

import pytest
from helpers.scores import answer

from pahq_server.core.circuit import Circuit
from pahq_server.core.graph import Graph
from pahq_server.methods.acdc.order import Grouping, TestOrder
from pahq_server.methods.acdc.search import AcdcSearch


def subjects(graph: Graph, grouping: Grouping) -> list[str]:
    """What is tested when everything is kept."""
    found = answer(AcdcSearch(graph, 0.0, grouping).run(), lambda patched: 0.0)
    names = {True: graph.receiver_name, False: graph.edge_name}
    return [names[v.gate](v.index) for v in found.verdicts]


def test_one_layer_without_gates() -> None:
    assert subjects(Graph(1, 2, 2), grouping="none") == [
        "m0->logits",
        "a0.h1->logits",
        "a0.h0->logits",
        "input->logits",
        "a0.h1->m0",
        "a0.h0->m0",
        "input->m0",
        "input->a0.h1<v>",
        "input->a0.h0<v>",
        "input->a0.h1<k>",
        "input->a0.h0<k>",
        "input->a0.h1<q>",
        "input->a0.h0<q>",
    ]


def test_the_gates_of_a_layer_come_after_its_mlp_and_before_its_edges() -> None:
    assert subjects(Graph(2, 1, 1), grouping="gates") == [
        *("m1->logits", "a1.h0->logits", "m0->logits", "a0.h0->logits", "input->logits"),
        *("a1.h0->m1", "m0->m1", "a0.h0->m1", "input->m1"),
        *("a1.h0<v>", "a1.h0<k>", "a1.h0<q>"),
        *("m0->a1.h0<v>", "a0.h0->a1.h0<v>", "input->a1.h0<v>"),
        *("m0->a1.h0<k>", "a0.h0->a1.h0<k>", "input->a1.h0<k>"),
        *("m0->a1.h0<q>", "a0.h0->a1.h0<q>", "input->a1.h0<q>"),
        *("a0.h0->m0", "input->m0"),
        *("a0.h0<v>", "a0.h0<k>", "a0.h0<q>"),
        *("input->a0.h0<v>", "input->a0.h0<k>", "input->a0.h0<q>"),
    ]


@pytest.mark.parametrize(("grouping", "least"), [("none", 23), ("gates", 17), ("bisect", 9)])
def test_how_many_tests_there_can_be(grouping: Grouping, least: int) -> None:
    graph = Graph(2, 1, 1)
    assert TestOrder(graph, grouping).bounds() == (least, len(subjects(graph, grouping)))
    assert TestOrder(graph, grouping, Circuit.empty(graph)).bounds() == (0, 0)


def test_group_receivers_take_their_turn_in_place_of_their_heads() -> None:
    tested = subjects(Graph(1, 4, 2, mlps=False), grouping="gates")
    assert [name for name in tested if "->" not in name] == [
        *("a0.g1<v>", "a0.g0<v>", "a0.g1<k>", "a0.g0<k>"),
        *("a0.h3<q>", "a0.h2<q>", "a0.h1<q>", "a0.h0<q>"),
    ]


@pytest.mark.parametrize("group_survives", [True, False])
def test_a_group_receiver_lives_as_long_as_one_of_its_heads(group_survives: bool) -> None:
    graph = Graph(1, 4, 2, mlps=False)
    # Head 1 belongs to group 0, whose other head is removed; or nothing matters.
    needed = graph.parse_edge("a0.h1->logits")
    found = answer(
        AcdcSearch(graph, 0.5, grouping="gates").run(),
        lambda patched: 1.0 if group_survives and not patched.circuit.kept[needed] else 0.0,
    )
    gates = [graph.receiver_name(v.index) for v in found.verdicts if v.gate]
    assert gates == (["a0.g0<v>", "a0.g0<k>", "a0.h1<q>"] if group_survives else [])


def test_edges_that_input_cannot_reach_are_not_pruned() -> None:
    graph = Graph(1, 1, 1)
    # Only m0 -> logits matters: m0 keeps its edge although nothing flows into it any more.
    needed = graph.parse_edge("m0->logits")
    found = answer(
        AcdcSearch(graph, 0.5, grouping="gates").run(),
        lambda patched: 0.0 if patched.circuit.kept[needed] else 1.0,
    )
    assert found.circuit.kept.nonzero()[0].tolist() == [needed]
