"""Every call of the discovery service, as it should go."""

from __future__ import annotations

import json
from typing import Any

import pytest
from helpers.api_server import RunningServer, objective, refused, spec, token_ids
from helpers.fake_engine import GRAPH, FakeEngine
from helpers.scores import SetScore, answer
from helpers.topology import edge_names
from pahq.v1 import circuit_pb2, patching_pb2, task_pb2
from pahq.v1 import discovery_pb2 as pb

from pahq_server.api import responses
from pahq_server.core.graph import Graph
from pahq_server.methods.acdc.search import AcdcSearch


def test_create(server: RunningServer, engine: FakeEngine) -> None:
    engine.hold()
    created = server.create(spec())
    assert created.name.startswith("users/local/discoveries/")
    assert created.state in (pb.DISCOVERY_STATE_QUEUED, pb.DISCOVERY_STATE_RUNNING)
    assert (created.progress.total, created.progress.decided) == (GRAPH.num_edges, 0)
    assert created.HasField("create_time")
    assert not created.HasField("end_time")
    assert created.error_message == ""


def test_the_spec_comes_back_without_the_prompts(server: RunningServer) -> None:
    asked = spec(gates=False)
    found = server.create(asked).spec
    assert found.objective.task == task_pb2.Task()
    asked.objective.ClearField("task")
    found.objective.ClearField("task")
    assert found == asked


def test_a_builtin_task_comes_back_whole(server: RunningServer) -> None:
    task = task_pb2.Task(builtin=task_pb2.BuiltinTask(name="ioi", num_prompts=4, seed=7))
    assert server.create(spec(task=task)).spec.objective.task == task


def test_a_sweep_may_have_no_threshold(server: RunningServer) -> None:
    created = server.create(spec(method="single_edge", threshold=None))
    assert not created.spec.HasField("threshold")
    assert server.create(spec(threshold=0.0)).spec.HasField("threshold")


def test_validate_only_creates_nothing(server: RunningServer) -> None:
    checked = server.create(spec(), validate_only=True)
    assert checked.name == ""
    assert checked.progress.total == GRAPH.num_edges
    assert list(server.discovery.ListDiscoveries(pb.ListDiscoveriesRequest()).discoveries) == []


def test_validate_only_estimates(server: RunningServer) -> None:
    request = pb.CreateDiscoveryRequest(spec=spec(), validate_only=True)
    estimate = server.discovery.CreateDiscovery(request).estimate
    assert estimate == pb.Estimate(memory_bytes=1000, least_seconds=0.5, most_seconds=60.0)
    request.validate_only = False
    assert not server.discovery.CreateDiscovery(request).HasField("estimate")


def test_a_repeated_request_returns_the_first_discovery(server: RunningServer) -> None:
    first = server.create(spec(), request_id="abc")
    assert server.create(spec(), request_id="abc").name == first.name
    with refused() as refusal:
        server.create(spec(threshold=0.5), request_id="abc")
    assert refusal.info.reason == "ALREADY_EXISTS"


def test_get(server: RunningServer) -> None:
    name = server.finish(spec())
    found = server.discovery.GetDiscovery(pb.GetDiscoveryRequest(name=name)).discovery
    assert (found.name, found.state) == (name, pb.DISCOVERY_STATE_SUCCEEDED)
    assert found.progress.decided == found.progress.total == GRAPH.num_edges
    assert found.create_time.ToNanoseconds() <= found.start_time.ToNanoseconds()
    assert found.start_time.ToNanoseconds() <= found.end_time.ToNanoseconds()
    assert not found.progress.HasField("eta_seconds")


def test_cancel(server: RunningServer, engine: FakeEngine) -> None:
    engine.hold()
    name = server.create(spec()).name
    engine.wait_for_call()
    answered = server.discovery.CancelDiscovery(pb.CancelDiscoveryRequest(name=name)).discovery
    assert (answered.name, answered.state) == (name, pb.DISCOVERY_STATE_CANCELLING)
    engine.release()
    assert server.events(name)[-1].state == pb.DISCOVERY_STATE_CANCELLED
    again = server.discovery.CancelDiscovery(pb.CancelDiscoveryRequest(name=name)).discovery
    assert again.state == pb.DISCOVERY_STATE_CANCELLED


def test_delete(server: RunningServer) -> None:
    name = server.finish(spec())
    server.discovery.DeleteDiscovery(pb.DeleteDiscoveryRequest(name=name))
    with refused() as refusal:
        server.discovery.GetDiscovery(pb.GetDiscoveryRequest(name=name))
    assert refusal.info.reason == "NOT_FOUND"


