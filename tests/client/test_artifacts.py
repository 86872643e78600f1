"""What jobs give beside whole circuits: scores of edges, partial circuits, kinds the client does not know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.graphs import graphs
from hypothesis import given
from pahq.v1 import jobs_pb2 as pb

from pahq_client import (
    Artifact,
    Circuit,
    Conflict,
    Edge,
    EdgeScores,
    Graph,
    InvalidCircuitFile,
    InvalidRequest,
    JobCancelled,
    NotFound,
    ServerFault,
    Verdict,
)
from pahq_client.artifacts import decode
from pahq_client.cli import main
from pahq_server.core import graph as server_graph
from pahq_server.core.artifact import pack

from .fake_artifact import GRAPH, FakeArtifact
from .fake_server import Code, FakeServer, Fault

NAMES = list(GRAPH.edge_names())


@given(graphs())
def test_nodes_and_edges_are_numbered_as_on_the_server(graph: server_graph.Graph) -> None:
    sizes = (graph.layers, graph.heads, graph.kv_heads, graph.kv_receivers, graph.parallel, graph.mlps)
    here = Graph(*sizes)
    assert list(here.edge_names()) == [graph.edge_name(index) for index in range(graph.num_edges)]
    assert list(here.receivers()) == [graph.receiver_name(i) for i in range(graph.num_receivers)]


def test_the_file_is_that_of_the_server() -> None:
    """The fake server's file is decoded as the one that the server's own code writes."""
    fake = FakeArtifact()
    provenance = {"request": {"parameters": {"method": "acdc"}}, "run": {}}
    ours, theirs = fake.bytes(), pack(fake.layout, fake.arrays)
    first, second = (decode("circuit", 1, data, provenance) for data in (ours, theirs))
    assert isinstance(first, Circuit)
    assert first == second
    assert first.edges == (Edge("a0.h1", "a1.h0<q>", 0.25), Edge("input", "logits"))
    assert first.verdicts == (
        Verdict("a1.h0<q>", 0.5, True, gate=True),
        Verdict("a0.h1->a1.h0<q>", 0.25, True),
        Verdict("input->m0", -0.0, False),
    )
    assert first.gates_kept == ("a1.h0<q>",)
    assert not first.partial
    assert first.undecided == ()


def groups(fake: FakeArtifact, last: list[int], size: list[int]) -> bytes:
    """The artifact with other verdicts: on 20 edges, on the last 12 of them, and on a single one."""
    first = [60, 52, 3]
    kept = np.zeros(len(NAMES), dtype=bool)
    kept[[60, 3]] = True
    fake.arrays = {
        "kept": kept,
        "verdict_gate": np.zeros(3, dtype=bool),
        "verdict_index": np.array(first),
        "verdict_last": np.array(last),
        "verdict_size": np.array(size),
        "verdict_score": np.ones(3),
        "verdict_delta": np.array([0.5, 0.01, 0.75]),
        "verdict_kept": np.array([True, False, True]),
    }
    return fake.bytes()


def test_verdicts_on_groups(tmp_path: Path) -> None:
    fake = FakeArtifact()
    fake.layout["threshold"] = 0.125
    found = decode("circuit", 1, groups(fake, [41, 41, 3], [20, 12, 1]), {})
    assert isinstance(found, Circuit)
    assert found.verdicts == (
        Verdict(f"{NAMES[60]} ... {NAMES[41]}", 0.5, True, size=20),
        Verdict(f"{NAMES[52]} ... {NAMES[41]}", 0.01, False, size=12),
        Verdict(NAMES[3], 0.75, True),
    )
    assert [str(edge) for edge in found.edges] == [NAMES[3], NAMES[60]]
    assert (found.num_evaluations, found.removed_without_test) == (3, len(NAMES) - 1)
    assert found.threshold == 0.125
    found.save(tmp_path / "circuit.json")
    again = Circuit.load(tmp_path / "circuit.json")
    assert (again.verdicts, again.threshold) == (found.verdicts, 0.125)
    assert again == found


@pytest.mark.parametrize(
    ("last", "size", "words"),
    [
        ([41, 41, 3], [21, 12, 1], "no group"),
        ([41, 41, 3], [0, 12, 1], "no group"),
        ([-1, 41, 3], [20, 12, 1], "no group"),
        ([61, 41, 3], [2, 12, 1], "no group"),
        ([41, 2, 3], [20, 12, 1], "'kept' contradicts the verdicts"),
    ],
)
def test_groups_that_cannot_be(last: list[int], size: list[int], words: str) -> None:
    with pytest.raises(ServerFault, match=words):
        decode("circuit", 1, groups(FakeArtifact(), last, size), {})


def test_kept_edges_are_in_the_order_of_their_verdicts() -> None:
    fake = FakeArtifact()
    order = [40, 3, 81, 7]
    kept = np.zeros(len(NAMES), dtype=bool)
    kept[order] = True
    fake.arrays = {
        "kept": kept,
        "verdict_gate": np.zeros(4, dtype=bool),
        "verdict_index": np.array(order),
        "verdict_score": np.ones(4),
        "verdict_delta": np.array([4.0, 3.0, 2.0, 1.0]),
        "verdict_kept": np.ones(4, dtype=bool),
    }
    circuit = decode("circuit", 1, fake.bytes(), {})
    assert isinstance(circuit, Circuit)
    assert [str(edge) for edge in circuit.edges] == [NAMES[i] for i in order]
    assert [edge.score for edge in circuit.edges] == [4.0, 3.0, 2.0, 1.0]


# Scores of edges.


def test_scores_of_edges(client: Any, server: FakeServer) -> None:
    server.artifact.make_scores()
    scores = client.discover("demo", "ioi", method="eap")
    assert isinstance(scores, EdgeScores)
    assert scores.scores.dtype == np.float64
    assert scores.scores.tolist() == list(range(82))
    assert (scores.graph, scores.method, scores.metric) == (GRAPH, "eap", "kl_divergence")
    assert (scores.full, scores.empty, scores.partial) == (0.0, 2.0, False)
    assert scores.provenance["run"] == {"model": "demo", "seconds": 1.5}
    assert "82 edges, method='eap', metric='kl_divergence', full=0, empty=2, model='demo'" in repr(scores)
    (request,) = server.called("CreateJob")
    assert request.spec.WhichOneof("method") == "eap"


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (np.zeros(81), r"float64\[81\], expected float64\[82\]"),
        (np.zeros(82, dtype=np.float32), "float32"),
        (np.full(82, np.nan), "not finite"),
    ],
)
def test_scores_are_checked(client: Any, server: FakeServer, scores: Any, words: str) -> None:
    server.artifact.make_scores()
    server.artifact.arrays["scores"] = scores
    with pytest.raises(ServerFault, match=words):
        client.discover("demo", "ioi", method="eap")


def test_the_command_prints_scores(
    server: FakeServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    server.artifact.make_scores()
    command = ["discover", "--model", "demo", "--task", "ioi", "--method", "eap", "--quiet"]
    command += ["--server", server.address]
    assert main(command) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("# 82 edges, method='eap'")
    assert lines == [f"{name}\t{index}" for index, name in enumerate(NAMES)]
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["scores"] == {name: float(index) for index, name in enumerate(NAMES)}
    assert (told["method"], told["metric"], told["graph"]["layers"]) == ("eap", "kl_divergence", 2)
    assert main([*command, "--out", str(tmp_path / "s")]) == 0
    saved = EdgeScores.load(tmp_path / "s")
    assert saved.scores.tolist() == [*range(82)]
    server.calls.clear()
    assert main([*command, "--dot", str(tmp_path / "c")]) == 2  # found out before the work
    assert "--dot: is for circuits" in capsys.readouterr().err
    assert server.calls == []


# Methods and their parameters.


def test_parameters_of_methods(client: Any, server: FakeServer) -> None:
    client.submit("m", "ioi", 0.5, grouping="none")
    client.submit("m", "ioi", method="single_edge")
    client.submit("m", "ioi", method="single_edge", threshold=2)
    client.submit("m", "ioi", 3, method="mine", parameters={"a": 1.5, "b": ["x", None, {"c": True}]})
    acdc, unlimited, limited, mine = (request.spec for request in server.called("CreateJob"))
    assert (acdc.acdc.threshold, acdc.acdc.grouping) == (0.5, "none")
    assert unlimited.WhichOneof("method") == "single_edge"
    assert not unlimited.single_edge.HasField("threshold")
    assert limited.single_edge.threshold == 2
    assert mine.extension.method == "mine"
    assert dict(mine.extension.parameters) == {"threshold": 3, "a": 1.5, "b": ["x", None, {"c": True}]}
    assert [job.latest.method for job in (client.job("users/me/jobs/3"),) if job.info] == ["mine"]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"method": "eap", "threshold": 0.1}, "threshold"),
        ({"method": "acdc", "parameters": {}}, "parameters"),
        ({"method": "eap", "parameters": {"a": 1}}, "parameters"),
        ({"method": "mine", "parameters": 3}, "parameters"),
        ({"method": "mine", "parameters": {3: 3}}, "parameters"),
        ({"method": "mine", "parameters": {"a": object()}}, "parameters"),
        ({"method": "mine", "parameters": {"a": "\udcff"}}, "parameters"),
    ],
)
def test_parameters_that_do_not_fit(
    client: Any, server: FakeServer, arguments: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as raised:
        client.submit("m", "ioi", **arguments)
    assert raised.value.field == field
    assert server.calls == []


@pytest.mark.parametrize(
    ("field", "argument"),
    [
        ("acdc.threshold", "threshold"),
        ("extension.parameters.depth", "parameters.depth"),
        ("task.clean[3]", "task.clean[3]"),
        ("threshold", "threshold"),
    ],
)
def test_errors_name_the_argument_of_the_caller(
    client: Any, server: FakeServer, field: str, argument: str
) -> None:
    fault = Fault(Code.INVALID_ARGUMENT, "m", "INVALID_REQUEST", violation=(field, "is negative"))
    for call in (client.submit, client.estimate, client.discover):
        server.faults["CreateJob"] = [fault]
        with pytest.raises(InvalidRequest) as raised:
            call("m", "ioi", -1)
        assert (raised.value.field, raised.value.detail) == (argument, "is negative")


def test_a_kind_that_is_not_known(client: Any, server: FakeServer) -> None:
    server.artifact.header.kind, server.artifact.header.version = "heat_map", 7
    server.artifact.data = b"anything"
    artifact = client.discover("demo", "ioi", method="mine")
    assert isinstance(artifact, Artifact)
    assert (artifact.kind, artifact.version, artifact.data) == ("heat_map", 7, b"anything")
    assert artifact.parameters["method"] == "acdc"
    assert repr(artifact) == "Artifact(kind='heat_map', version=7, 8 bytes)"


# Partial circuits.


@pytest.fixture
def cancelled(client: Any, server: FakeServer) -> Any:
    """A job that was cancelled after three verdicts."""
    server.outcome = pb.JOB_STATE_CANCELLED, ""
    server.artifact.make_partial()
    return client.submit("demo", "ioi", 0.1)


def test_what_a_cancelled_job_had_decided(cancelled: Any) -> None:
    with pytest.raises(JobCancelled):
        cancelled.result()
    circuit = cancelled.artifact()
    assert circuit.partial
    assert circuit.undecided == (Edge("input", "logits"),)
    assert (circuit.num_evaluations, circuit.removed_without_test) == (3, 79)
    assert circuit.faithfulness is None
    assert "Circuit(partial: 81 of 82 edges decided, 1 of them kept, " in repr(circuit)
    assert "partial" in circuit._repr_html_()


def test_there_is_nothing_before_the_end_and_where_nothing_was_found(client: Any, server: FakeServer) -> None:
    server.outcome = None
    job = client.submit("demo", "ioi", 0.1)
    with pytest.raises(Conflict):
        job.artifact()
    job.cancel()
    with pytest.raises(NotFound):
        job.artifact()


def test_a_partial_file_says_so_and_is_refused_unless_asked_for(cancelled: Any, tmp_path: Path) -> None:
    circuit = cancelled.artifact()
    circuit.save(tmp_path / "c.json")
    content = json.loads((tmp_path / "c.json").read_text())
    assert content["partial"] is True
    assert content["metric"] == {"name": "kl_divergence", "value": None, "full": None, "empty": None}
    with pytest.raises(InvalidCircuitFile, match=r"partial circuit.*allow_partial=True"):
        Circuit.load(tmp_path / "c.json")
    again = Circuit.load(tmp_path / "c.json", allow_partial=True)
    assert again == circuit
    assert again.undecided == circuit.undecided


def test_whole_files_say_nothing_of_it_and_old_files_are_read(circuit: Circuit, tmp_path: Path) -> None:
    circuit.save(tmp_path / "c.json")
    content = json.loads((tmp_path / "c.json").read_text())
    assert "partial" not in content
    content["version"] = 1
    (tmp_path / "old.json").write_text(json.dumps(content))
    assert Circuit.load(tmp_path / "old.json") == circuit


@pytest.mark.parametrize(
    ("key", "value"), [("partial", 1), ("metric", {"name": "l2", "value": None, "full": 0, "empty": 1})]
)
def test_what_a_whole_file_cannot_hold(circuit: Circuit, tmp_path: Path, key: str, value: object) -> None:
    circuit.save(tmp_path / "c.json")
    content = json.loads((tmp_path / "c.json").read_text())
    (tmp_path / "c.json").write_text(json.dumps({**content, key: value}))
    with pytest.raises(InvalidCircuitFile):
        Circuit.load(tmp_path / "c.json", allow_partial=True)


def test_the_command_shows_what_was_decided(
    threads_client: Any, server: FakeServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    server.outcome = pb.JOB_STATE_CANCELLED, ""
    name = threads_client.submit("demo", "ioi", 0.1).name
    at = ["--server", server.address]
    assert main(["show", name, *at]) == 0  # nothing was decided: how it stands
    assert "state: CANCELLED" in capsys.readouterr().out
    server.artifact.make_partial()
    assert main(["show", name, *at]) == 0
    out, err = capsys.readouterr()
    head, *lines = out.splitlines()
    assert head.startswith("# partial: 81 of 82 edges decided, 1 of them kept")
    assert lines == ["a0.h1->a1.h0<q>\t0.25"]
    assert "did not come to its end" in err
    assert main(["show", name, *at, "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out)["partial"] is True
    file = tmp_path / "c.json"
    file.write_text(out)
    assert main(["show", str(file)]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("# partial: ")
    evaluate = ["evaluate", "--circuit", str(file), "--model", "demo", "--task", "ioi", *at]
    for command in (evaluate, ["compare", str(file), str(file)]):
        assert main(command) == 2
        assert "--allow-partial" in capsys.readouterr().err
        assert main([*command, "--allow-partial"]) == 0
