"""Evaluations of many circuits, and curves: how they are sent, and what comes back."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pahq_client import (
    Circuit,
    Curve,
    EdgeScores,
    InvalidRequest,
    JobFailed,
    OtherModel,
    PahqWarning,
    circuits_of_curve,
)
from pahq_client import _requests as requests
from pahq_client.cli import main

from .fake_artifact import GRAPH
from .fake_server import Code, FakeServer, Fault, edges_of

PROVENANCE = {"request": {"parameters": {"ablation": "mean"}, "policy": "bf16", "model_revision": "c0ffee"}}


@pytest.fixture
def scores() -> EdgeScores:
    values = np.random.default_rng(0).normal(size=GRAPH.num_edges)
    return EdgeScores(values, GRAPH, "gim", "l2", 0.0, 4.0, PROVENANCE)


def test_many_circuits(client: Any, server: FakeServer, circuit: Circuit) -> None:
    found = client.evaluate_many("demo", "ioi", [circuit, ["m0->logits"], {"input->m0"}], precision="bf16")
    assert [each.value for each in found] == [1.0, 2.0, 3.0]
    assert {(each.full, each.empty, each.num_edges_total) for each in found} == {(0.0, 4.0, 7)}
    assert {(each.ablation, each.precision, each.metric) for each in found} == {
        ("mean", "bf16", "kl_divergence")
    }
    (request,) = server.called("EvaluateCircuits")
    first, second, third = request.circuits
    assert edges_of(first.edges) == set(map(str, circuit.edges))
    assert (list(second.names.names), list(third.names.names)) == (["m0->logits"], ["input->m0"])


def test_none_at_all(client: Any, server: FakeServer) -> None:
    assert client.evaluate_many("demo", "ioi", []) == []
    assert not server.calls


def test_long_lists_go_in_several_calls(
    client: Any, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [each.value for each in client.evaluate_many("demo", "ioi", [[]] * 1001)][-2:] == [1000.0, 1.0]
    assert [len(request.circuits) for request in server.called("EvaluateCircuits")] == [1000, 1]
    server.calls.clear()
    monkeypatch.setattr(requests, "CHUNK_BYTES", 100)
    client.evaluate_many("demo", "ioi", [["m0->logits"] * 5] * 3)
    assert [len(request.circuits) for request in server.called("EvaluateCircuits")] == [1, 1, 1]
    violation = ("circuits[0].names", "the graph has no sender 'm0'")
    server.faults["EvaluateCircuits"] = [
        None,
        Fault(Code.INVALID_ARGUMENT, "m", "INVALID_REQUEST", {}, violation),
    ]
    with pytest.raises(InvalidRequest, match=r"^circuits\[1\]: the graph has no sender"):
        client.evaluate_many("demo", "ioi", [["m0->logits"] * 5] * 3)


@pytest.mark.parametrize("field", ["circuits[0].names", "circuits[0].edges.bits", "task.clean[0]"])
def test_errors_name_the_callers_argument(client: Any, server: FakeServer, field: str) -> None:
    server.faults["EvaluateCircuits"] = [
        Fault(Code.INVALID_ARGUMENT, "m", "INVALID_REQUEST", {}, (field, "is wrong")) for _ in range(2)
    ]
    known = field if field.startswith("task") else "circuit"
    with pytest.raises(InvalidRequest) as raised:
        client.evaluate("demo", "ioi", [])
    assert raised.value.field == known
    with pytest.raises(InvalidRequest) as raised:
        client.evaluate_many("demo", "ioi", [[], []])
    assert raised.value.field == known.replace("circuit", "circuits[0]")


def test_a_circuit_of_another_model_is_told_apart(client: Any, server: FakeServer) -> None:
    known = {"circuit": "2 layers", "model": "4 layers"}
    violation = ("circuits[1].edges", "it was found in another model")
    fault = Fault(Code.INVALID_ARGUMENT, "m", "OTHER_MODEL", known, violation)
    server.faults["EvaluateCircuits"] = [fault]
    with pytest.raises(OtherModel) as raised:
        client.evaluate_many("demo", "ioi", [[], []])
    assert (raised.value.field, raised.value.circuit, raised.value.model) == (
        "circuits[1]",
        "2 layers",
        "4 layers",
    )


def test_circuits_that_were_found_in_different_ways(client: Any, circuit: Circuit) -> None:
    other = replace(circuit, metric=replace(circuit.metric, name="l2"))
    with pytest.raises(InvalidRequest, match=r"^metric: .*'kl_divergence' and 'l2': say which"):
        client.evaluate_many("demo", "ioi", [circuit, other])
    found = client.evaluate_many("demo", "ioi", [circuit, other], metric="l2")
    assert [each.metric for each in found] == ["l2", "l2"]


@pytest.mark.parametrize("wrong", [3, "m0->logits", None, [3], [[], "x"], [[3]], {"a": 1}])
def test_what_is_no_list_of_circuits(client: Any, server: FakeServer, wrong: Any) -> None:
    with pytest.raises(InvalidRequest, match="circuit"):
        client.evaluate_many("demo", "ioi", wrong)
    assert not server.calls


def test_one_circuit_is_no_list(client: Any, circuit: Circuit) -> None:
    with pytest.raises(InvalidRequest, match=r"evaluate\(\) measures a single one"):
        client.evaluate_many("demo", "ioi", circuit)


def test_what_a_file_of_another_tool_does_not_tell_is_as_usual(client: Any, server: FakeServer) -> None:
    scores = EdgeScores(np.ones(GRAPH.num_edges), GRAPH, "", "")
    client.evaluate("demo", "ioi", scores.top(edges=3))
    (request,) = server.called("EvaluateCircuits")
    assert (request.objective.metric, request.objective.precision) == ("kl_divergence", "fp32")


# Curves


@pytest.mark.parametrize("greedy", [False, True])
def test_a_curve_of_scores(client: Any, server: FakeServer, scores: EdgeScores, greedy: bool) -> None:
    fractions = [0.1, 0.3, 1.0]
    server.warnings = ["careful"]
    with pytest.warns(PahqWarning, match="careful"):
        curve = client.curve("demo", "ioi", scores, fractions=fractions, greedy=greedy, baselines=2)
    assert isinstance(curve, Curve)
    (request,) = server.called("EvaluateCircuits")
    asked = request.objective
    assert (asked.metric, asked.ablation, asked.precision, asked.kv_receivers) == (
        "l2",
        "mean",
        "bf16",
        "group",
    )
    chosen = circuits_of_curve(scores, fractions, greedy=greedy, baselines=2)
    names = list(GRAPH.edge_names())
    for message, kept in zip(request.circuits, chosen.circuits, strict=True):
        assert message.edges.model_revision == "c0ffee"
        assert edges_of(message.edges) == {name for name, bit in zip(names, kept, strict=True) if bit}
    values = [1.0 + number for number in range(len(chosen.circuits))]
    expected = Curve.of(chosen, values, full=0.0, empty=4.0, metric="l2", warnings=["careful"])
    assert vars(curve) | {"baselines": ()} == vars(expected) | {"baselines": ()}
    assert list(map(vars, curve.baselines)) == list(map(vars, expected.baselines))
    assert (curve.method, curve.fractions, len(curve.baselines)) == ("gim", (0.1, 0.3, 1.0), 2)
    assert curve.warnings == ("careful",)
    assert curve.selection == f"{'greedy' if greedy else 'top'} absolute"


def test_a_curve_tells_the_warnings_of_its_scores(client: Any, scores: EdgeScores, circuit: Circuit) -> None:
    told = {**PROVENANCE, "run": {"warnings": ["the scores are odd"]}}
    odd = replace(scores, provenance=told, partial=True)
    first, second = client.curve("demo", "ioi", odd, baselines=0).warnings
    assert (first, second[:34]) == ("the scores are odd", "The scores are those of a job that")
    curve = client.curve("demo", "ioi", [replace(circuit, partial=True)], baselines=0)
    assert [warning[:35] for warning in curve.warnings] == ["One of the circuits is partial: edg"]
    assert client.curve("demo", "ioi", circuit, baselines=0).warnings == ()


def test_a_curve_of_circuits(client: Any, server: FakeServer, scores: EdgeScores) -> None:
    circuits = [scores.top(edges=count) for count in (70, 5, 30)]
    for given in (circuits, iter(circuits), tuple(circuits)):
        curve = client.curve("demo", "ioi", given, baselines=0)
        assert curve.num_edges == tuple(sorted(len(circuit.edges) for circuit in circuits))
    assert client.curve("demo", "ioi", circuits[0], baselines=0).num_edges == (len(circuits[0].edges),)
    for request in server.called("EvaluateCircuits"):
        assert (request.objective.metric, request.objective.ablation) == ("l2", "mean")


def test_a_curve_on_another_model(client: Any, server: FakeServer, scores: EdgeScores) -> None:
    client.curve("demo", "ioi", scores, fractions=[1.0], baselines=0, allow_other_model=True, metric="l2")
    (request,) = server.called("EvaluateCircuits")
    assert request.circuits[0].edges.model_revision == ""


def test_curves_that_make_no_sense(client: Any, server: FakeServer, scores: EdgeScores) -> None:
    for options, field in (
        ({"fractions": []}, "fractions"),
        ({"fractions": [0.5, 0.1]}, "fractions"),
        ({"fractions": [0]}, "fractions[0]"),
        ({"baselines": -1}, "baselines"),
        ({"baselines": 2000}, "baselines"),
        ({"rank": "x"}, "rank"),
        ({"seed": "x"}, "seed"),
    ):
        with pytest.raises(InvalidRequest) as raised:
            client.curve("demo", "ioi", scores, **options)
        assert raised.value.field == field
    for option, value in (("rank", "harm"), ("greedy", True)):
        with pytest.raises(InvalidRequest, match=f"^{option}: .*circuits are taken as they are"):
            client.curve("demo", "ioi", [scores.top(edges=3)], **{option: value})
    for wrong in ([], 3, "x", [3], [scores, scores]):
        with pytest.raises(InvalidRequest, match="circuits"):
            client.curve("demo", "ioi", wrong)
    assert not server.calls
    server.faults["EvaluateCircuits"] = [Fault(Code.FAILED_PRECONDITION, "nan", "NON_FINITE_METRIC")]
    with pytest.raises(JobFailed):
        client.curve("demo", "ioi", scores)


def test_no_time_left(client: Any, server: FakeServer, scores: EdgeScores) -> None:
    with pytest.raises(TimeoutError):
        client.curve("demo", "ioi", scores, timeout=0)


# The command


def test_the_command(
    server: FakeServer, scores: EdgeScores, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores.save(tmp_path / "s")
    for count in (5, 30):
        circuit = scores.top(edges=count)
        replace(circuit, metric=replace(circuit.metric, value=1.0)).save(tmp_path / f"{count}.json")
    address = ["--server", server.address, "--model", "demo", "--task", "ioi"]
    assert main(["curve", str(tmp_path / "s"), *address, "--fractions", ".1,.5,1", "--baselines", "1"]) == 0
    head, columns, *rows = capsys.readouterr().out.splitlines()
    assert "method='gim'" in head
    assert "cpr=" in head
    assert "random" in columns
    assert len(rows) >= 3
    files = [str(tmp_path / f"{count}.json") for count in (5, 30)]
    assert main(["curve", *files, *address, "--json", "--baselines", "0", "--ablation", "zero"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["metric"], told["values"], told["full"], told["empty"]) == ("l2", [1.0, 2.0], 0.0, 4.0)
    assert told["faithfulness"] == [0.75, 0.5]
    assert math.isfinite(told["cpr"])
    assert server.called("EvaluateCircuits")[1].objective.ablation == "zero"
    with pytest.raises(SystemExit):
        main(["curve", files[0], *address, "--fractions", "a,b"])
    assert "--fractions" in capsys.readouterr().err
    assert main(["curve", str(tmp_path / "none"), *address]) == 2
