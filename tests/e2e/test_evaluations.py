"""Evaluations of many circuits, circuits of chosen edges, and curves, against a real server."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.demo import NUM_EDGES

from pahq_client import Circuit, Client, EdgeScores, InvalidRequest, OtherModel, Task
from pahq_client._job_options import ATTRIBUTION
from pahq_client.cli import main

from .process import ServerProcess

TASK = Task.ioi(num_prompts=4)
PLAIN = Task(clean=[[1, 2, 3], [4, 5]], corrupted=[[1, 6, 3], [7, 5]], answers=[1, 2], wrong_answers=[3, 4])


def test_many_circuits_are_measured_as_each_alone(client: Client) -> None:
    """Whatever is beside them, and by numbers as by names, to the last bit."""
    scores = client.attribute("demo", TASK)
    circuits = [scores.top(edges=count) for count in (1, 10, 100, NUM_EDGES // 2, NUM_EDGES)]
    alone = [client.evaluate("demo", TASK, circuit) for circuit in circuits]
    together = client.evaluate_many("demo", TASK, [*circuits, []])
    assert [each.value for each in together[:-1]] == [each.value for each in alone]
    named = client.evaluate_many(
        "demo", TASK, [[str(edge) for edge in circuit.edges] for circuit in circuits], metric=scores.metric
    )
    assert [each.value for each in named] == [each.value for each in alone]
    for each in together:
        assert (each.full, each.empty) == (alone[0].full, alone[0].empty)
    assert together[-1].value == together[-1].empty
    assert alone[-1].value == pytest.approx(alone[-1].full, abs=1e-5)


def test_a_session_measures_the_same(client: Client) -> None:
    circuits = [circuit.edges for circuit in client.attribute("demo", TASK).curve_circuits([0.01, 0.2])]
    found = client.evaluate_many("demo", TASK, circuits, metric="l2")
    with client.session("demo", TASK, metric="l2") as session:
        assert [each.value for each in found] == session.score(circuits)


@pytest.mark.parametrize("method", ATTRIBUTION)
def test_chosen_edges(client: Client, method: str) -> None:
    scores = client.attribute("demo", TASK, method)
    assert (scores.method, scores.metric) == (method, "logit_difference")
    circuit = client.discover("demo", TASK, method=method, edges=60)
    assert isinstance(circuit, Circuit)
    chosen = scores.top(edges=60)
    assert circuit.edges == chosen.edges
    measured = client.evaluate("demo", TASK, chosen)
    assert circuit.metric.value == measured.value
    assert circuit.faithfulness == measured.faithfulness
    assert circuit.warnings == measured.warnings


def test_exact_scores(client: Client) -> None:
    exact = client.attribute("plain", PLAIN, "single_edge")
    circuit = client.discover("plain", PLAIN, method="single_edge", metric="logit_difference")
    assert isinstance(circuit, Circuit)
    by_name = {str(edge): edge.score for edge in circuit.edges}
    assert dict(zip(exact.graph.edge_names(), exact.scores.tolist(), strict=True)) == by_name
    estimate = client.attribute("plain", PLAIN, "eap")
    assert estimate.graph == exact.graph
    assert (estimate.full, estimate.empty) == (exact.full, exact.empty)
    agreement = exact.compare(estimate).spearman
    assert agreement is not None
    assert agreement > 0.8


def test_a_curve(client: Client) -> None:
    scores = client.attribute("demo", TASK)
    curve = client.curve("demo", TASK, scores, baselines=2)
    values = [client.evaluate("demo", TASK, circuit).value for circuit in scores.curve_circuits()]
    assert curve.values == tuple(values)
    assert curve.faithfulness[-1] == pytest.approx(1, abs=1e-5)
    assert curve.metric == "logit_difference"
    assert len(curve.baselines) == 2
    assert all(each.cpr < curve.cpr for each in curve.baselines)
    circuits = [scores.top(fraction=share) for share in (0.05, 0.2)]
    few = client.curve("demo", TASK, circuits, baselines=0)
    assert few.values == (curve.values[5], curve.values[7])


def test_what_belongs_to_another_model_is_refused(client: Client) -> None:
    scores = client.attribute("plain", PLAIN)
    with pytest.raises(OtherModel):
        client.curve("demo", TASK, scores)
    with pytest.raises(OtherModel) as raised:
        client.evaluate_many("demo", TASK, [[], scores.top(edges=3)])
    assert raised.value.field == "circuits[1]"
    with pytest.raises(InvalidRequest, match=r"circuits\[1\]: the graph has no sender 'a9.h9'"):
        client.evaluate_many("demo", TASK, [[], ["a9.h9->logits"]])


def test_a_task_without_answers(client: Client) -> None:
    """A newcomer who forgot the answers is told what to give, or which method does without."""
    task = Task(clean=PLAIN.clean, corrupted=PLAIN.corrupted)
    with pytest.raises(InvalidRequest, match=r"'logit_difference'.*'eap_ig'"):
        client.attribute("plain", task)


def test_the_commands(
    server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["--model", "demo", "--task", "ioi", "--num-prompts", "4", "--server", server.address]
    assert main(["attribute", *asked, "--quiet", "--out", "scores"]) == 0
    assert main(["discover", *asked, "--quiet", "--method", "eap", "--edges", "60", "--out", "c.json"]) == 0
    assert main(["evaluate", "--circuit", "c.json", *asked, "--json"]) == 0
    measured = json.loads(capsys.readouterr().out.splitlines()[-1])
    circuit = Circuit.load("c.json")
    assert (measured["metric"], measured["value"]) == ("logit_difference", circuit.metric.value)
    assert main(["curve", "scores", *asked, "--baselines", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["values"]) == 10
    assert [len(each["values"]) for each in told["baselines"]] == [10]
    scores = EdgeScores.load("scores")
    assert np.isfinite(scores.scores).all()
    assert main(["curve", "c.json", *asked]) == 0
    assert f"{len(circuit.edges)}" in capsys.readouterr().out
