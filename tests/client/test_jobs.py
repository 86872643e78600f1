"""Jobs on a server: submit, discover, cancel, results; and the calls beside them."""

from __future__ import annotations

import json

import pytest
from pahq.v1 import jobs_pb2 as pb
from pahq.v1 import server_pb2

from pahq_client import (
    Client,
    Conflict,
    Edge,
    Evaluation,
    Event,
    EventKind,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    JobState,
    Limits,
    MemoryUsage,
    NotFound,
    PermissionDenied,
    ServerFault,
    Task,
    Unavailable,
    Worker,
    WorkerState,
)
from pahq_client import _responses as responses

from .fake_server import Code, FakeServer, Fault, edges_of


def test_discover(client: Client, server: FakeServer) -> None:
    seen: list[Event] = []
    task = Task(clean=["a"], corrupted=["b"])
    circuit = client.discover("demo", task, 0.1, grouping="none", progress=seen.append)
    assert circuit.edges == (Edge("a0.h1", "a1.h0<q>", 0.25), Edge("input", "logits"))
    assert [v.subject for v in circuit.verdicts] == ["a1.h0<q>", "a0.h1->a1.h0<q>", "input->m0"]
    assert circuit.gates_kept == ("a1.h0<q>",)
    assert (circuit.num_evaluations, circuit.num_edges_total, circuit.removed_without_test) == (3, 82, 80)
    assert circuit.parameters == {"method": "acdc", "threshold": 0.1, "ablation": "zero"}
    assert circuit.provenance["run"] == {"model": "demo", "seconds": 1.5}
    assert [event.sequence for event in seen] == [1, 2, 3, 4]
    assert not server.called("CancelJob")
    spec = server.called("CreateJob")[0].spec
    assert (spec.acdc.threshold, spec.acdc.grouping, spec.objective.task.prompts.clean[0].text) == (
        0.1,
        "none",
        "a",
    )


@pytest.mark.parametrize("late", [False, True])
def test_failed_and_cancelled(client: Client, server: FakeServer, late: bool) -> None:
    for state, kind in (
        (pb.JOB_STATE_FAILED, JobFailed),
        (pb.JOB_STATE_CANCELLED, JobCancelled),
    ):
        server.outcome = None if late else (state, "metric is NaN")
        job = client.submit("demo", "ioi")

        def end(event: Event, name: str = job.name, state: int = state) -> None:
            if event.kind is EventKind.PROGRESS:
                server.jobs[name].end(state, "metric is NaN")

        with pytest.raises(kind) as raised:
            job.result(progress=end if late else None)
        assert job.name in str(raised.value)
        if kind is JobFailed:
            assert raised.value.message == "metric is NaN"


