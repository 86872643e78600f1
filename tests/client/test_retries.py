"""Calls that are made again, and those that are not; for both kinds of clients."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from pahq.v1 import jobs_pb2 as pb

from pahq_client import (
    Client,
    DeadlineExceeded,
    NotFound,
    NoWorker,
    QuotaExceeded,
    RateLimited,
    ResourceExhausted,
    Unavailable,
)
from pahq_client import _calls as rpcs
from pahq_client._calls import Call, Caller, Pause, run_steps
from pahq_client.retries import Backoff

from .fake_server import Code, FakeServer, Fault
from .test_node_circuit import circuit_of as node_circuit

DOWN = Fault(Code.UNAVAILABLE, "down")
SLOW = Fault(Code.RESOURCE_EXHAUSTED, "too fast", "RATE_LIMITED", retry_s=0.05)
IDLE = Fault(Code.UNAVAILABLE, "no worker is ready", "NO_WORKER", retry_s=0.05)

# Every call that a client makes beside the streams; the name of its method, and how it is made.
USES: dict[str, Callable[[Any, Any, Any], object]] = {
    "CreateJob": lambda client, job, session: client.submit("demo", "ioi"),
    "GetJob": lambda client, job, session: job.state,
    "ListJobs": lambda client, job, session: client.jobs(),
    "CancelJob": lambda client, job, session: job.cancel(),
    "DeleteJob": lambda client, job, session: job.delete(),
    "GetArtifact": lambda client, job, session: job.result(),
    "EvaluateCircuits": lambda client, job, session: client.evaluate("demo", "ioi", []),
    "EvaluateNodes": lambda client, job, session: client.evaluate("demo", "ioi", node_circuit()),
    "ListModels": lambda client, job, session: client.models(),
    "TokenizeTexts": lambda client, job, session: client.tokenize("demo", ["a"]),
    "PredictTokens": lambda client, job, session: client.predict("demo", "a"),
    "GenerateSamples": lambda client, job, session: list(client.stream_samples("demo", [[1, 2]])),
    "CheckTask": lambda client, job, session: client.check_task("demo", "ioi"),
    "GetServerInfo": lambda client, job, session: client.server_info(),
    "OpenSession": lambda client, job, session: client.session("demo", "ioi"),
    "ScoreCircuits": lambda client, job, session: session.score([[]]),
    "CommitCircuit": lambda client, job, session: session.commit(edges=[]),
    "CloseSession": lambda client, job, session: session.close(),
}


def test_every_call_is_tried_here() -> None:
    """The stream of events has tests of its own; no client asks for one model."""
    assert set(USES) | {"WatchJob", "GetModel"} == {rpc.name for rpc in rpcs.ALL}


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("fault", [DOWN, SLOW, IDLE], ids=["away", "limited", "idle"])
def test_idempotent_calls_are_made_again(client: Client, server: FakeServer, name: str, fault: Fault) -> None:
    (rpc,) = (rpc for rpc in rpcs.ALL if rpc.name == name)
    job, session = client.submit("demo", "ioi"), client.session("demo", "ioi")
    server.calls.clear()
    server.faults[name] = [fault, fault]
    silent = name == "CloseSession" and fault is not SLOW  # who leaves does not care
    if rpc.idempotent or silent:
        USES[name](client, job, session)
    else:
        with pytest.raises((Unavailable, RateLimited)):
            USES[name](client, job, session)
    assert len(server.called(name)) == (3 if rpc.idempotent else 1)


def test_a_server_without_workers_is_asked_again_no_sooner_than_it_says() -> None:
    error = NoWorker("localhost:1", "2 x it is starting", retry_after=2.5)
    assert rpcs.next_delay(error, iter([0.1])) == 2.5
    assert rpcs.next_delay(error, iter([4.0])) == 4.0
    assert rpcs.next_delay(error, iter([])) is None
    assert "2 x it is starting" in str(error)


def test_a_deletion_whose_answer_was_lost_is_done(client: Client, server: FakeServer) -> None:
    job = client.submit("demo", "ioi")
    server.faults["DeleteJob"] = [DOWN, Fault(Code.NOT_FOUND, "gone", "NOT_FOUND", {"name": job.name})]
    job.delete()
    server.faults["DeleteJob"] = [Fault(Code.NOT_FOUND, "gone", "NOT_FOUND", {"name": job.name})]
    with pytest.raises(NotFound):
        job.delete()


def test_full_queues_and_quotas_are_the_callers_to_handle(client: Client, server: FakeServer) -> None:
    metadata = {"quota": "queued_jobs", "subject": "users/ada"}
    full = Fault(Code.RESOURCE_EXHAUSTED, "full", "RESOURCE_EXHAUSTED", retry_s=0.01)
    quota = Fault(Code.RESOURCE_EXHAUSTED, "two jobs", "QUOTA_EXCEEDED", metadata, retry_s=0.01)
    for fault, kind in ((full, ResourceExhausted), (quota, QuotaExceeded)):
        server.faults["CreateJob"] = [fault]
        with pytest.raises(ResourceExhausted) as raised:
            client.submit("demo", "ioi")
        assert type(raised.value) is kind
    assert (raised.value.quota, raised.value.subject) == ("queued_jobs", "users/ada")
    assert len(server.called("CreateJob")) == 2


def test_no_wait_beyond_the_callers_time(server: FakeServer) -> None:
    server.faults["ListModels"] = [Fault(Code.RESOURCE_EXHAUSTED, "too fast", "RATE_LIMITED", retry_s=100.0)]
    with Client(server.address, timeout=5.0) as client, pytest.raises(RateLimited) as raised:
        client.models()
    assert raised.value.retry_after == 100.0


def test_a_watch_waits_when_it_is_asked_to(client: Client, server: FakeServer) -> None:
    server.faults["WatchJob"] = [SLOW] * 5  # more than the tries after an interruption
    assert [event.sequence for event in client.submit("demo", "ioi").watch()] == [1, 2, 3, 4]


class Script:
    """Performs operations from a list of results; remembers the pauses."""

    def __init__(self, *results: object) -> None:
        self.results = list(results)
        self.pauses: list[float] = []
        self.limits: list[float] = []

    def perform(self, operation: object) -> object:
        if isinstance(operation, Pause):
            return self.pauses.append(operation.seconds)
        assert isinstance(operation, Call)
        self.limits.append(operation.timeout)
        result = self.results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result


def _ask(script: Script, calls: Caller) -> object:
    return run_steps(calls.call(rpcs.GET, pb.GetJobRequest(name="x")), script.perform)


def test_pauses_grow_and_a_server_that_once_answered_gets_more_tries() -> None:
    away = Unavailable("a:1")
    calls = Caller("a:1", 60.0, Backoff(attempts=5, first_s=1.0, most_s=4.0))
    script = Script(*[away] * 9)
    with pytest.raises(Unavailable):
        _ask(script, calls)
    assert len(script.pauses) == 2  # a wrong address shows soon
    script = Script("here")
    assert _ask(script, calls) == "here"
    script = Script(*[away] * 5, "again")
    assert _ask(script, calls) == "again"
    for pause, most in zip(script.pauses, [1, 2, 4, 4, 4], strict=True):
        assert most / 2 <= pause <= most


def test_all_tries_share_one_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    script = Script(Unavailable("a:1"), Unavailable("a:1"), "never asked")

    def perform(operation: object) -> object:
        now[0] += 4.0
        return script.perform(operation)

    calls = Caller("a:1", 10.0, Backoff(first_s=0.5))
    with pytest.raises(Unavailable):
        run_steps(calls.call(rpcs.GET, pb.GetJobRequest(name="x")), perform)
    assert script.limits == [10.0, 2.0]


def test_a_discover_whose_creation_is_not_answered_in_time_cancels_its_job(
    client: Client, server: FakeServer
) -> None:
    server.outcome = None
    server.faults["CreateJob"].append(Fault(Code.DEADLINE_EXCEEDED))
    with pytest.raises(DeadlineExceeded):
        client.discover("demo", "ioi", 0.1)
    assert [job.state for job in server.jobs.values()] == [pb.JOB_STATE_CANCELLED]


@pytest.mark.parametrize("rpc", [rpcs.EVALUATE, rpcs.SCORE], ids=lambda rpc: rpc.name)
@pytest.mark.parametrize("took_s", [59.0, 61.0])
def test_hours_of_work_are_not_begun_again(
    rpc: rpcs.Rpc[Any, Any], took_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that computes for long is repeated only if it broke off within the time of a usual call."""
    calls, script, passed = Caller("a:1", 60.0, Backoff()), Script(Unavailable("a:1"), "here"), [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: passed[0])

    def perform(operation: object) -> object:
        passed[0] += took_s if isinstance(operation, Call) else 0.0
        return script.perform(operation)

    steps = calls.call(rpc, None, 86_400.0)
    if took_s > calls.timeout:
        with pytest.raises(Unavailable):
            run_steps(steps, perform)
        assert script.results == ["here"]
    else:
        assert run_steps(steps, perform) == "here"


def test_calls_that_compute_for_long_are_known() -> None:
    evaluating = {"EvaluateCircuits", "EvaluateNodes", "ScoreCircuits"}
    costly = {*evaluating, "PredictTokens", "CheckTask", "GenerateSamples"}
    assert {rpc.name for rpc in rpcs.ALL if rpc.costly} == costly
