"""Jobs of node pruning over gRPC: what is asked for, what comes back, and what goes wrong on the way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
from helpers.api_server import RunningServer, objective, refused, token_ids
from helpers.fake_engine import GRAPH, FakeEngine, nodes_of
from helpers.toy_nodes import Toy
from pahq.v1 import jobs_pb2 as pb
from pahq.v1 import methods_pb2, task_pb2

from pahq_server.core.graph import Graph
from pahq_server.core.pruning import NODE_KINDS, MaskFigures, MeasureMasks, TrainedSteps, TrainMasks

LAYOUT = nodes_of(GRAPH)
TOY = Toy(1, layout=LAYOUT)


def spec(changes: dict[str, Any] | None = None, **parameters: Any) -> pb.JobSpec:
    """A job; ``changes`` are of its objective."""
    given = {"max_kl": 0.1, "steps": 60} | parameters
    asked = methods_pb2.NodePruningParameters(**{n: value for n, value in given.items() if value is not None})
    return pb.JobSpec(objective=objective(**(changes or {})), node_pruning=asked)


def state_of(server: RunningServer, name: str) -> pb.Job:
    job: pb.Job = server.job_stub.GetJob(pb.GetJobRequest(name=name)).job
    return job


def test_a_job_gives_a_node_circuit(server: RunningServer) -> None:
    name = server.finish(spec())
    found, job = server.artifact(name), state_of(server, name)
    assert (found.header.kind, found.header.version, found.header.partial) == ("node_circuit", 1, False)
    kept = np.unpackbits(found.arrays["kept"], count=LAYOUT.size, bitorder="little").astype(bool)
    assert (kept == TOY.planted).all()
    assert found.content["figures"]["kl"] == TOY.kl(kept)
    assert (job.progress.done, job.progress.total, job.progress.unit) == (60, 60, "steps")
    assert job.artifact.kind == "node_circuit"
    assert job.artifact.figures == {"kept": kept.sum(), "kl": TOY.kl(kept)}


def test_the_request_is_told_as_it_was_sent(server: RunningServer) -> None:
    told = server.create(
        spec(kinds=["layers", "heads"], seed=7, task_loss=0, no_polish=True)
    ).spec.node_pruning
    assert (told.max_kl, told.steps, told.seed, told.no_polish) == (0.1, 60, 7, True)
    assert list(told.kinds) == ["heads", "layers"]
    assert not told.HasField("penalty")
    usual = server.create(spec(max_kl=None, penalty=0.5, steps=0)).spec.node_pruning
    assert (usual.penalty, usual.steps, list(usual.kinds)) == (0.5, 1000, [])
    assert not usual.HasField("max_kl")


def test_equal_requests_share_what_was_found(engine: FakeEngine) -> None:
    with RunningServer(engine, reuse=True) as server:
        first = server.finish(spec(kinds=["heads", "layers"]))
        again = server.finish(spec(kinds=["layers", "heads", "heads"]))
        assert server.artifact(first).data == server.artifact(again).data
        assert len(engine.opened) == 1
        server.finish(spec(kinds=["heads", "layers"], seed=1))
        assert len(engine.opened) == 2


@pytest.mark.parametrize(
    ("asked", "field", "detail"),
    [
        (
            spec(max_kl=None),
            "node_pruning.max_kl",
            "exactly one of max_kl and penalty is needed",
        ),
        (spec(penalty=1.0), "node_pruning.max_kl", "got both"),
        (spec(max_kl=0.0), "node_pruning.max_kl", "must be above 0"),
        (spec(max_kl=float("nan")), "node_pruning.max_kl", "must be a finite number"),
        (spec(max_kl=None, penalty=float("inf")), "node_pruning.penalty", "must be a finite number"),
        (spec(steps=-1), "node_pruning.steps", "from 1 to 100000, got -1"),
        (spec(steps=100_001), "node_pruning.steps", "got 100001"),
        (spec(seed=-1), "node_pruning.seed", "from 0"),
        (spec(kinds=["heads", "toes"]), "node_pruning.kinds[1]", "unknown kind of node 'toes'"),
        (spec(task_loss=-1), "node_pruning.task_loss", ">= 0"),
        (spec(task_loss=1), "task_loss", "needs answers"),
        (spec({"metric": "l2"}), "metric", "Use metric 'kl_divergence'"),
        (spec({"precision": "int8"}), "precision", "rounds activations"),
        (
            spec({"task": task_pb2.Task(prompts=task_pb2.PromptTask(clean=token_ids((1, 2))))}),
            "task.corrupted",
            "needs corrupted prompts",
        ),
    ],
)
def test_bad_requests(
    server: RunningServer, engine: FakeEngine, asked: pb.JobSpec, field: str, detail: str
) -> None:
    for validate_only in (True, False):
        with refused() as refusal:
            server.create(asked, validate_only=validate_only)
        assert (refusal.code, refusal.violation[0]) == (grpc.StatusCode.INVALID_ARGUMENT, field)
        assert detail in refusal.violation[1]
    assert engine.opened == []


def test_kinds_that_the_model_lacks() -> None:
    with RunningServer(FakeEngine(Graph(2, 2, 2, mlps=False))) as server, refused() as refusal:
        server.create(spec(kinds=["heads", "mlp_hidden"]))
    assert refusal.violation[0] == "kinds"
    assert "the model has no mlp_hidden" in refusal.violation[1]


def test_warnings_about_the_prompts(server: RunningServer) -> None:
    same = task_pb2.PromptTask(clean=token_ids((1, 2)), corrupted=token_ids((1, 2)))
    asked = spec({"task": task_pb2.Task(prompts=same)})
    assert any("are the same in the only pair" in text for text in server.create(asked).warnings)


def test_a_model_that_does_not_do_the_task(server: RunningServer, engine: FakeEngine) -> None:
    def measured(operation: MeasureMasks) -> list[MaskFigures]:
        return [MaskFigures(TOY.kl(mask), 0.5, -1.0, 0.25) for mask in operation.masks]

    engine.operations[MeasureMasks] = measured
    found = server.artifact(server.finish(spec()))
    assert any("does not do the task: its mean logit difference" in text for text in found.header.warnings)
    assert found.content["full"]["accuracy"] == 0.25


def test_a_loss_that_is_not_finite_fails_the_job_at_its_step(
    server: RunningServer, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found up to the last checkpoint stays."""
    monkeypatch.setattr("pahq_server.methods.node_pruning.method.CHECKPOINT_S", 0.0)

    def trained(operation: TrainMasks) -> TrainedSteps:
        found = TOY.trained(operation)
        kl = list(found.kl)
        for number in range(operation.steps):
            if operation.training.step + number + 1 == 41:
                kl[number] = float("nan")
        return replace(found, kl=tuple(kl))

    engine.operations[TrainMasks] = trained
    name = server.finish(spec())
    job = state_of(server, name)
    assert job.state == pb.JOB_STATE_FAILED
    assert job.error_message == "the loss of training step 41 is not finite"
    found = server.artifact(name)
    assert found.header.partial
    assert 0 < found.content["steps"] <= 40
    assert found.content["figures"] is None
    assert any("did not come to its end" in text for text in found.header.warnings)


def test_a_job_that_is_cancelled_gives_its_last_checkpoint(
    server: RunningServer, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pahq_server.methods.node_pruning.method.CHECKPOINT_S", 0.0)
    engine.hold()
    name = server.create(spec(steps=100_000)).name
    engine.let(4)
    for _ in range(5):
        engine.wait_for_call()
    server.job_stub.CancelJob(pb.CancelJobRequest(name=name))
    engine.release()
    server.events(name)
    found = server.artifact(name)
    assert found.header.partial
    assert found.content["steps"] >= 1
    assert found.content["kinds"] == list(NODE_KINDS)


def test_a_budget_that_the_whole_model_exceeds(server: RunningServer, engine: FakeEngine) -> None:
    engine.operations[MeasureMasks] = lambda operation: [MaskFigures(0.3, 0.5)] * len(operation.masks)
    job = state_of(server, server.finish(spec()))
    assert job.state == pb.JOB_STATE_FAILED
    assert (
        "must be at least the KL divergence of the whole model in 'fp32', which is 0.3, got 0.1"
        in job.error_message
    )
    assert job.progress.done == 0
