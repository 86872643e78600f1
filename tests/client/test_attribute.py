"""Scores of edges, and circuits of chosen edges: what is asked for, in which calls, and what comes back."""

from __future__ import annotations

import inspect
import math
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest

import pahq_client
from pahq_client import Circuit, Client, EdgeScores, InvalidRequest, Task
from pahq_client._job_options import ATTRIBUTION, JobOptions, JobRequest, job_options
from pahq_client.cli import main

from .fake_server import FakeServer, edges_of
from .test_selection import SMALL, made_up

NO_ANSWERS = Task([[1]], [[2]])
ANSWERS = Task([[1]], [[2]], answers=[3], wrong_answers=[4])


# Methods


@pytest.mark.parametrize("method", ATTRIBUTION)
def test_attribute(client: Any, server: FakeServer, method: str) -> None:
    server.artifact.make_scores()
    options = {"ablation": "mean", "kv_receivers": "query", "precision": "bf16", "include_prompts": True}
    found = client.attribute("demo", "ioi", method, **options)
    assert isinstance(found, EdgeScores)
    assert found.scores.tolist() == [*range(82)]
    (request,) = server.called("CreateJob")
    assert request.spec.WhichOneof("method") == method
    asked = request.spec.objective
    assert (asked.metric, asked.ablation, asked.kv_receivers) == ("logit_difference", "mean", "query")
    assert (asked.precision, request.spec.include_prompts) == ("bf16", True)


def test_steps_are_for_eap_ig(client: Any, server: FakeServer) -> None:
    server.artifact.make_scores()
    client.attribute("demo", "ioi", "eap_ig", steps=7)
    client.attribute("demo", "ioi", "eap_ig")
    seven, usual = (request.spec.eap_ig for request in server.called("CreateJob"))
    assert seven.steps == 7
    assert not usual.HasField("steps")
    with pytest.raises(InvalidRequest, match="steps: is not for method 'gim', but for 'eap_ig'"):
        client.attribute("demo", "ioi", "gim", steps=7)
    for wrong in (1.5, "5", 1 << 31):
        with pytest.raises(InvalidRequest, match="steps"):
            client.attribute("demo", "ioi", "eap_ig", steps=wrong)


def test_the_metric_of_scores_follows_from_the_task(client: Any, server: FakeServer) -> None:
    server.artifact.make_scores()
    half = Task([[1]], [[2]], answers=[3])
    for task in ("ioi", ANSWERS, NO_ANSWERS, half):
        client.attribute("demo", task, "eap_ig")
    client.attribute("demo", ANSWERS, metric="l2")
    client.discover("demo", ANSWERS, method="gim")
    client.submit("demo", NO_ANSWERS, method="gim")
    client.submit("demo", ANSWERS, 0.1)
    client.submit("demo", ANSWERS, method="single_edge")
    asked = [request.spec.objective.metric for request in server.called("CreateJob")]
    difference, divergence = "logit_difference", "kl_divergence"
    assert asked[:4] == [difference, difference, divergence, divergence]
    assert asked[4:] == ["l2", difference, divergence, divergence, divergence]


def test_exact_scores(client: Any, server: FakeServer) -> None:
    server.artifact.make_single_edge()
    found = client.attribute("demo", "ioi", "single_edge")
    assert isinstance(found, EdgeScores)
    assert found.scores.tolist() == [*range(82)]
    assert (found.method, found.full, found.empty) == ("single_edge", 0.0, 2.0)
    (request,) = server.called("CreateJob")
    assert request.spec.objective.metric == "logit_difference"
    assert isinstance(client.discover("demo", "ioi", method="single_edge"), Circuit)


def test_methods_without_scores(client: Any, server: FakeServer) -> None:
    with pytest.raises(InvalidRequest, match="'acdc' finds a circuit"):
        client.attribute("demo", "ioi", "acdc")
    assert not server.calls
    with pytest.raises(InvalidRequest, match="'mine' gives a Circuit, not scores"):
        client.attribute("demo", "ioi", "mine")


