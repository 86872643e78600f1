"""A circuit of one model is not measured on another by accident."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from pahq.v1 import circuit_pb2

from pahq_client import Circuit, Graph, InvalidRequest, OtherModel, compare
from pahq_client.cli import main

from .fake_server import Code, FakeServer, Fault, edges_of


def revised(circuit: Circuit, revision: object) -> Circuit:
    request = {**circuit.provenance["request"], "model_revision": revision}
    return dataclasses.replace(circuit, provenance={"request": request})


@pytest.fixture
def session_of_it(server: FakeServer, circuit: Circuit) -> None:
    """The session's graph is that of the circuit."""
    graph = dataclasses.asdict(circuit.graph)
    del graph["extra"]
    server.session.graph.CopyFrom(circuit_pb2.Graph(**graph))
    server.session.num_edges_total = len(list(circuit.graph.edge_names()))
    server.session.model_revision = "c0ffee"
    server.base = server.session.num_edges_total


def test_evaluate_sends_where_the_circuit_was_found(
    client: Any, server: FakeServer, circuit: Circuit
) -> None:
    client.evaluate("demo", "ioi", revised(circuit, "c0ffee"))
    client.evaluate("demo", "ioi", circuit)
    client.evaluate("demo", "ioi", circuit, allow_other_model=True)
    client.evaluate("demo", "ioi", [str(edge) for edge in circuit.edges])
    first, unrevised, allowed, names = server.called("EvaluateCircuits")
    first, unrevised, allowed, names = (call.circuits[0] for call in (first, unrevised, allowed, names))
    assert first.edges.model_revision == "c0ffee"
    graph = first.edges.graph
    assert Graph(
        graph.layers, graph.heads, graph.kv_heads, graph.kv_receivers, graph.parallel, graph.mlps
    ) == (circuit.graph)
    assert (unrevised.edges.graph, unrevised.edges.model_revision) == (graph, "")
    assert edges_of(first.edges) == set(map(str, circuit.edges))
    assert list(allowed.names.names) == list(names.names.names) == [str(edge) for edge in circuit.edges]


def test_the_servers_refusal(client: Any, server: FakeServer, circuit: Circuit) -> None:
    known = {"circuit": "2 layers", "model": "4 layers"}
    violation = ("circuit", "it was found in another model")
    server.faults["EvaluateCircuits"] = [Fault(Code.INVALID_ARGUMENT, "m", "OTHER_MODEL", known, violation)]
    with pytest.raises(OtherModel) as raised:
        client.evaluate("demo", "ioi", circuit)
    assert (raised.value.circuit, raised.value.model) == ("2 layers", "4 layers")
    assert str(raised.value) == "circuit: it was found in another model"
    assert isinstance(raised.value, InvalidRequest)


def test_sessions_refuse_another_graph(client: Any, server: FakeServer, circuit: Circuit) -> None:
    session = client.session("demo", "ioi")
    for call in (
        lambda **options: session.score([[], circuit], **options),
        lambda **options: session.score_removed([circuit], **options),
        lambda **options: session.commit(edges=circuit, **options),
        lambda **options: session.commit(removed=circuit, **options),
    ):
        with pytest.raises(OtherModel) as raised:
            call()
        assert "2 layers, 4 heads, 2 key/value heads" in str(raised.value)
        assert "1 layers, 2 heads, 1 key/value heads" in str(raised.value)
        with pytest.raises(OtherModel):
            call(allow_other_model=False)
        with pytest.raises(InvalidRequest, match="allow_other_model"):
            call(allow_other_model="yes")
    assert not server.called("ScoreCircuits")
    assert not server.called("CommitCircuit")
    assert session.score([circuit], allow_other_model=True) == [4]
    assert session.score_removed([circuit], allow_other_model=True) == [7]