def test_the_circuit(server: RunningServer) -> None:
    summary, edges, verdicts = server.circuit(server.finish(spec()))
    found = answer(AcdcSearch(GRAPH, 2.0, gates=True).run(), SetScore(GRAPH, 1))
    expected = [(GRAPH.edge_name(v.index), v.delta) for v in found.verdicts if v.kept and not v.gate]
    assert [(f"{edge.source}->{edge.target}", edge.score) for edge in edges] == expected
    assert [(v.subject, v.delta, v.kept, v.gate) for v in verdicts] == [
        (GRAPH.receiver_name(v.index) if v.gate else GRAPH.edge_name(v.index), v.delta, v.kept, v.gate)
        for v in found.verdicts
    ]
    gates = [GRAPH.receiver_name(v.index) for v in found.verdicts if v.gate and v.kept]
    assert list(summary.gates_kept) == gates
    assert gates
    assert (summary.num_evaluations, summary.num_edges_total) == (len(found.verdicts), GRAPH.num_edges)
    assert (summary.metric.name, summary.metric.value) == ("kl_divergence", found.metric_value)
    assert (summary.metric.full, summary.metric.empty) == (found.metric_full, found.metric_empty)
    assert (summary.graph.layers, summary.graph.heads, summary.graph.kv_heads) == (2, 2, 2)
    assert (summary.graph.kv_receivers, summary.graph.parallel, summary.graph.mlps) == ("group", False, True)


def test_equal_discoveries_have_equal_provenance_of_the_request(server: RunningServer) -> None:
    one, other = (server.circuit(server.finish(spec()))[0] for _ in range(2))
    assert one.provenance_request_json == other.provenance_request_json
    request = json.loads(one.provenance_request_json)
    assert request["model_revision"] == "c0ffee"
    assert request["parameters"]["threshold"] == 2.0
    assert json.loads(one.provenance_run_json)["device"] == "abacus"


def test_a_large_circuit_comes_in_pages_that_any_client_accepts() -> None:
    graph = Graph(12, 12, 12)
    engine = FakeEngine(graph, score=lambda row: 0.25)
    with RunningServer(engine, window=2000) as server:
        name = server.finish(spec(method="single_edge", threshold=None))
        pages = list(server.discovery.GetCircuit(pb.GetCircuitRequest(name=name)))
        assert len(pages) > 5
        assert max(page.ByteSize() for page in pages) < 1 << 20
        _, edges, verdicts = server.circuit(name)
    assert [f"{edge.source}->{edge.target}" for edge in edges] == edge_names(graph)
    assert len(verdicts) == graph.num_edges == 32_491


def test_evaluate(server: RunningServer) -> None:
    kept = ["m1->logits", "a0.h0->m1"]
    request = pb.EvaluateCircuitRequest(objective=objective(metric="l2"), edges=kept)
    response = server.discovery.EvaluateCircuit(request)
    metric = SetScore(GRAPH, 1)
    assert response.metric.name == "l2"
    assert (response.metric.value, response.metric.full, response.metric.empty) == (
        metric.of_names(kept),
        metric.of_names(edge_names(GRAPH)),
        metric.of_names([]),
    )
    assert response.num_edges_total == GRAPH.num_edges


# Listing


def listed(server: RunningServer, size: int = 0, token: str = "") -> tuple[list[str], str]:
    request = pb.ListDiscoveriesRequest(page_size=size, page_token=token)
    response = server.discovery.ListDiscoveries(request)
    return [discovery.name for discovery in response.discoveries], response.next_page_token