def test_a_method_of_the_server_that_gives_scores(client: Any, server: FakeServer) -> None:
    server.artifact.make_scores()
    assert isinstance(client.attribute("demo", "ioi", "mine"), EdgeScores)


# Edges that are chosen by scores


def careful(server: FakeServer, request: Any, context: Any) -> Any:
    answer = server.EvaluateCircuits(request, context)
    answer.warnings.append("careful")
    return answer


@pytest.mark.parametrize(("choice", "count"), [({"edges": 20}, 20), ({"fraction": 0.5}, 41)])
@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("method", ["gim", "single_edge"])
def test_discover_chooses_and_measures(
    client: Any, server: FakeServer, choice: dict[str, Any], count: int, greedy: bool, method: str
) -> None:
    make = server.artifact.make_scores if method == "gim" else server.artifact.make_single_edge
    make()
    metric = "logit_difference" if method == "gim" else "kl_divergence"
    server.artifact.layout["metric"]["name"] = metric
    server.replies["EvaluateCircuits"] = lambda request, context: careful(server, request, context)
    options = {"ablation": "mean", "precision": "bf16"}
    with pytest.warns(pahq_client.PahqWarning, match="careful"):
        circuit = client.discover("demo", "ioi", method=method, greedy=greedy, **choice, **options)
    scores = client.attribute("demo", "ioi", method, **options)
    assert isinstance(circuit, Circuit)
    expected = (scores.greedy if greedy else scores.top)(edges=count)
    assert [str(edge) for edge in circuit.edges] == [str(edge) for edge in expected.edges]
    assert [edge.score for edge in circuit.edges] == [edge.score for edge in expected.edges]
    assert (circuit.metric.name, circuit.metric.value) == (metric, 1.0)
    assert (circuit.metric.full, circuit.metric.empty, circuit.faithfulness) == (0.0, 4.0, 0.75)
    assert circuit.warnings == ("careful",)
    (request,) = server.called("EvaluateCircuits")
    assert edges_of(request.circuits[0].edges) == set(map(str, circuit.edges))
    asked, scored = request.objective, server.called("CreateJob")[0].spec.objective
    assert asked == scored
    assert (asked.metric, asked.ablation, asked.precision) == (metric, "mean", "bf16")


def test_rank(client: Any, server: FakeServer) -> None:
    server.artifact.make_scores()
    server.artifact.layout["metric"]["name"] = "logit_difference"
    server.artifact.arrays["scores"] = np.where(np.arange(82) % 2, -1.0, 1.0) * np.arange(82)
    by_size = client.discover("demo", "ioi", method="eap", edges=40)
    by_harm = client.discover("demo", "ioi", method="eap", edges=40, rank="harm")
    assert any(edge.score < 0 for edge in by_size.edges)
    assert all(edge.score >= 0 for edge in by_harm.edges)


def test_no_choice_gives_scores(client: Any, server: FakeServer) -> None:
    server.artifact.make_scores()
    assert isinstance(client.discover("demo", "ioi", method="eap"), EdgeScores)
    assert not server.called("EvaluateCircuits")


@pytest.mark.parametrize("argument", ["edges", "fraction"])
def test_a_choice_takes_a_second_call(client: Any, server: FakeServer, argument: str) -> None:
    with pytest.raises(InvalidRequest, match=r"takes a second call .* use discover") as raised:
        client.submit("demo", "ioi", method="gim", **{argument: 1})
    assert raised.value.field == argument
    assert not server.calls
    assert client.estimate("demo", "ioi", method="gim", **{argument: 1}).most_seconds == 90


