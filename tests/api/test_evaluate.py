"""EvaluateCircuits: circuits of the client, measured without a job."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.api_server import RunningServer, evaluation, objective, refused
from helpers.fake_engine import GRAPH, FakeEngine
from helpers.scores import SetScore
from helpers.topology import edge_names
from pahq.v1 import circuit_pb2
from pahq.v1 import patching_pb2 as pb

from pahq_server.core.graph import Graph

SIZES = {"layers": 2, "heads": 2, "kv_heads": 2, "kv_receivers": "group", "mlps": True}


def bits(*names: str) -> bytes:
    kept = [name in names for name in edge_names(GRAPH)]
    return np.packbits(kept, bitorder="little").tobytes()


def numbered(*names: str, revision: str = "", **sizes: Any) -> pb.EvaluatedCircuit:
    graph = circuit_pb2.Graph(**(SIZES | sizes))
    edges = circuit_pb2.EdgeSet(graph=graph, model_revision=revision, bits=bits(*names))
    return pb.EvaluatedCircuit(edges=edges)


def request(*circuits: pb.EvaluatedCircuit, **changes: Any) -> pb.EvaluateCircuitsRequest:
    return pb.EvaluateCircuitsRequest(objective=objective(**changes), circuits=circuits)


def test_evaluate(server: RunningServer) -> None:
    kept = ["m1->logits", "a0.h0->m1"]
    asked = evaluation(kept, [], metric="l2")
    asked.circuits.append(numbered(*edge_names(GRAPH)[::3]))
    response = server.patching.EvaluateCircuits(asked)
    metric = SetScore(GRAPH, 1)
    assert response.metric == "l2"
    assert list(response.values) == [
        metric.of_names(kept),
        metric.of_names([]),
        metric.of_names(edge_names(GRAPH)[::3]),
    ]
    assert (response.full, response.empty) == (metric.of_names(edge_names(GRAPH)), metric.of_names([]))
    assert response.num_edges_total == GRAPH.num_edges


@pytest.mark.parametrize("name", edge_names(GRAPH))
def test_numbers_are_those_of_names(name: str, server: RunningServer) -> None:
    asked = evaluation([name])
    asked.circuits.append(numbered(name))
    one, same = server.patching.EvaluateCircuits(asked).values
    assert one == same == SetScore(GRAPH, 1).of_names([name])


def test_a_thousand_circuits_and_no_more(server: RunningServer, engine: FakeEngine) -> None:
    names = edge_names(GRAPH)
    circuits = [names[: number % (len(names) + 1)] for number in range(1000)]
    response = server.patching.EvaluateCircuits(evaluation(*circuits))
    metric = SetScore(GRAPH, 1)
    assert list(response.values) == [metric.of_names(circuit) for circuit in circuits]
    opened = len(engine.opened)
    for count in (0, 1001):
        with refused() as refusal:
            server.patching.EvaluateCircuits(evaluation(*[[]] * count))
        assert refusal.violation == ("circuits", f"must be from 1 to 1000 circuits, got {count}")
    assert len(engine.opened) == opened


@pytest.mark.parametrize(
    ("circuit", "field", "detail"),
    [
        (pb.EvaluatedCircuit(), "circuits[1]", "has neither names nor edges"),
        (
            pb.EvaluatedCircuit(edges=circuit_pb2.EdgeSet(bits=bits())),
            "circuits[1].edges.graph",
            "is missing",
        ),
        (pb.EvaluatedCircuit(names=pb.EdgeList(names=["m9->logits"])), "circuits[1].names", "no sender 'm9'"),
        (pb.EvaluatedCircuit(names=pb.EdgeList(names=[""])), "circuits[1].names", "not of the form"),
    ],
)
def test_what_is_no_circuit(
    circuit: pb.EvaluatedCircuit, field: str, detail: str, server: RunningServer, engine: FakeEngine
) -> None:
    with refused() as refusal:
        server.patching.EvaluateCircuits(request(numbered(), circuit))
    assert refusal.violation[0] == field
    assert detail in refusal.violation[1]
    assert engine.opened == []


@pytest.mark.parametrize(
    ("wrong", "detail"),
    [
        (b"", f"must be {len(bits())} bytes"),
        (bits() + b"\0", f"must be {len(bits())} bytes"),
        (bits()[:-1], f"one bit for each of {GRAPH.num_edges} edges"),
        (bits()[:-1] + bytes([1 << GRAPH.num_edges % 8]), "must be 0 after the last of"),
        (b"\xff" * len(bits()), "must be 0 after the last of"),
    ],
)
def test_what_is_not_one_bit_per_edge(wrong: bytes, detail: str, server: RunningServer) -> None:
    assert GRAPH.num_edges % 8
    circuit = numbered()
    circuit.edges.bits = wrong
    with refused() as refusal:
        server.patching.EvaluateCircuits(request(circuit))
    assert refusal.violation[0] == "circuits[0].edges.bits"
    assert detail in refusal.violation[1]


@pytest.mark.parametrize(
    ("graph", "revision"),
    [
        ({"layers": 3}, ""),
        ({"heads": 4}, ""),
        ({"kv_heads": 1}, ""),
        ({"parallel": True}, ""),
        ({"mlps": False}, ""),
        ({}, "decaf"),
        ({"layers": -(2**31)}, "c0ffee"),
    ],
)
def test_a_circuit_of_another_model_is_refused(
    server: RunningServer, engine: FakeEngine, graph: dict[str, Any], revision: str
) -> None:
    with refused() as refusal:
        server.patching.EvaluateCircuits(request(numbered(), numbered(revision=revision, **graph)))
    assert refusal.info.reason == "OTHER_MODEL"
    assert refusal.violation[0] == "circuits[1].edges"
    assert "or pass allow_other_model=True" in refusal.violation[1]
    assert "2 layers, 2 heads" in refusal.info.metadata["model"]
    assert "revision c0ffee" in refusal.info.metadata["model"]
    assert (revision or "revision unknown") in refusal.info.metadata["circuit"]
    assert engine.opened == []


@pytest.mark.parametrize("changes", [{}, {"kv_receivers": "query"}])
@pytest.mark.parametrize("revision", ["", "c0ffee"])
def test_a_circuit_of_this_model_is_measured(
    server: RunningServer, changes: dict[str, Any], revision: str
) -> None:
    """Where every head has its own keys and values, the two treatments are one graph."""
    circuit = numbered("m1->logits", revision=revision, **changes)
    (value,) = server.patching.EvaluateCircuits(request(circuit)).values
    assert value == SetScore(GRAPH, 1).of_names(["m1->logits"])


def test_another_treatment_of_shared_keys_is_named() -> None:
    engine = FakeEngine(Graph(layers=2, heads=4, kv_heads=2))
    circuit = numbered(heads=4, kv_receivers="query")
    with RunningServer(engine) as server, refused() as refusal:
        server.patching.EvaluateCircuits(request(circuit))
    assert refusal.violation[0] == "kv_receivers"
    assert "'query'" in refusal.violation[1]


def test_warnings_of_several_circuits_are_those_of_all(server: RunningServer) -> None:
    def told(*circuits: list[str]) -> list[str]:
        return list(server.patching.EvaluateCircuits(evaluation(*circuits)).warnings)

    assert any("has no edges" in text for text in told([]))
    assert told([], []) == [text for text in told([]) if text in told(edge_names(GRAPH))]