@pytest.mark.usefixtures("session_of_it")
def test_sessions_refuse_another_revision(client: Any, circuit: Circuit) -> None:
    session = client.session("demo", "ioi")
    assert session.score([circuit, revised(circuit, "c0ffee"), revised(circuit, 3)]) == [4, 4, 4]
    with pytest.raises(OtherModel) as raised:
        session.score([revised(circuit, "decaf")])
    assert raised.value.circuit.endswith("revision decaf")
    assert raised.value.model.endswith("revision c0ffee")
    assert session.score([revised(circuit, "decaf")], allow_other_model=True) == [4]


@pytest.mark.usefixtures("session_of_it")
def test_sessions_refuse_another_treatment_of_shared_keys(client: Any, circuit: Circuit) -> None:
    graph = dataclasses.replace(circuit.graph, kv_receivers="query")
    with pytest.raises(InvalidRequest, match="kv_receivers: the circuit was found with 'query'"):
        client.session("demo", "ioi").score([dataclasses.replace(circuit, graph=graph)])


@pytest.mark.usefixtures("session_of_it")
def test_a_session_that_tells_no_revision_compares_the_graph(
    client: Any, server: FakeServer, circuit: Circuit
) -> None:
    server.session.model_revision = ""
    assert client.session("demo", "ioi").score([revised(circuit, "decaf")]) == [4]


def test_names_of_edges_tell_nothing_of_their_model(client: Any) -> None:
    assert client.session("demo", "ioi").score([["input->logits"]]) == [1]


def test_the_two_treatments_of_keys_are_one_where_no_head_shares_them(circuit: Circuit) -> None:
    shared, own = circuit.graph, dataclasses.replace(circuit.graph, kv_heads=4)
    assert not shared.same_as(dataclasses.replace(shared, kv_receivers="query"))
    assert own.same_as(dataclasses.replace(own, kv_receivers="query"))
    assert not own.same_as(dataclasses.replace(own, kv_receivers="query", layers=3))
    a, b = (dataclasses.replace(circuit, graph=dataclasses.replace(own, kv_receivers=kv)) for kv in "ab")
    assert compare(a, b).jaccard == 1


@pytest.mark.parametrize("layers", [2**31, -(2**40)])
def test_graphs_that_no_server_can_have(circuit: Circuit, layers: int) -> None:
    with pytest.raises(InvalidRequest, match=r"graph\.layers: must be from 0 to"):
        dataclasses.replace(circuit.graph, layers=layers)


def test_the_command(
    server: FakeServer, circuit: Circuit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    circuit.save(tmp_path / "c.json")
    command = ["evaluate", "--circuit", str(tmp_path / "c.json"), "--model", "demo", "--task", "ioi"]
    command += ["--server", server.address]
    server.faults["EvaluateCircuits"] = [
        Fault(Code.INVALID_ARGUMENT, "m", "OTHER_MODEL", violation=("circuit", "is another model's"))
    ]
    assert main(command) == 2
    assert "pahq: error: circuit: is another model's" in capsys.readouterr().err
    assert main([*command, "--allow-other-model"]) == 0
    out = capsys.readouterr().out
    for line in ("metric: kl_divergence", "ablation: mean", "precision: fp32", "kv_receivers: group"):
        assert f"{line}\n" in out
    assert "faithfulness: 0.75" in out
    sent = [request.circuits[0].WhichOneof("circuit") for request in server.called("EvaluateCircuits")]
    assert sent == ["edges", "names"]


# What was measured is in the answer


def test_an_evaluation_says_how_it_was_measured(client: Any, circuit: Circuit) -> None:
    by_circuit = client.evaluate("demo", "ioi", circuit)
    by_names = client.evaluate("demo", "ioi", [str(edge) for edge in circuit.edges])
    assert (by_circuit.ablation, by_names.ablation) == ("mean", "resample")
    by_hand = client.evaluate("demo", "ioi", circuit, metric="l2", precision="bf16", kv_receivers="query")
    for used in (
        "metric='l2'",
        "ablation='mean'",
        "precision='bf16'",
        "kv_receivers='query'",
        "model='demo'",
        "faithfulness=0.75",
    ):
        assert used in repr(by_hand)