@pytest.mark.parametrize(
    ("options", "field", "words"),
    [
        ({"method": "gim", "edges": 0}, "edges", "from 1 on, got 0"),
        ({"method": "gim", "edges": -3}, "edges", "from 1 on"),
        ({"method": "gim", "edges": 1.5}, "edges", "must be an integer"),
        ({"method": "gim", "edges": True}, "edges", "must be an integer"),
        ({"method": "gim", "fraction": 0}, "fraction", "above 0 and at most 1"),
        ({"method": "gim", "fraction": 1.01}, "fraction", "above 0 and at most 1"),
        ({"method": "gim", "fraction": math.nan}, "fraction", "above 0 and at most 1"),
        ({"method": "gim", "fraction": "half"}, "fraction", "must be a number"),
        ({"method": "gim", "edges": 3, "fraction": 0.5}, "fraction", "does not go with edges"),
        ({"method": "gim", "edges": 3, "rank": "best"}, "rank", "must be one of absolute, harm"),
        ({"method": "gim", "edges": 3, "rank": 3}, "rank", "must be a string"),
        ({"method": "gim", "edges": 3, "greedy": 1}, "greedy", "must be True or False"),
        ({"method": "gim", "greedy": True}, "greedy", "give edges or fraction, too"),
        ({"method": "gim", "rank": "harm"}, "rank", "give edges or fraction, too"),
        ({"method": "gim", "grouping": "none"}, "grouping", "is not for method 'gim', but for 'acdc'"),
        ({"method": "gim", "faithfulness": 0.9}, "faithfulness", "but for 'acdc'"),
        ({"method": "gim", "threshold": 0.9}, "threshold", "choose by edges or fraction"),
        ({"method": "gim", "parameters": {"a": 1}}, "parameters", "'gim' has edges, fraction"),
        ({"method": "single_edge", "threshold": 0.9, "edges": 3}, "threshold", "does not go with edges"),
        ({"fraction": 0.5}, "fraction", "is not for method 'acdc'"),
        ({"greedy": True}, "greedy", "is not for method 'acdc'"),
        ({"rank": "harm"}, "rank", "is not for method 'acdc'"),
        ({"steps": 3}, "steps", "is not for method 'acdc'"),
        ({"method": "mine", "edges": 3}, "edges", "give what the method takes as parameters"),
        (
            {"method": "gimm", "edges": 3},
            "edges",
            "the methods acdc, .*, gim, node_pruning, neurons; did you mean 'gim'?",
        ),
        ({"within": "circuit.json"}, "within", "must be a Circuit, got str; read a file with Circuit.load"),
        ({"within": []}, "within", "must be a Circuit, got list"),
        ({"within": made_up(SMALL)}, "within", r"got EdgeScores; choose .* scores\.top\(fraction=0\.1\)"),
        ({"gates": False}, "gates", "gave way to grouping: .*'none' for False"),
    ],
)
def test_arguments_that_do_not_fit(
    client: Any, server: FakeServer, options: dict[str, Any], field: str, words: str
) -> None:
    for call in (client.discover, client.submit):
        with pytest.raises(InvalidRequest, match=words) as raised:
            call("demo", "ioi", **options)
        assert raised.value.field == field
    assert not server.calls


def test_more_edges_than_there_are(client: Any, server: FakeServer) -> None:
    server.artifact.make_scores()
    server.artifact.layout["metric"]["name"] = "logit_difference"
    with pytest.raises(InvalidRequest, match="edges: must be from 1 to 82"):
        client.discover("demo", "ioi", method="eap", edges=83)


# ACDC


def test_arguments_of_acdc(client: Any, server: FakeServer, circuit: Circuit) -> None:
    client.submit("demo", "ioi", 0.5)
    client.submit("demo", "ioi", grouping="bisect", edges=100)
    client.submit("demo", "ioi", faithfulness=0.9, within=circuit)
    plain, counted, faithful = (request.spec.acdc for request in server.called("CreateJob"))
    assert (plain.threshold, plain.grouping) == (0.5, "gates")
    assert not any(plain.HasField(name) for name in ("edges", "faithfulness", "within"))
    assert (counted.edges, counted.grouping) == (100, "bisect")
    assert not counted.HasField("threshold")
    assert faithful.faithfulness == 0.9
    assert edges_of(faithful.within) == set(map(str, circuit.edges))


