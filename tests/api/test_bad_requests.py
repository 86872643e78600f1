"""Requests that cannot be met: each refusal names what is wrong, and the server lives on."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest
from helpers.api_server import RunningServer, evaluation, extension, node_evaluation, objective, refused, spec
from helpers.fake_engine import FakeEngine
from pahq.v1 import jobs_pb2 as pb
from pahq.v1 import model_pb2, patching_pb2, task_pb2

Code = grpc.StatusCode
Ask = Callable[[RunningServer], object]
NOBODY = "users/local/jobs/none"
BAD_REQUESTS: dict[str, tuple[Ask, str, str]] = {
    "method": (
        lambda s: s.create(extension("magic")),
        "method",
        "unknown method 'magic'; one of ['ablate_concepts', ",
    ),
    "no method": (
        lambda s: s.create(pb.JobSpec(objective=objective())),
        "method",
        "is missing; one of ['ablate_concepts', ",
    ),
    "metric": (lambda s: s.create(spec(metric="charm")), "metric", "unknown metric 'charm'"),
    "no threshold": (
        lambda s: s.create(spec(threshold=None)),
        "acdc.threshold",
        "method 'acdc' needs exactly one of threshold, edges and faithfulness, got none of them",
    ),
    "NaN": (
        lambda s: s.create(spec(threshold=float("nan"))),
        "acdc.threshold",
        "finite number >= 0, got nan",
    ),
    "infinite": (
        lambda s: s.create(spec(threshold=float("inf"))),
        "acdc.threshold",
        "finite number >= 0, got inf",
    ),
    "negative": (lambda s: s.create(spec(threshold=-0.5)), "acdc.threshold", "finite number >= 0, got -0.5"),
    "negative of single edges": (
        lambda s: s.create(spec("single_edge", threshold=-0.5)),
        "single_edge.threshold",
        "finite number >= 0, got -0.5",
    ),
    "parameter of an extension": (
        lambda s: s.create(extension("acdc", threshold="much")),
        "extension.parameters.threshold",
        "finite number >= 0, got 'much'",
    ),
    "unknown parameter": (
        lambda s: s.create(extension("acdc", treshold=1.0)),
        "extension.parameters.treshold",
        "is no parameter of method 'acdc', which has ['edges', 'faithfulness', 'grouping', 'threshold', "
        "'within']",
    ),
    "list as a parameter": (
        lambda s: s.create(extension("acdc", threshold=[1.0])),
        "extension.parameters.threshold",
        "must be a number, a text, true or false",
    ),
    "no task": (lambda s: s.create(spec(task=None)), "task", "is missing"),
    "nothing at all": (lambda s: s.create(pb.JobSpec()), "method", "is missing"),
    "unset prompt": (
        lambda s: s.create(spec(task=prompts(clean=[task_pb2.Prompt(text="a"), task_pb2.Prompt()]))),
        "task.clean[1]",
        "has neither text nor token ids",
    ),
    "unset answer": (
        lambda s: s.create(spec(task=prompts(wrong_answers=[task_pb2.Prompt()]))),
        "task.wrong_answers[0]",
        "has neither text nor token ids",
    ),
    "edge": (
        lambda s: s.patching.EvaluateCircuits(evaluation([], ["m1->logits", "m7->logits"])),
        "circuits[1].names",
        "the graph has no sender 'm7'",
    ),
    "evaluation without a task": (
        lambda s: s.patching.EvaluateCircuits(patching_pb2.EvaluateCircuitsRequest()),
        "task",
        "is missing",
    ),
    "evaluation of nodes without a task": (
        lambda s: s.patching.EvaluateNodes(patching_pb2.EvaluateNodesRequest()),
        "task",
        "is missing",
    ),
    "page size": (
        lambda s: s.job_stub.ListJobs(pb.ListJobsRequest(page_size=1001)),
        "page_size",
        "1001 is outside of [0, 1000]",
    ),
    "negative page size": (
        lambda s: s.job_stub.ListJobs(pb.ListJobsRequest(page_size=-1)),
        "page_size",
        "-1 is outside of [0, 1000]",
    ),
    "page token": (
        lambda s: s.job_stub.ListJobs(pb.ListJobsRequest(page_token="made up")),
        "page_token",
        "is not from an earlier response",
    ),
}


def prompts(**fields: list[task_pb2.Prompt]) -> task_pb2.Task:
    return task_pb2.Task(prompts=task_pb2.PromptTask(**fields))


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_bad_request_names_its_field(name: str, server: RunningServer) -> None:
    ask, field, description = BAD_REQUESTS[name]
    with refused() as refusal:
        ask(server)
    assert (refusal.code, refusal.info.reason) == (Code.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert refusal.violation[0] == field
    assert description in refusal.violation[1]
    assert description in refusal.message
    server.assert_alive()


NOT_THERE: dict[str, Ask] = {
    "GetJob": lambda s: s.job_stub.GetJob(pb.GetJobRequest(name=NOBODY)),
    "WatchJob": lambda s: s.events(NOBODY),
    "CancelJob": lambda s: s.job_stub.CancelJob(pb.CancelJobRequest(name=NOBODY)),
    "DeleteJob": lambda s: s.job_stub.DeleteJob(pb.DeleteJobRequest(name=NOBODY)),
    "GetArtifact": lambda s: s.artifact(NOBODY),
    "GetModel": lambda s: s.models.GetModel(model_pb2.GetModelRequest(name=NOBODY)),
    "CreateJob": lambda s: s.create(spec(model=NOBODY)),
    "EvaluateCircuits": lambda s: s.patching.EvaluateCircuits(evaluation([], model="/models/gpt2")),
    "EvaluateNodes": lambda s: s.patching.EvaluateNodes(node_evaluation(model="/models/gpt2")),
}


@pytest.mark.parametrize("name", NOT_THERE)
def test_what_is_not_there(name: str, server: RunningServer) -> None:
    with refused() as refusal:
        NOT_THERE[name](server)
    asked = "/models/gpt2" if name.startswith("Evaluate") else NOBODY
    assert (refusal.code, refusal.info.reason) == (Code.NOT_FOUND, "NOT_FOUND")
    assert asked in refusal.message
    assert asked in refusal.info.metadata["name"]


def test_a_job_that_has_not_ended_has_no_artifact(engine: FakeEngine, server: RunningServer) -> None:
    engine.hold()
    name = server.create(spec()).name
    engine.wait_for_call()
    with refused() as refusal:
        server.artifact(name)
    assert (refusal.code, refusal.info.reason) == (Code.FAILED_PRECONDITION, "CONFLICT")
    assert refusal.message == f"{name} has no artifact yet: it is RUNNING"


def test_a_job_that_was_cancelled_before_it_began_has_no_artifact(engine: FakeEngine) -> None:
    with RunningServer(engine, slots=1) as server:
        engine.hold()
        server.create(spec())
        engine.wait_for_call()
        name = server.create(spec()).name
        server.job_stub.CancelJob(pb.CancelJobRequest(name=name))
        engine.release()
        server.events(name)
        with refused() as refusal:
            server.artifact(name)
    assert (refusal.code, refusal.info.reason) == (Code.FAILED_PRECONDITION, "CONFLICT")
    assert refusal.message == f"{name} had found nothing that could be given: it is CANCELLED"


def test_a_name_of_an_older_server_is_not_there(server: RunningServer) -> None:
    """The migration renames jobs: their old names are gone."""
    name = server.finish(spec()).replace("/jobs/", "/discoveries/")
    for ask in (server.artifact, server.events):
        with refused() as refusal:
            ask(name)
        assert (refusal.code, refusal.info.reason) == (Code.NOT_FOUND, "NOT_FOUND")


def test_only_a_finished_job_can_be_deleted(engine: FakeEngine, server: RunningServer) -> None:
    engine.hold()
    name = server.create(spec()).name
    with refused() as refusal:
        server.job_stub.DeleteJob(pb.DeleteJobRequest(name=name))
    assert (refusal.code, refusal.info.reason) == (Code.FAILED_PRECONDITION, "CONFLICT")
    assert "cancel it first" in refusal.message


def test_a_full_queue_says_when_to_come_back(engine: FakeEngine) -> None:
    with RunningServer(engine, max_queued=1) as server:
        engine.hold()
        server.create(spec())
        engine.wait_for_call()
        server.create(spec())
        with refused() as refusal:
            server.create(spec())
    assert (refusal.code, refusal.info.reason) == (Code.RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED")
    assert refusal.details["RetryInfo"].retry_delay.ToSeconds() > 0


def test_a_deadline_that_passes_leaves_nothing_behind(engine: FakeEngine, server: RunningServer) -> None:
    engine.hold()
    with refused() as refusal:
        server.patching.EvaluateCircuits(evaluation([]), timeout=0.2)
    assert refusal.code is Code.DEADLINE_EXCEEDED
    engine.release()
    server.finish(spec())
    assert engine.open_states == {}
