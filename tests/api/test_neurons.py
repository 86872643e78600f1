"""Jobs that find neurons over gRPC: what is asked for, what comes back, and what goes wrong on the way."""

from __future__ import annotations

import math
from typing import Any

import grpc
import pytest
from helpers.api_server import RunningServer, objective, refused, token_ids
from helpers.fake_engine import FakeEngine
from pahq.v1 import jobs_pb2 as pb
from pahq.v1 import methods_pb2, task_pb2

from pahq_server.api.conversion import MOST_ECHOED
from pahq_server.core.activations import DescribeNeurons
from pahq_server.core.errors import NonFiniteMetricError
from pahq_server.core.graph import Graph

TEXTS = ((1, 2, 3), (4, 5), (60, 70), (80,))


def spec(texts: Any = TEXTS, changes: dict[str, Any] | None = None, **parameters: Any) -> pb.JobSpec:
    """A job; ``changes`` are of its objective."""
    task = task_pb2.Task(prompts=task_pb2.PromptTask(clean=token_ids(*texts)))
    asked = methods_pb2.NeuronsParameters(**{"positive": 2, **parameters})
    return pb.JobSpec(objective=objective(task=task, **(changes or {})), neurons=asked)


def test_a_job_gives_a_neuron_set(server: RunningServer, engine: FakeEngine) -> None:
    name = server.finish(spec())
    found = server.artifact(name)
    assert (found.header.kind, found.header.version, found.header.partial) == ("neuron_set", 1, False)
    assert engine.neurons is not None
    assert sorted(found.arrays["number"][:2]) == engine.neurons.raised.tolist()
    assert sorted(found.arrays["number"][2:]) == engine.neurons.lowered.tolist()
    job = server.job_stub.GetJob(pb.GetJobRequest(name=name)).job
    assert (job.progress.done, job.progress.total, job.progress.unit) == (8, 8, "texts")
    assert job.artifact.figures == {"raised": 2.0, "lowered": 2.0}
    assert any("only 2 positive and 2 negative texts" in text for text in job.warnings)


def test_the_request_is_told_as_it_was_sent_but_for_long_lists(server: RunningServer) -> None:
    told = server.create(spec(starts=[0, -1, 0, 0], top_k=3, min_delta=0.25)).spec.neurons
    assert (told.positive, told.top_k, told.min_delta) == (2, 3, 0.25)
    assert list(told.starts) == [0, -1, 0, 0]
    many = [(1, 2)] * (MOST_ECHOED + 1)
    told = server.create(spec(many, starts=[1] * len(many))).spec.neurons
    assert (told.top_k, told.min_delta, list(told.starts)) == (2000, 0.1, [])


def test_equal_requests_share_what_was_found(engine: FakeEngine) -> None:
    with RunningServer(engine, reuse=True) as server:
        server.finish(spec(starts=[0, 0, 0, 0]))
        server.finish(spec())
        assert len(engine.opened) == 1
        server.finish(spec(starts=[-1, -1, -1, -1]))
        server.finish(spec(starts=[1, 0, 0, 0]))
        server.finish(spec(starts=[1, 1, 0, 0]))
        assert len(engine.opened) == 4


@pytest.mark.parametrize(
    ("asked", "field", "detail"),
    [
        (spec(positive=0), "neurons.positive", "from 1"),
        (spec(positive=-1), "neurons.positive", "got -1"),
        (spec(positive=4), "positive", "less than the number of texts, which is 4"),
        (spec(top_k=-1), "neurons.top_k", "from 1 to 10000"),
        (spec(top_k=10_001), "neurons.top_k", "got 10001"),
        (spec(min_delta=0), "neurons.min_delta", "above 0 and at most 1"),
        (spec(min_delta=float("inf")), "neurons.min_delta", "finite"),
        (spec(starts=[0]), "starts", "for each of 4 texts, got 1"),
        (spec(starts=[0, 0, 0, 1]), "starts[3]", "from -1 to 0, got 1"),
        (spec(changes={"precision": "int8"}), "precision", "rounds activations"),
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


def continuations(starts: Any, steering: methods_pb2.NeuronSteering | None = None) -> pb.JobSpec:
    task = task_pb2.Task(prompts=task_pb2.PromptTask(clean=token_ids(*TEXTS)))
    asked = methods_pb2.ContinuationsParameters(starts=starts, steering=steering)
    return pb.JobSpec(objective=objective(task=task), continuations=asked)


def edit(**changes: Any) -> methods_pb2.NeuronSteering:
    usual: dict[str, Any] = {"layers": 2, "d_mlp": 6, "raised": [3], "amounts": [0.5], "lowered": [4]}
    return methods_pb2.NeuronSteering(**{**usual, **changes})


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (continuations([]), "starts"),
        (continuations([1, 1, 1, 1]), "starts[3]"),
        (continuations([0, 1, 1, 1]), "starts[0]"),
    ],
)
def test_bad_continuations(server: RunningServer, asked: pb.JobSpec, field: str) -> None:
    with refused() as refusal:
        server.create(asked)
    assert (refusal.code, refusal.violation[0]) == (grpc.StatusCode.INVALID_ARGUMENT, field)


def test_a_job_scores_continuations(server: RunningServer) -> None:
    texts = ((1, 2, 3), (60, 70))
    task = task_pb2.Task(prompts=task_pb2.PromptTask(clean=token_ids(*texts)))
    plain = methods_pb2.ContinuationsParameters(starts=[1, 1])
    found = server.artifact(server.finish(pb.JobSpec(objective=objective(task=task), continuations=plain)))
    assert found.arrays["logprobs"].tolist() == pytest.approx([-2 * math.log(2), -math.log(2)])
    steered = methods_pb2.ContinuationsParameters(starts=[1, 1], steering=edit(raised=[], amounts=[]))
    name = server.finish(pb.JobSpec(objective=objective(task=task), continuations=steered))
    assert len(server.artifact(name).arrays["logprobs"]) == 2
    told = server.job_stub.GetJob(pb.GetJobRequest(name=name)).job.spec.continuations
    assert list(told.starts) == [1, 1]
    assert list(told.steering.lowered) == []
    for wrong in (edit(d_mlp=7), edit(model_revision="badd"), edit(amounts=[]), edit(raised=[99])):
        with refused() as refusal:
            server.create(
                pb.JobSpec(
                    objective=objective(task=task),
                    continuations=methods_pb2.ContinuationsParameters(starts=[1, 1], steering=wrong),
                )
            )
        assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT


def test_a_model_without_mlps() -> None:
    with RunningServer(FakeEngine(Graph(2, 2, 2, mlps=False))) as server, refused() as refusal:
        server.create(spec())
    assert "has no MLPs" in refusal.violation[1]


def test_an_activation_that_is_not_finite_fails_the_job(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise NonFiniteMetricError("a neuron's activation is not finite")

    monkeypatch.setattr(DescribeNeurons, "check", fails)
    job = server.job_stub.GetJob(pb.GetJobRequest(name=server.finish(spec()))).job
    assert job.state == pb.JOB_STATE_FAILED
    assert job.error_message == "a neuron's activation is not finite"