def test_a_circuit_with_an_edge_that_its_graph_does_not_have(client: Any, circuit: Circuit) -> None:
    wrong = pahq_client.Circuit(
        edges=(pahq_client.Edge("a7.h0", "logits"),),
        graph=circuit.graph,
        metric=circuit.metric,
        num_evaluations=0,
        num_edges_total=0,
    )
    for field, call in (
        ("within", lambda: client.discover("demo", "ioi", 0.1, within=wrong)),
        ("circuit", lambda: client.evaluate("demo", "ioi", wrong)),
        (r"circuits\[1\]", lambda: client.evaluate_many("demo", "ioi", [[], wrong])),
    ):
        with pytest.raises(InvalidRequest, match=f"^{field}: the graph has no edge a7.h0->logits"):
            call()


# Signatures


def test_options_are_stated_twice_in_the_same_way() -> None:
    """As types for checkers, and with their defaults for requests; in one order."""
    hints, defaults = get_type_hints(JobOptions), get_type_hints(JobRequest)
    assert list(hints) == [each.name for each in fields(JobRequest)][3:]
    assert all(hints[name] == defaults[name] for name in hints)


@pytest.mark.parametrize("function", [Client.discover, Client.submit, Client.estimate, pahq_client.discover])
def test_help_lists_every_option(function: Any) -> None:
    parameters = inspect.signature(function).parameters
    defaults = {each.name: each.default for each in fields(JobRequest)}
    for name, default in defaults.items():
        assert parameters[name].default == (inspect.Parameter.empty if name in ("model", "task") else default)
    assert "options" not in parameters
    documentation = inspect.getdoc(function) or ""
    assert "JOB_OPTIONS" not in documentation
    assert "    method: ``acdc``" in documentation


def test_a_function_without_docstring_keeps_none() -> None:
    @job_options
    def function(model: str, **options: Any) -> None: ...

    assert function.__doc__ is None
    assert "grouping" in inspect.signature(function).parameters


# The command


def test_the_command(server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.artifact.make_scores()
    server.artifact.layout["metric"]["name"] = "logit_difference"
    address = ["--server", server.address, "--quiet", "--model", "demo", "--task", "ioi"]
    saved = str(tmp_path / "scores")
    assert main(["attribute", *address, "--method", "eap_ig", "--steps", "3", "--out", saved]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("# 82 edges")
    assert len(lines) == 82
    assert EdgeScores.load(saved).scores.tolist() == [*range(82)]
    assert main(["show", saved]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == lines
    assert server.called("CreateJob")[0].spec.eap_ig.steps == 3

    out = str(tmp_path / "c.json")
    chosen = ["--method", "gim", "--edges", "30", "--rank", "harm", "--greedy", "--out", out]
    assert main(["discover", *address, *chosen]) == 0
    circuit = Circuit.load(out)
    assert circuit.metric.value == 1.0
    assert capsys.readouterr().out.splitlines()[0].startswith(f"# {len(circuit.edges)} of 82 edges")

    acdc = ["--grouping", "bisect", "--within", out, "--faithfulness", "0.9", "--detach"]
    assert main(["discover", *address, *acdc]) == 0
    asked = server.called("CreateJob")[-1].spec.acdc
    assert (asked.grouping, asked.faithfulness) == ("bisect", 0.9)
    assert edges_of(asked.within) == set(map(str, circuit.edges))
    with pytest.raises(SystemExit):
        main(["discover", *address, "--no-gates"])
    assert "--no-gates gave way to --grouping none" in capsys.readouterr().err


def test_the_command_compares_scores(
    server: FakeServer, circuit: Circuit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    circuit.save(tmp_path / "c.json")
    server.artifact.make_scores()
    with Client(server.address) as client:
        client.attribute("demo", "ioi").save(tmp_path / "a")
    a, c = str(tmp_path / "a"), str(tmp_path / "c.json")
    assert main(["compare", a, a]) == 0
    out = capsys.readouterr().out
    assert "spearman\t1.0000\n" in out
    assert "overlap of the best 10\t1.0000\n" in out
    assert main(["compare", a, a, "--json"]) == 0
    assert '"kendall": 1.0' in capsys.readouterr().out
    assert main(["compare", a, c]) == 2
    assert "b: is a circuit and the other file holds scores" in capsys.readouterr().err
