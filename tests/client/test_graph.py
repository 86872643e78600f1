"""Which edges carry something from the prompts to the output, and circuits without the others."""

from __future__ import annotations

import dataclasses
import random

import pytest
from helpers import topology
from helpers.graphs import graphs
from hypothesis import given
from hypothesis import strategies as st

from pahq_client import Circuit, CircuitMetric, Edge, Graph
from pahq_client.graph import edges_on_paths
from pahq_server.core import graph as server_graph

SMALL = Graph(layers=2, heads=4, kv_heads=2, kv_receivers="group", parallel=False)


def found(
    *names: str, graph: Graph = SMALL, ablation: str = "resample", gates: tuple[str, ...] = ()
) -> Circuit:
    return Circuit(
        edges=tuple(map(Edge.parse, names)),
        graph=graph,
        metric=CircuitMetric("kl_divergence", 0.5, 0.0, 2.0),
        num_evaluations=9,
        num_edges_total=81,
        gates_kept=gates,
        provenance={"request": {"parameters": {"ablation": ablation}}, "run": {"model": "demo"}},
    )


@given(graphs(), st.integers(0, 2**32 - 1), st.floats(0.02, 1))
def test_paths_are_those_of_networkx(graph: server_graph.Graph, seed: int, share: float) -> None:
    rng = random.Random(seed)
    names = [name for name in topology.edge_names(graph) if rng.random() < share]
    rng.shuffle(names)
    sizes = (graph.layers, graph.heads, graph.kv_heads, graph.kv_receivers, graph.parallel, graph.mlps)
    on_paths = edges_on_paths([Edge.parse(name) for name in names], Graph(*sizes))
    expected = topology.on_paths(graph, names)
    assert [str(edge) for edge in on_paths] == [name for name in names if name in expected]


def test_pruned() -> None:
    kept = ["input->m0", "m0->a1.g1<k>", "a1.h3->logits"]
    dangling = ["a0.h0->a1.h2<q>", "input->a1.h0<q>", "m1->logits"]
    circuit = found(*kept, *dangling, gates=("a1.g1<k>", "a1.h2<q>"))
    pruned = circuit.pruned()
    assert [str(edge) for edge in pruned.edges] == kept
    assert pruned.gates_kept == ("a1.g1<k>",)
    assert pruned.provenance["run"] == {"model": "demo", "pruned": 3}
    assert pruned.pruned() is pruned
    assert "Circuit(6 of 81 edges, 3 on a path from input to logits, " in repr(circuit)
    assert "Circuit(3 of 81 edges, 3 on a path from input to logits, " in repr(pruned)
    assert len(circuit.edges) == 6
    assert "3 on a path from input to logits" in circuit._repr_html_()


def test_a_circuit_without_any_path() -> None:
    circuit = found("m0->m1", "m1->logits")
    assert circuit.on_paths == ()
    assert circuit.pruned().edges == ()
    assert found().pruned().edges == ()


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_where_the_metric_may_be_another_the_pruned_circuit_says_so(ablation: str) -> None:
    circuit = found("input->logits", "m0->logits", ablation=ablation)
    (warning,) = circuit.pruned().warnings
    assert "pruned of 1 edge;" in warning
    assert "1 warning" in repr(circuit.pruned())
    assert found("input->logits", ablation=ablation).pruned().warnings == ()
    assert found("input->logits", "m0->logits").pruned().warnings == ()


@pytest.mark.parametrize(
    ("kv_heads", "heads"), [(0, 0), (0, 4), (3, 2), (10**4, 10**4), (1, 10**4)], ids=lambda size: str(size)
)
def test_graphs_of_any_size_and_circles_end(kv_heads: int, heads: int) -> None:
    """What a damaged file may hold."""
    graph = dataclasses.replace(SMALL, kv_heads=kv_heads, heads=heads)
    names = ["a5.h1->a0.h0<q>", "a0.h0->a5.h1<k>", "a999.h1->m0", "input->m0", "m0->logits"]
    assert [str(edge) for edge in found(*names, graph=graph).on_paths] == names[3:]


def test_heads_of_a_group_need_no_name_of_their_own() -> None:
    circuit = found("input->a0.g0<v>", "a0.h1->logits", "a0.h2->logits")
    assert [str(edge) for edge in circuit.on_paths] == ["input->a0.g0<v>", "a0.h1->logits"]
