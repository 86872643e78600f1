"""Node pruning with both kinds of clients, against the real server's code over a made-up engine."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.api_server import RunningServer
from helpers.fake_engine import GRAPH, FakeEngine, nodes_of
from helpers.toy_nodes import Toy
from pahq.v1 import circuit_pb2
from pahq.v1 import patching_pb2 as pb

from pahq_client import (
    Circuit,
    Client,
    InvalidRequest,
    NodeCircuit,
    NodeEvaluation,
    NodeFigures,
    OtherModel,
    PahqWarning,
    ServerFault,
    Task,
    compare,
    prune_nodes,
)
from pahq_client.cli import main
from pahq_server.core.pruning import MaskFigures, MeasureMasks

from .conftest import BACKOFF
from .fake_server import Code, FakeServer, Fault

TASK = Task(clean=[[1, 2, 3]], corrupted=[[1, 4, 3]])
OTHER = Task(clean=[[5, 6, 7]], corrupted=[[5, 7, 7]])
ASKED: dict[str, Any] = {"max_kl": 0.3, "steps": 60, "seed": 7}
TOY = Toy(1, layout=nodes_of(GRAPH))


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAHQ_SERVER", "PAHQ_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def running() -> Iterator[RunningServer]:
    with RunningServer(FakeEngine()) as server:
        yield server


def address(server: RunningServer) -> str:
    return f"127.0.0.1:{server.port}"


@pytest.fixture
def found(running: RunningServer) -> NodeCircuit:
    with Client(address(running), backoff=BACKOFF) as client:
        return client.prune_nodes("toy", TASK, **ASKED)


def test_the_needed_nodes_are_found(speaker: Any) -> None:
    seen: list[Any] = []
    circuit = speaker.prune_nodes("toy", TASK, progress=seen.append, **ASKED)
    assert isinstance(circuit, NodeCircuit)
    assert circuit.figures.kl <= 0.3
    assert circuit.trained_figures.kl >= 0
    assert (circuit.budget, circuit.penalty, circuit.steps, circuit.polished) == (0.3, None, 60, True)
    assert circuit.parameters["seed"] == 7
    assert (circuit.model, circuit.model_revision) == ("toy", "c0ffee")
    assert seen[-1].progress.unit == "steps"
    assert circuit.counts["attention_neurons"][0] <= 3
    again = speaker.prune_nodes("toy", TASK, **ASKED)
    assert again == circuit
    assert hash(again) == hash(circuit)
    assert speaker.prune_nodes("toy", TASK, **{**ASKED, "seed": 8}) != circuit
    assert circuit != 3


def test_every_way_to_ask_gives_the_same(speaker: Any, running: RunningServer) -> None:
    circuit = speaker.prune_nodes("toy", TASK, **ASKED)
    job = speaker.submit("toy", TASK, method="node_pruning", **ASKED)
    assert job.result() == circuit
    assert "KL 0.3" in repr(job)
    assert speaker.discover("toy", TASK, method="node_pruning", **ASKED) == circuit
    assert prune_nodes("toy", TASK, server=address(running), **ASKED) == circuit
    assert speaker.estimate("toy", TASK, method="node_pruning", **ASKED).most_seconds > 0


def test_what_is_asked_for_arrives(speaker: Any) -> None:
    asked = {"penalty": 0.5, "steps": 5, "kinds": ["heads"], "polish": False, "ablation": "zero"}
    with pytest.warns(PahqWarning):
        circuit = speaker.prune_nodes("toy", TASK, **asked)
    assert circuit.kinds == ("heads",)
    assert not circuit.polished
    assert (circuit.penalty, circuit.budget) == (0.5, None)
    assert circuit.parameters["ablation"] == "zero"
    assert circuit.counts["mlp_hidden"][0] == circuit.counts["mlp_hidden"][1]


@pytest.mark.parametrize(
    ("arguments", "field", "words"),
    [
        ({"steps": 100_001}, "steps", "from 1 to 100000"),
        ({"steps": 0}, "steps", "at least 1"),
        ({"max_kl": None}, "max_kl", "neither"),
        ({"task_loss": 1.0}, "task_loss", "needs answers"),
        ({"precision": "pahq"}, "precision", "rounds activations"),
        ({"kinds": ["toes"]}, "kinds[0]", "unknown kind of node 'toes'"),
    ],
)
def test_bad_arguments(speaker: Any, arguments: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        speaker.prune_nodes("toy", TASK, **{**ASKED, **arguments})
    assert caught.value.field == field


def test_what_does_not_belong_together(speaker: Any, found: NodeCircuit) -> None:
    with pytest.raises(InvalidRequest, match="not for method 'acdc', but for 'node_pruning'"):
        speaker.discover("toy", TASK, 0.1, max_kl=0.1)
    with pytest.raises(InvalidRequest, match=r"use prune_nodes\(\)"):
        speaker.attribute("toy", TASK, "node_pruning")
    for call in (
        lambda: speaker.discover("toy", TASK, 0.1, within=found),
        lambda: speaker.evaluate_many("toy", TASK, [found]),
        lambda: compare(found, found),  # type: ignore[arg-type]
    ):
        with pytest.raises(InvalidRequest, match=r"to_circuit\(\)"):
            call()


def test_a_search_between_the_kept_nodes(speaker: Any, found: NodeCircuit) -> None:
    within = found.to_circuit()
    circuit = speaker.discover("toy", TASK, 0.0, within=within)
    assert isinstance(circuit, Circuit)
    assert set(map(str, circuit.edges)) <= set(map(str, within.edges))


def test_all_arguments_are_those_of_the_one_call() -> None:
    own = inspect.signature(Client.prune_nodes).parameters
    one = inspect.signature(prune_nodes).parameters
    assert [name for name in own if name != "self"] == [
        name for name in one if name not in ("server", "token", "tls")
    ]
    assert all(one[name].default == own[name].default for name in own if name != "self")


# Other prompts


def test_a_circuit_is_measured_on_other_prompts(speaker: Any, found: NodeCircuit) -> None:
    measured = speaker.evaluate("toy", OTHER, found)
    assert isinstance(measured, NodeEvaluation)
    assert found.figures is not None
    assert measured.figures.kl == found.figures.kl  # of the made-up model, whatever the prompts
    assert measured.full.kl == 0
    assert measured.empty.kl > 0
    assert measured.faithfulness == pytest.approx(1 - measured.figures.kl / measured.empty.kl)
    assert (measured.model, measured.ablation, measured.precision) == ("toy", "resample", "fp32")
    assert speaker.evaluate("toy", OTHER, found, ablation="zero").ablation == "zero"


def test_it_is_measured_as_it_was_found(running: RunningServer, speaker: Any, found: NodeCircuit) -> None:
    asked = []
    figures = MaskFigures(0.25, 0.75, -1.5, 0.125)

    def measured(operation: MeasureMasks) -> list[MaskFigures]:
        asked.extend(operation.masks)
        return [figures] * len(operation.masks)

    running.engine.operations[MeasureMasks] = measured
    request = {**found.request, "parameters": {**found.parameters, "ablation": "zero"}, "policy": "bf16"}
    zero = replace(found, provenance={**found.provenance, "request": request})
    with pytest.warns(PahqWarning, match="the same kl_divergence"):
        evaluation = speaker.evaluate("toy", OTHER, zero)
    assert evaluation.figures == evaluation.full == NodeFigures(0.25, 0.75, -1.5, 0.125)
    assert evaluation.faithfulness is None
    assert (evaluation.ablation, evaluation.precision) == ("zero", "bf16")
    assert any("the same kl_divergence" in text for text in evaluation.warnings)
    kept = TOY.layout.split(asked[2])
    assert all((kept[kind] == mask).all() for kind, mask in found.kept.items())


def test_circuits_of_other_models(speaker: Any, found: NodeCircuit) -> None:
    request = {**found.request, "model_revision": "decaf"}
    other = replace(found, provenance={**found.provenance, "request": request})
    with pytest.raises(OtherModel, match="allow_other_model=True"):
        speaker.evaluate("toy", OTHER, other)
    assert speaker.evaluate("toy", OTHER, other, allow_other_model=True).full.kl == 0


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"metric": "l2"}, "metric"),
        ({"kv_receivers": "group"}, "kv_receivers"),
        ({"ablation": 3}, "ablation"),
    ],
)
def test_what_is_not_for_nodes(speaker: Any, found: NodeCircuit, options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        speaker.evaluate("toy", OTHER, found, **options)
    assert caught.value.field == field


def test_errors_name_the_argument(server: FakeServer, client: Any, found: NodeCircuit) -> None:
    violation = ("circuits[0].bits", "must be 5 bytes")
    fault = Fault(Code.INVALID_ARGUMENT, "m", "INVALID_ARGUMENT", violation=violation)
    server.faults["EvaluateNodes"] = [fault]
    with pytest.raises(InvalidRequest) as caught:
        client.evaluate("toy", OTHER, found)
    assert caught.value.field == "circuit"


GOOD = pb.NodeFigures(kl=0.1, exact_match=0.5)
LIES = {
    "no circuit": pb.EvaluateNodesResponse(full=GOOD, empty=GOOD),
    "two circuits": pb.EvaluateNodesResponse(values=[GOOD, GOOD], full=GOOD, empty=GOOD),
    "NaN": pb.EvaluateNodesResponse(values=[pb.NodeFigures(kl=float("nan"))], full=GOOD, empty=GOOD),
    "infinite": pb.EvaluateNodesResponse(values=[GOOD], full=pb.NodeFigures(kl=float("inf")), empty=GOOD),
    "a share of 2": pb.EvaluateNodesResponse(values=[GOOD], full=GOOD, empty=pb.NodeFigures(exact_match=2)),
    "half": pb.EvaluateNodesResponse(values=[pb.NodeFigures(accuracy=0.5)], full=GOOD, empty=GOOD),
}


@pytest.mark.parametrize("lie", LIES)
def test_evaluations_that_cannot_be_right(
    server: FakeServer, client: Any, found: NodeCircuit, lie: str
) -> None:
    server.replies["EvaluateNodes"] = lambda request, context: LIES[lie]
    with pytest.raises(ServerFault):
        client.evaluate("toy", OTHER, found)


def test_what_is_sent(server: FakeServer, client: Any, found: NodeCircuit) -> None:
    asked: list[pb.EvaluateNodesRequest] = []

    def answer(request: pb.EvaluateNodesRequest, context: object) -> pb.EvaluateNodesResponse:
        asked.append(request)
        return pb.EvaluateNodesResponse(values=[GOOD], full=GOOD, empty=GOOD)

    server.replies["EvaluateNodes"] = answer
    client.evaluate("toy", OTHER, found)
    client.evaluate("toy", OTHER, found, allow_other_model=True, metric="kl_divergence")
    for request in asked:
        assert request.objective.metric == "kl_divergence"
        (nodes,) = request.circuits
        assert isinstance(nodes, circuit_pb2.NodeSet)
        assert nodes.layout.d_head == found.layout.d_head
        assert len(nodes.bits) == (found.layout.size + 7) // 8
    assert [request.circuits[0].model_revision for request in asked] == ["c0ffee", ""]


# The command


def arguments(running: RunningServer, tmp_path: Path, command: str, *more: str) -> list[str]:
    task = tmp_path / "task.json"
    task.write_text(json.dumps({"clean": [[1, 2, 3]], "corrupted": [[1, 4, 3]]}))
    return [command, "--model", "toy", "--task", str(task), "--server", address(running), *more]


def test_prune_and_what_reads_its_file(
    running: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], found: NodeCircuit
) -> None:
    path, other = tmp_path / "a.nodes", tmp_path / "b.nodes"
    asked = ["--max-kl", "0.3", "--steps", "60", "--quiet"]
    assert (
        main(arguments(running, tmp_path, "prune", *asked, "--training-seed", "7", "--out", str(path))) == 0
    )
    out, err = capsys.readouterr()
    assert out.startswith(f"# {found.summary()}")
    assert err == ""
    assert NodeCircuit.load(path) == found
    more = ["--kind", "heads", "--kind", "layers", "--no-polish", "--ablation", "zero", "--json"]
    assert main(arguments(running, tmp_path, "prune", *asked, *more, "--out", str(other))) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["kinds"], printed["polished"]) == (["heads", "layers"], False)
    assert printed["kept"]["heads"] == list(NodeCircuit.load(other).heads)

    assert main(["compare", str(path), str(other)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["kind", "both", "only", "a", "only", "b", "jaccard"]
    overlap = found.compare(NodeCircuit.load(other))["heads"]
    assert lines[1].split()[:4] == ["heads", *map(str, (overlap.both, overlap.only_a, overlap.only_b))]
    assert sum(line.startswith("only_b") and ".h" in line for line in lines) == overlap.only_b
    assert main(["compare", "--json", str(path), str(other)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["heads"]["jaccard"] == overlap.jaccard
    assert len(printed["heads"]["names_only_b"]) == overlap.only_b

    assert main(arguments(running, tmp_path, "evaluate", "--circuit", str(path))) == 0
    assert f"figures: {found.figures}" in capsys.readouterr().out.splitlines()
    assert main(arguments(running, tmp_path, "evaluate", "--circuit", str(path), "--json")) == 0
    assert json.loads(capsys.readouterr().out)["full"]["kl"] == 0
    search = arguments(running, tmp_path, "discover", "--threshold", "0", "--within", str(path), "--quiet")
    assert main([*search, "--json"]) == 0
    edges = {f"{e['source']}->{e['target']}" for e in json.loads(capsys.readouterr().out)["edges"]}
    assert edges <= set(map(str, found.to_circuit().edges))


def test_prune_without_waiting(
    running: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = arguments(running, tmp_path, "prune", "--max-kl", "0.3", "--steps", "5")
    assert main([*asked, "--estimate"]) == 0
    assert "most_seconds: " in capsys.readouterr().out
    assert main([*asked, "--detach"]) == 0
    name = capsys.readouterr().out.strip()
    assert main(["watch", name, "--server", address(running), "--quiet"]) == 0
    assert "5/5 steps" in capsys.readouterr().out
    assert main(["jobs", "--server", address(running)]) == 0
    assert "KL 0.3" in capsys.readouterr().out
    assert main(["show", name, "--server", address(running)]) == 0
    assert "of the weights" in capsys.readouterr().out
    assert main([*asked, "--detach", "--out", "x"]) == 2
    assert "--detach" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-kl", "0"], "max_kl: must be a number above 0"),
        (["--max-kl", "0.1", "--kind", "toes"], "unknown kind of node 'toes'"),
        (["--max-kl", "0.1", "--steps", "0"], "steps: must be at least 1"),
        (["--max-kl", "0.1", "--out", "/nowhere/x"], "--out: cannot write"),
    ],
)
def test_bad_options(
    running: RunningServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    words: str,
) -> None:
    assert main(arguments(running, tmp_path, "prune", *options)) == 2
    assert words in capsys.readouterr().err
    assert not running.engine.opened
