"""Answers that mislead, provoked on real models: each says so, and those that do not mislead say nothing."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.demo import HEADS, LAYERS, NUM_EDGES
from helpers.shared import shared_model

from pahq_client import Circuit, Client, InvalidRequest, OtherModel, PahqWarning, Task
from pahq_client.cli import main

from .process import ServerProcess

IOI = Task.ioi(num_prompts=16, seed=0)
WORKING = 0.05  # a threshold that gives the demo's circuit


@pytest.fixture
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PahqWarning)
        yield


@pytest.fixture(scope="module")
def task(server: ServerProcess) -> Task:
    """The demo's task in words: it comes with a circuit that is asked for it."""
    with Client(server.address) as client, warnings.catch_warnings():
        warnings.simplefilter("ignore", PahqWarning)
        found = client.discover("demo", IOI, 5.0, include_prompts=True).task
    assert isinstance(found, Task)
    return found


def discover(client: Client, task: object, threshold: float | None = WORKING, **options: object) -> Circuit:
    """The circuit, having checked that the job tells the same warnings, and Python as many."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        job = client.submit("demo", task, threshold, **options)  # type: ignore[arg-type]
        circuit = job.result(timeout=300)
    assert [str(warning.message) for warning in caught] == list(circuit.warnings)
    assert job.info.warnings == circuit.warnings
    assert job.info.faithfulness == circuit.faithfulness
    return circuit


def told(circuit: Circuit, *parts: str) -> None:
    assert len(circuit.warnings) == len(parts), circuit.warnings
    for part in parts:
        assert sum(part in text for text in circuit.warnings) == 1, (part, circuit.warnings)


def test_a_good_circuit_says_nothing(client: Client, task: Task) -> None:
    for asked in (IOI, task):
        circuit = discover(client, asked)
        told(circuit)
        assert circuit.faithfulness == pytest.approx(0.9605, abs=1e-4)
        assert client.evaluate("demo", asked, circuit).warnings == ()


def test_a_threshold_that_keeps_nothing(client: Client) -> None:
    circuit = discover(client, IOI, 1e6)
    told(circuit, "No edge is kept", "The faithfulness is 0:")
    assert (circuit.edges, circuit.faithfulness) == ((), 0.0)


def test_a_threshold_that_keeps_everything(client: Client) -> None:
    circuit = discover(client, Task.ioi(2), 0.0, ablation="zero", method="single_edge", metric="l2")
    told(circuit, "edges are kept")


def test_edges_on_no_path(client: Client) -> None:
    circuit = discover(client, IOI, 2.0)
    told(circuit, "None of the 5 kept edges is on a path", "The faithfulness is ")
    assert circuit.pruned().edges == ()


def test_a_circuit_that_goes_beyond_the_model(client: Client) -> None:
    circuit = discover(client, IOI, 0.02, metric="logit_difference", ablation="zero")
    told(circuit, "The faithfulness is 1.4: the circuit goes beyond the full model")


@pytest.mark.parametrize("metric", ["kl_divergence", "logit_difference"])
def test_a_task_that_the_model_cannot_do(client: Client, task: Task, metric: str) -> None:
    """The model prefers the other answer, whatever the metric is."""
    swapped = dataclasses.replace(task, answers=task.wrong_answers, wrong_answers=task.answers)
    circuit = discover(client, swapped, 0.3, metric=metric)
    (text,) = (text for text in circuit.warnings if "does not do the task" in text)
    assert "is -12 on the clean prompts" in text
    assert "at 0 of 16 positions" in text


def test_pairs_that_are_not_corrupted(client: Client, task: Task) -> None:
    circuit = discover(client, dataclasses.replace(task, corrupted=task.clean))
    told(circuit, "are the same in all 16 pairs", "have the same kl_divergence (0 and 0)", "No edge is kept")
    assert circuit.faithfulness is None
    assert "faithfulness undefined (full = empty)" in repr(circuit)
    corrupted = tuple(task.corrupted or ())
    some = dataclasses.replace(task, corrupted=(*tuple(task.clean)[:2], *corrupted[2:]))
    told(discover(client, some), "are the same in 2 of 16 pairs (first in task.clean[0])")


def test_answers_that_are_wrong_answers(client: Client, task: Task) -> None:
    same = dataclasses.replace(task, wrong_answers=task.answers)
    circuit = discover(client, same, metric="logit_difference")
    told(
        circuit,
        "are the same token in all 16 prompts",
        "does not do the task",
        "have the same logit_difference (0 and 0)",
        "No edge is kept",
    )
    assert circuit.faithfulness is None


def test_a_corruption_that_the_behaviour_does_not_mind(client: Client) -> None:
    task = Task(
        [" Lily and Tom went to the park. Lily gave the ball to"],
        [" Lily and Tom went to the zoo. Lily gave the ball to"],
        [" Tom"],
        [" Lily"],
    )
    circuit = discover(client, task, 0.001, metric="logit_difference")
    assert abs(circuit.metric.full - circuit.metric.empty) < 0.01 * abs(circuit.metric.full)
    assert any("have almost the same logit_difference" in text for text in circuit.warnings)


def test_other_tasks_that_tell_nothing(client: Client, task: Task) -> None:
    clean, corrupted = tuple(task.clean), tuple(task.corrupted or ())
    once = Task(clean[:1])
    for asked, options, part in (
        (once, {"ablation": "mean"}, "since there is one prompt"),
        (Task(clean[:1] * 2, corrupted[:1] * 2), {}, "repeated in 1 of 2 prompts"),
        (Task([[1]], [[2]]), {}, "first token in the only prompt"),
        (Task([[1, 2, 3]], [[1, 2, 4]], positions=[1]), {}, "only after the last position"),
        (Task([[1, 2, 3]], [[1, 5, 3]], positions=[0, 2]), {}, "is read (0)"),
    ):
        with pytest.warns(PahqWarning) as caught:
            estimate = client.estimate("demo", asked, WORKING, **options)  # type: ignore[arg-type]
        assert [str(warning.message) for warning in caught] == list(estimate.warnings)
        assert part in "".join(estimate.warnings)
    circuit = discover(client, once, ablation="mean")
    told(circuit, "since there is one prompt", "have the same kl_divergence", "No edge is kept")


@pytest.mark.usefixtures("quiet")
def test_evaluations_and_sessions(client: Client, task: Task) -> None:
    same = dataclasses.replace(task, corrupted=task.clean)
    swapped = dataclasses.replace(task, answers=task.wrong_answers, wrong_answers=task.answers)
    parts = ("The circuit has no edges", "The faithfulness is 0:")
    for text, part in zip(client.evaluate("demo", IOI, []).warnings, parts, strict=True):
        assert part in text
    (text,) = client.evaluate("demo", IOI, ["m3->logits"]).warnings[:1]
    assert "The only kept edge is not on a path" in text
    for asked, part in ((same, "are the same in all 16 pairs"), (swapped, "does not do the task")):
        evaluated = client.evaluate("demo", asked, ["m3->logits", "input->m3"])
        assert any(part in text for text in evaluated.warnings)
        with client.session("demo", asked) as session:
            assert any(part in text for text in session.warnings)
    with client.session("demo", IOI) as session:
        assert session.warnings == ()


@pytest.mark.usefixtures("quiet")
def test_the_literal_executor_and_rounded_policies_tell_the_same(task: Task) -> None:
    swapped = dataclasses.replace(task, answers=task.wrong_answers, wrong_answers=task.answers)
    for options, precisions in (
        ([], ("fp32", "pahq-int8", "rtn-int8")),
        (["--executor", "literal"], ("fp32",)),
    ):
        with ServerProcess({}, *options) as process, Client(process.address) as client:
            for precision in precisions:
                found = client.evaluate("demo", swapped, ["m3->logits", "input->m3"], precision=precision)
                assert any("does not do the task" in text for text in found.warnings)
                # To the three digits that rounding leaves.
                assert any("is -12" in text for text in found.warnings), found.warnings


# The circuit


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(("ablation", "threshold"), [("resample", 1.5), ("zero", 0.05), ("mean", 0.1)])
def test_pruned_circuits(client: Client, ablation: str, threshold: float) -> None:
    circuit = client.discover("demo", IOI, threshold, ablation=ablation)
    pruned = circuit.pruned()
    assert 0 < len(pruned.edges) < len(circuit.edges)
    assert f"{len(circuit.edges)} of {NUM_EDGES} edges, {len(pruned.edges)} on a path" in repr(circuit)
    evaluated = client.evaluate("demo", IOI, pruned)
    if ablation == "resample":
        assert evaluated.value == pytest.approx(circuit.metric_value, abs=1e-5)
    else:  # what hears nothing still says something
        assert "before it was pruned" in pruned.warnings[-1]
        assert evaluated.value != pytest.approx(circuit.metric_value, abs=1e-4)


@pytest.mark.usefixtures("quiet")
def test_the_file_says_what_was_run(client: Client, task: Task, tmp_path: Path) -> None:
    secret = " Lily and Tom went to the park. Lily gave the ball to"
    private = Task([secret], [" Max and Sara went to the park. Ben gave the ball to"], [" Tom"], [" Lily"])
    plain, telling = (client.discover("demo", private, 0.3, include_prompts=each) for each in (False, True))
    assert plain == telling
    assert plain.canonical_bytes() == telling.canonical_bytes()
    plain.save(tmp_path / "plain.json")
    telling.save(tmp_path / "telling.json")
    assert "Lily" not in (tmp_path / "plain.json").read_text()
    content = json.loads((tmp_path / "telling.json").read_text())
    assert content["provenance"]["run"]["prompts"]["clean"] == [secret]
    assert content["provenance"]["run"]["task"] == {"num_prompts": 1}
    assert content["provenance"]["run"]["ended"].startswith("20")
    assert content["provenance"]["request"]["parameters"]["method"] == "acdc"
    assert content["provenance"]["request"]["version"]
    assert Circuit.load(tmp_path / "telling.json").task == private
    assert Circuit.load(tmp_path / "plain.json").task is None
    ioi = client.discover("demo", IOI, 1.0)
    assert ioi.provenance["run"]["task"] == {"name": "ioi", "num_prompts": 16, "seed": 0}
    assert ioi.task == IOI
    # The prompts that a built-in task stands for are the ones that give its circuit.
    assert client.discover("demo", task, 1.0).canonical_bytes() == ioi.canonical_bytes()


def test_equal_requests_share_the_result_and_not_the_prompts() -> None:
    with ServerProcess({}, "--ephemeral") as process, Client(process.address) as client:
        first, second, third = (client.discover("demo", IOI, 0.3, include_prompts=n != 1) for n in range(3))
        assert [c.provenance["run"].get("from_cache") for c in (first, second, third)] == [None, True, True]
        assert ["prompts" in c.provenance["run"] for c in (first, second, third)] == [True, False, True]
        assert first.canonical_bytes() == second.canonical_bytes() == third.canonical_bytes()
        assert first.task == third.task != second.task
        names = [job.latest.task for job in client.jobs() if job.latest]
        assert names == ["ioi (16 prompts, seed 0)"] * 3
        log = process.log()
    clean = first.provenance["run"]["prompts"]["clean"]
    assert clean
    assert not [prompt for prompt in clean if prompt.strip() in log]


# Other models


@pytest.mark.usefixtures("quiet")
def test_a_circuit_of_another_model(client: Client, tmp_path: Path, server: ServerProcess) -> None:
    circuit = client.discover("plain", Task([[1, 2]], [[1, 3]]), 1e-6)
    with pytest.raises(OtherModel) as raised:
        client.evaluate("demo", IOI, circuit)
    assert "2 layers, 2 heads" in raised.value.circuit
    assert f"{LAYERS} layers, {HEADS} heads" in raised.value.model
    assert circuit.model_revision[:12] in raised.value.circuit
    unknown = dataclasses.replace(circuit, provenance={})
    with pytest.raises(OtherModel, match="revision unknown"):
        client.evaluate("demo", IOI, unknown)
    with client.session("demo", IOI) as session:
        with pytest.raises(OtherModel):
            session.score([circuit])
        with pytest.raises(OtherModel):
            session.commit(edges=circuit)
        assert len(session.score([circuit], allow_other_model=True)) == 1
    assert client.evaluate("demo", IOI, circuit, allow_other_model=True).num_edges_total == NUM_EDGES
    circuit.save(tmp_path / "c.json")
    command = ["evaluate", "--circuit", str(tmp_path / "c.json"), "--model", "demo", "--task", "ioi"]
    command += ["--server", server.address]
    assert main(command) == 2
    assert main([*command, "--allow-other-model"]) == 0


@pytest.mark.usefixtures("quiet")
def test_another_revision_of_the_same_shape(client: Client) -> None:
    circuit = client.discover("demo", IOI, 1.0)
    request = {**circuit.provenance["request"], "model_revision": "0" * 64}
    other = dataclasses.replace(circuit, provenance={"request": request})
    with pytest.raises(OtherModel) as raised:
        client.evaluate("demo", IOI, other)
    assert "0" * 12 in raised.value.circuit
    assert circuit.model_revision[:12] in raised.value.model
    with client.session("demo", IOI) as session:
        with pytest.raises(OtherModel):
            session.score_removed([other])
        assert len(session.score([circuit, circuit.pruned()])) == 2
    assert client.evaluate("demo", IOI, circuit.pruned()).metric == "kl_divergence"


@pytest.mark.usefixtures("quiet")
def test_shared_keys_of_another_treatment(client: Client) -> None:
    """A circuit names edges of its own treatment of key/value heads, which the evaluation takes over."""
    shared_model("stories260K-hf")
    task = Task([[1, 403, 407]], [[1, 408, 407]])
    circuit = client.discover("stories260K-hf", task, 0.5, kv_receivers="query")
    assert client.evaluate("stories260K-hf", task, circuit).kv_receivers == "query"
    with pytest.raises(InvalidRequest, match="kv_receivers"):
        client.evaluate("stories260K-hf", task, circuit, kv_receivers="group")
