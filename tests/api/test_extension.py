"""A method that the protocol has no message for, over gRPC: created, watched, and its artifact fetched."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from helpers.api_server import RunningServer, extension, refused
from helpers.fake_engine import FakeEngine
from pahq.v1 import jobs_pb2 as pb
from pahq.v1 import server_pb2

from pahq_server.core.artifact import Artifact, Progress, pack
from pahq_server.core.engine import ResolvedObjective
from pahq_server.core.operations import Operation
from pahq_server.methods import registry
from pahq_server.methods.base import Method, MethodContext, Steps


@dataclass(frozen=True)
class CountParameters:
    rounds: int
    step: float = 1.0


@dataclass(frozen=True)
class Add(Operation):
    """Adds two numbers."""

    a: float
    b: float

    @property
    def weight(self) -> float:
        return 1.0


class Count(Method[CountParameters]):
    """Counts in steps; its artifact holds all numbers on the way."""

    name, parameters, unit = "count", CountParameters, "rounds"

    def total(self, parameters: CountParameters, resolved: ResolvedObjective) -> int:
        return parameters.rounds

    def run(self, context: MethodContext[CountParameters]) -> Steps:
        numbers = [0.0]
        for done in range(1, context.parameters.rounds + 1):
            numbers.append((yield Add(numbers[-1], context.parameters.step)))
            context.record(b"%d" % done)
            context.tell(Progress(done, "counting", {"number": numbers[-1]}))
        data = pack({"kind": "numbers", "version": 3}, {"numbers": np.array(numbers)})
        return Artifact("numbers", 3, data, {"last": numbers[-1]})


@pytest.fixture
def engine(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    monkeypatch.setitem(registry.METHODS, "count", Count())
    engine.operations[Add] = lambda operation: operation.a + operation.b
    return engine


def test_a_method_of_another_kind(server: RunningServer) -> None:
    info = server.server.GetServerInfo(server_pb2.GetServerInfoRequest()).server_info
    assert "count" in info.methods
    asked = extension("count", rounds=4, step=0.5)
    created = server.create(asked)
    assert created.spec.extension == asked.extension
    assert (created.progress.unit, created.progress.total) == ("rounds", 4)
    end = server.events(created.name)[-1]
    assert end.state == pb.JOB_STATE_SUCCEEDED
    assert (end.progress.done, end.progress.stage, dict(end.progress.figures)) == (
        4,
        "counting",
        {"number": 2.0},
    )
    found = server.job_stub.GetJob(pb.GetJobRequest(name=created.name)).job
    assert (found.artifact.kind, dict(found.artifact.figures)) == ("numbers", {"last": 2.0})
    fetched = server.artifact(created.name)
    assert (fetched.header.kind, fetched.header.version, fetched.header.partial) == ("numbers", 3, False)
    assert fetched.arrays["numbers"].tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]


def test_a_method_that_was_cancelled_may_have_nothing_to_give(
    server: RunningServer, engine: FakeEngine
) -> None:
    engine.hold()
    name = server.create(extension("count", rounds=4)).name
    for _ in range(2):
        engine.wait_for_call()
        engine.let()
    engine.wait_for_call()
    server.job_stub.CancelJob(pb.CancelJobRequest(name=name))
    engine.release()
    assert server.events(name)[-1].progress.done >= 2
    with refused() as refusal:
        server.artifact(name)
    assert refusal.message == f"{name} had found nothing that could be given: it is CANCELLED"
