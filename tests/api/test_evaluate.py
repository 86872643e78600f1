"""EvaluateCircuit: a circuit of the client, measured without a job."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.api_server import RunningServer, objective, refused
from helpers.fake_engine import GRAPH, FakeEngine
from helpers.scores import SetScore
from helpers.topology import edge_names
from pahq.v1 import circuit_pb2
from pahq.v1 import patching_pb2 as pb

from pahq_server.core.graph import Graph


def test_evaluate(server: RunningServer) -> None:
    kept = ["m1->logits", "a0.h0->m1"]
    request = pb.EvaluateCircuitRequest(objective=objective(metric="l2"), edges=kept)
    response = server.patching.EvaluateCircuit(request)
    metric = SetScore(GRAPH, 1)
    assert response.metric.name == "l2"
    assert (response.metric.value, response.metric.full, response.metric.empty) == (
        metric.of_names(kept),
        metric.of_names(edge_names(GRAPH)),
        metric.of_names([]),
    )
    assert response.num_edges_total == GRAPH.num_edges


ORIGIN = {"layers": 2, "heads": 2, "kv_heads": 2, "kv_receivers": "group", "mlps": True}


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
    origin = pb.CircuitOrigin(graph=circuit_pb2.Graph(**(ORIGIN | graph)), model_revision=revision)
    with refused() as refusal:
        server.patching.EvaluateCircuit(
            pb.EvaluateCircuitRequest(objective=objective(), edges=["m1->logits"], origin=origin)
        )
    assert refusal.info.reason == "OTHER_MODEL"
    assert refusal.violation[0] == "circuit"
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
    origin = pb.CircuitOrigin(graph=circuit_pb2.Graph(**(ORIGIN | changes)), model_revision=revision)
    request = pb.EvaluateCircuitRequest(objective=objective(), edges=["m1->logits"], origin=origin)
    assert server.patching.EvaluateCircuit(request).num_edges_total == GRAPH.num_edges


def test_another_treatment_of_shared_keys_is_named() -> None:
    engine = FakeEngine(Graph(layers=2, heads=4, kv_heads=2))
    origin = pb.CircuitOrigin(graph=circuit_pb2.Graph(**(ORIGIN | {"heads": 4, "kv_receivers": "query"})))
    request = pb.EvaluateCircuitRequest(objective=objective(), edges=["m1->logits"], origin=origin)
    with RunningServer(engine) as server, refused() as refusal:
        server.patching.EvaluateCircuit(request)
    assert refusal.violation[0] == "kv_receivers"
    assert "'query'" in refusal.violation[1]