def test_list_is_newest_first(server: RunningServer) -> None:
    assert listed(server) == ([], "")
    names = [server.create(spec()).name for _ in range(3)]
    assert listed(server) == (names[::-1], "")


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7, 1000])
def test_pages_together_are_the_list(size: int, server: RunningServer) -> None:
    names = [server.create(spec()).name for _ in range(6)]
    found, token = listed(server, size)
    pages = 1
    while token:
        page, token = listed(server, size, token)
        assert 0 < len(page) <= size
        found, pages = found + page, pages + 1
    assert found == names[::-1]
    assert pages == -(-6 // size)


def test_new_discoveries_do_not_shift_pages(server: RunningServer) -> None:
    names = [server.create(spec()).name for _ in range(4)]
    first, token = listed(server, 2)
    server.create(spec())
    second, token = listed(server, 2, token)
    assert first + second == names[::-1]
    assert token == ""


def test_the_default_page_holds_fifty(server: RunningServer, engine: FakeEngine) -> None:
    engine.hold()
    for _ in range(51):
        server.create(spec())
    page, token = listed(server)
    assert len(page) == 50
    assert len(listed(server, token=token)[0]) == 1


def test_token_ids_reach_the_engine_as_sent(server: RunningServer, engine: FakeEngine) -> None:
    prompts = task_pb2.PromptTask(
        clean=[*token_ids((5, 6, 7)), task_pb2.Prompt(text="caf\u00e9 …")],
        corrupted=token_ids((5, 6, 8), (1,)),
        answers=token_ids((3,)),
        wrong_answers=[task_pb2.Prompt(text=" Tom")],
        positions=task_pb2.Positions(indices=[2, 0]),
    )
    server.finish(spec(task=task_pb2.Task(prompts=prompts)))
    (resolved,) = engine.opened
    found = resolved.objective.task
    assert found.clean == ((5, 6, 7), "café …")
    assert found.corrupted == ((5, 6, 8), (1,))
    assert (found.answers, found.wrong_answers, found.positions) == (((3,),), (" Tom",), (2, 0))


def test_a_discovery_tells_its_metric_and_the_number_of_prompts(server: RunningServer) -> None:
    created = server.create(spec())
    assert created.num_prompts == 1
    assert not created.HasField("metric")
    assert list(server.events(created.name))[-1].kind == pb.EVENT_KIND_END
    summary = server.circuit(created.name)[0]
    found = server.discovery.GetDiscovery(pb.GetDiscoveryRequest(name=created.name)).discovery
    (listed,) = server.discovery.ListDiscoveries(pb.ListDiscoveriesRequest()).discoveries
    for each in (found, listed):
        assert each.metric == summary.metric
        assert list(each.warnings) == list(summary.warnings)
        assert each.num_prompts == 1
    assert "warnings" not in json.loads(summary.provenance_run_json)
    assert json.loads(summary.provenance_run_json)["task"] == {"num_prompts": 1}


def test_every_answer_carries_its_warnings(server: RunningServer, engine: FakeEngine) -> None:
    engine.request_warnings = ("Look at the tokens.",)
    request = pb.CreateDiscoveryRequest(spec=spec(threshold=1e6), validate_only=True)
    assert list(server.discovery.CreateDiscovery(request).estimate.warnings) == ["Look at the tokens."]
    created = server.create(request.spec)
    assert created.warnings[0] == "Look at the tokens."
    server.events(created.name)
    found = list(server.circuit(created.name)[0].warnings)
    assert found[0] == "Look at the tokens."
    assert any("No edge is kept" in text for text in found)
    asked = pb.EvaluateCircuitRequest(objective=objective(), edges=["m1->logits"])
    evaluated = server.discovery.EvaluateCircuit(asked).warnings
    assert evaluated[0] == "Look at the tokens."
    assert any("not on a path" in text for text in evaluated)
    opened = server.patching.OpenSession(patching_pb2.OpenSessionRequest(objective=objective())).session
    assert opened.warnings[0] == "Look at the tokens."
    assert opened.model_revision == "c0ffee"


def test_prompts_come_in_pages(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "PROMPT_PAGE", 10)
    for include in (True, False):
        asked = spec()
        asked.include_prompts = include
        name = server.finish(asked)
        assert (
            server.discovery.GetDiscovery(pb.GetDiscoveryRequest(name=name)).discovery.spec.include_prompts
            is include
        )
        parts = [p.prompts_json for p in server.discovery.GetCircuit(pb.GetCircuitRequest(name=name))]
        assert all(len(part) <= 10 for part in parts)
        assert (json.loads("".join(parts))["clean"] == [[1, 2]]) if include else not any(parts)


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
        server.discovery.EvaluateCircuit(
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
    assert server.discovery.EvaluateCircuit(request).num_edges_total == GRAPH.num_edges


def test_another_treatment_of_shared_keys_is_named() -> None:
    engine = FakeEngine(Graph(layers=2, heads=4, kv_heads=2))
    origin = pb.CircuitOrigin(graph=circuit_pb2.Graph(**(ORIGIN | {"heads": 4, "kv_receivers": "query"})))
    request = pb.EvaluateCircuitRequest(objective=objective(), edges=["m1->logits"], origin=origin)
    with RunningServer(engine) as server, refused() as refusal:
        server.discovery.EvaluateCircuit(request)
    assert refusal.violation[0] == "kv_receivers"
    assert "'query'" in refusal.violation[1]