def test_discover_cancels_on_interrupt(client: Client, server: FakeServer) -> None:
    server.outcome = None

    def interrupt(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.discover("demo", "ioi", progress=interrupt)
    assert [job.state for job in server.jobs.values()] == [pb.JOB_STATE_CANCELLED]


def test_discover_cancels_on_timeout_and_on_errors_of_the_caller(client: Client, server: FakeServer) -> None:
    server.outcome = None
    with pytest.raises(TimeoutError):
        client.discover("demo", "ioi", timeout=0.1)
    with pytest.raises(ZeroDivisionError):
        client.discover("demo", "ioi", progress=lambda event: 1 / 0)
    assert [job.state for job in server.jobs.values()] == [pb.JOB_STATE_CANCELLED] * 2


def test_discover_cancels_when_nobody_would_know_of_the_job(client: Client, server: FakeServer) -> None:
    server.outcome = None
    server.faults["GetJob"] = [Fault(Code.PERMISSION_DENIED)]
    with pytest.raises(PermissionDenied):
        client.discover("demo", "ioi")
    assert [job.state for job in server.jobs.values()] == [pb.JOB_STATE_CANCELLED]
    server.faults["CreateJob"] = [Fault(Code.PERMISSION_DENIED)]
    with pytest.raises(PermissionDenied):
        client.discover("demo", "ioi")
    assert len(server.called("CancelJob")) == 1  # what was refused is not there


def test_an_interrupt_before_the_name_is_known_still_cancels(
    threads_client: Client, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.outcome = None
    perform, interrupted = threads_client._transport.perform, []

    def lose_the_answer(operation):  # type: ignore[no-untyped-def]
        answer = perform(operation)
        if not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
        return answer

    monkeypatch.setattr(threads_client._transport, "perform", lose_the_answer)
    with pytest.raises(KeyboardInterrupt):
        threads_client.discover("demo", "ioi")
    assert [job.state for job in server.jobs.values()] == [pb.JOB_STATE_CANCELLED]


def test_discover_leaves_the_job_when_the_server_is_away(client: Client, server: FakeServer) -> None:
    server.outcome, server.cuts = None, [0] * 20
    with pytest.raises(Unavailable) as raised:
        client.discover("demo", "ioi")
    assert "users/me/jobs/0" in raised.value.__notes__[0]
    assert not server.called("CancelJob")


def test_a_lost_answer_does_not_create_twice(client: Client, server: FakeServer) -> None:
    server.faults["CreateJob"] = [Fault(Code.UNAVAILABLE)]
    job = client.submit("demo", "ioi")
    assert list(server.jobs) == [job.name]
    assert len({r.request_id for r in server.called("CreateJob")}) == 1
    client.submit("demo", "ioi")
    assert len(server.jobs) == 2


def test_handles(client: Client, server: FakeServer) -> None:
    server.outcome = None
    job = client.submit("demo", "ioi")
    assert job.name in repr(job)
    same = client.job(job.name)
    assert same.state is JobState.RUNNING
    assert same.cancel() is JobState.CANCELLED
    assert job.state == "CANCELLED"
    job.delete()
    with pytest.raises(NotFound) as raised:
        print(job.state)
    assert raised.value.name == job.name
    server.faults["DeleteJob"] = [Fault(Code.FAILED_PRECONDITION, "runs", "CONFLICT")]
    with pytest.raises(Conflict):
        job.delete()


def test_jobs_are_listed_over_pages(client: Client, server: FakeServer) -> None:
    server.list_pages = [["a", "b"], [], ["c"]]
    assert [job.name for job in client.jobs()] == ["a", "b", "c"]
    assert [r.page_token for r in server.called("ListJobs")] == ["", "1", "2"]


def test_evaluate_measures_a_circuit_as_it_was_found(client: Client, server: FakeServer) -> None:
    circuit = client.discover("demo", "ioi")
    evaluation = client.evaluate(model="demo", task="ioi", circuit=circuit)
    assert (evaluation.value, evaluation.full, evaluation.empty) == (1.0, 0.0, 4.0)
    assert evaluation.faithfulness == 0.75
    client.evaluate(
        "demo", "ioi", circuit, ablation="mean", kv_receivers="query", metric="l2", precision=None
    )
    client.evaluate("demo", "ioi", ["input->logits", Edge("m0", "logits")])
    found, given, plain = (r.objective for r in server.called("EvaluateCircuits"))
    assert (found.metric, found.ablation, found.kv_receivers, found.precision) == (
        "kl_divergence",
        "zero",
        "group",
        "bf16",
    )
    assert (given.metric, given.ablation, given.kv_receivers, given.precision) == (
        "l2",
        "mean",
        "query",
        "bf16",
    )
    assert (plain.ablation, plain.precision) == ("resample", "fp32")
    (numbered,), _, (named,) = (request.circuits for request in server.called("EvaluateCircuits"))
    assert edges_of(numbered.edges) == {"a0.h1->a1.h0<q>", "input->logits"}
    assert list(named.names.names) == ["input->logits", "m0->logits"]
    with pytest.raises(InvalidRequest, match=r"circuit\[1\]"):
        client.evaluate("demo", "ioi", ["input->logits", 3])  # type: ignore[list-item]
    with pytest.raises(InvalidRequest, match="circuit"):
        client.evaluate("demo", "ioi", "input->logits")


def test_faithfulness_without_a_way_to_go(client: Client) -> None:
    assert Evaluation("l2", 1.0, 2.0, 2.0).faithfulness is None


def test_models_and_info(client: Client) -> None:
    (model,) = client.models()
    assert (model.name, model.layers, model.tokenizer) == ("demo", 4, True)
    info = client.server_info()
    assert (info.device, info.methods, info.tasks) == ("abacus", ("acdc", "single_edge"), ())
    assert info.memory == MemoryUsage(16, 70, 60, 0, 0, 0, 3, head_store_misses=5)
    assert info.limits == Limits(queued_jobs=0, requests_per_second=0.5)
    assert (info.workers, info.unavailable) == ((), "")


def test_the_workers_of_a_server(client: Client, server: FakeServer) -> None:
    server.unavailable = "no worker is left"
    server.workers = [
        server_pb2.Worker(number=0, state=server_pb2.WORKER_STATE_STARTING),
        server_pb2.Worker(
            number=1,
            host="attic",
            device="abacus",
            hardware={"torch": "2", "beads": "100"},
            state=server_pb2.WORKER_STATE_LOST,
            reason="its process ended",
            restarts=2,
            batches=7,
        ),
    ]
    info = client.server_info()
    assert info.unavailable == "no worker is left"
    hardware = {"beads": "100", "torch": "2"}
    assert info.workers == (
        Worker(0, WorkerState.STARTING),
        Worker(1, WorkerState.LOST, "attic", "abacus", hardware, "its process ended", 2, 7),
    )
    server.workers = [server_pb2.Worker(state=99)]
    with pytest.raises(ServerFault, match="WORKER_STATE_99"):
        client.server_info()


def test_a_server_that_does_not_tell_its_memory() -> None:
    assert responses.server_info(server_pb2.ServerInfo(version="9.9")).memory is None


def test_a_server_that_breaks_the_protocol(client: Client, server: FakeServer) -> None:
    job = client.submit("demo", "ioi")
    for text in ("{", "[]", json.dumps({"x": float("nan")})):
        server.artifact.header.provenance_run_json = text
        with pytest.raises(ServerFault, match="provenance"):
            job.result()
    server.jobs[job.name].end(77)
    with pytest.raises(ServerFault, match="77"):
        print(job.state)
