"""Requests that cannot be met: each refusal names what is wrong, and the server lives on."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest
from helpers.api_server import RunningServer, objective, refused, spec
from helpers.fake_engine import FakeEngine
from pahq.v1 import discovery_pb2 as pb
from pahq.v1 import model_pb2, task_pb2

from pahq_server.core.errors import NonFiniteMetricError

Code = grpc.StatusCode
Ask = Callable[[RunningServer], object]
NOBODY = "users/local/discoveries/none"
BAD_REQUESTS: dict[str, tuple[Ask, str, str]] = {
    "method": (lambda s: s.create(spec(method="eap")), "method", "unknown method 'eap'; one of ['acdc', "),
    "no method": (
        lambda s: s.create(pb.DiscoverySpec(objective=objective())),
        "method",
        "unknown method ''",
    ),
    "metric": (lambda s: s.create(spec(metric="charm")), "metric", "unknown metric 'charm'"),
    "no threshold": (lambda s: s.create(spec(threshold=None)), "threshold", "needs a threshold"),
    "NaN": (lambda s: s.create(spec(threshold=float("nan"))), "threshold", "nan is not a finite number >= 0"),
    "infinite": (lambda s: s.create(spec(threshold=float("inf"))), "threshold", "inf is not a finite number"),
    "negative": (lambda s: s.create(spec(threshold=-0.5)), "threshold", "-0.5 is not a finite number >= 0"),
    "no task": (lambda s: s.create(spec(task=None)), "task", "is missing"),
    "nothing at all": (lambda s: s.create(pb.DiscoverySpec()), "task", "is missing"),
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
        lambda s: s.discovery.EvaluateCircuit(
            pb.EvaluateCircuitRequest(objective=objective(), edges=["m1->logits", "m7->logits"])
        ),
        "edges",
        "the graph has no sender 'm7'",
    ),
    "evaluation without a task": (
        lambda s: s.discovery.EvaluateCircuit(pb.EvaluateCircuitRequest()),
        "task",
        "is missing",
    ),
    "page size": (
        lambda s: s.discovery.ListDiscoveries(pb.ListDiscoveriesRequest(page_size=1001)),
        "page_size",
        "1001 is outside of [0, 1000]",
    ),
    "negative page size": (
        lambda s: s.discovery.ListDiscoveries(pb.ListDiscoveriesRequest(page_size=-1)),
        "page_size",
        "-1 is outside of [0, 1000]",
    ),
    "page token": (
        lambda s: s.discovery.ListDiscoveries(pb.ListDiscoveriesRequest(page_token="made up")),
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
    "GetDiscovery": lambda s: s.discovery.GetDiscovery(pb.GetDiscoveryRequest(name=NOBODY)),
    "CancelDiscovery": lambda s: s.discovery.CancelDiscovery(pb.CancelDiscoveryRequest(name=NOBODY)),
    "DeleteDiscovery": lambda s: s.discovery.DeleteDiscovery(pb.DeleteDiscoveryRequest(name=NOBODY)),
    "GetCircuit": lambda s: s.circuit(NOBODY),
    "GetModel": lambda s: s.models.GetModel(model_pb2.GetModelRequest(name=NOBODY)),
    "CreateDiscovery": lambda s: s.create(spec(model=NOBODY)),
    "EvaluateCircuit": lambda s: s.discovery.EvaluateCircuit(
        pb.EvaluateCircuitRequest(objective=objective(model="/models/gpt2"))
    ),
}


@pytest.mark.parametrize("name", NOT_THERE)
def test_what_is_not_there(name: str, server: RunningServer) -> None:
    with refused() as refusal:
        NOT_THERE[name](server)
    asked = "/models/gpt2" if name == "EvaluateCircuit" else NOBODY
    assert (refusal.code, refusal.info.reason) == (Code.NOT_FOUND, "NOT_FOUND")
    assert asked in refusal.message
    assert asked in refusal.info.metadata["name"]


@pytest.mark.parametrize("state", ["RUNNING", "CANCELLED", "FAILED"])
def test_only_a_succeeded_discovery_has_a_circuit(
    state: str, engine: FakeEngine, server: RunningServer
) -> None:
    engine.failures["bad"].run = NonFiniteMetricError("nan") if state == "FAILED" else None
    engine.hold()
    name = server.create(spec(model="bad")).name
    engine.wait_for_call()
    if state == "CANCELLED":
        server.discovery.CancelDiscovery(pb.CancelDiscoveryRequest(name=name))
    if state != "RUNNING":
        engine.release()
        server.events(name)
    with refused() as refusal:
        server.circuit(name)
    assert (refusal.code, refusal.info.reason) == (Code.FAILED_PRECONDITION, "CONFLICT")
    assert refusal.message == f"{name} has no circuit: it is {state}"


def test_only_a_finished_discovery_can_be_deleted(engine: FakeEngine, server: RunningServer) -> None:
    engine.hold()
    name = server.create(spec()).name
    with refused() as refusal:
        server.discovery.DeleteDiscovery(pb.DeleteDiscoveryRequest(name=name))
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
        server.discovery.EvaluateCircuit(pb.EvaluateCircuitRequest(objective=objective()), timeout=0.2)
    assert refusal.code is Code.DEADLINE_EXCEEDED
    engine.release()
    server.finish(spec())
    assert engine.open_states == {}
