"""Jobs on a real server: their life, their watchers, their neighbours, and the server's own end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from helpers.demo import NUM_EDGES
from pahq.v1 import jobs_pb2 as pb
from pahq.v1.jobs_pb2_grpc import JobServiceStub

from pahq_client import (
    Circuit,
    Client,
    Conflict,
    EventKind,
    JobCancelled,
    JobFailed,
    JobHandle,
    NotFound,
    Task,
    Unavailable,
)
from pahq_client._job_options import JobRequest
from pahq_client._requests import job_spec
from pahq_client.retries import Backoff

from .process import ServerProcess

PLAIN: dict[str, Any] = {
    "model": "plain",
    "task": Task([[1, 2, 3], [4, 5]], [[4, 6, 3], [7, 5]]),
    "threshold": 0.01,
}
QUICK: dict[str, Any] = {"model": "demo", "task": Task.ioi(num_prompts=4), "threshold": 0.2}
# Minutes of work for a server that computes every hypothesis from scratch: no test waits for its end.
ENDLESS: dict[str, Any] = {
    "model": "demo",
    "task": Task.ioi(num_prompts=64),
    "threshold": 0,
    "grouping": "none",
}
AT_A_TIME = 4  # jobs that the server runs; more wait
SLOW = "--executor", "literal", "--window", "1"


@pytest.fixture(scope="module")
def slow_server() -> Iterator[ServerProcess]:
    with ServerProcess({}, *SLOW) as process:
        yield process


@pytest.fixture
def slow_client(slow_server: ServerProcess) -> Iterator[Client]:
    """Leaves no job running behind."""
    with Client(slow_server.address) as client:
        yield client
        for job in client.jobs():
            job.cancel()
        for job in client.jobs():
            list(job.watch())


def wait_for_a_verdict(job: JobHandle) -> None:
    assert any(event.evaluations > 0 for event in job.watch())


def test_a_job_survives_its_client(server: ServerProcess, tmp_path: Path) -> None:
    with Client(server.address) as client:
        name = client.submit(**QUICK).name
    code = """if True:
        import sys, pahq_client
        address, name, path = sys.argv[1:]
        with pahq_client.Client(address) as client:
            client.job(name).result().save(path)
    """
    path = tmp_path / "circuit.json"
    subprocess.run([sys.executable, "-c", code, server.address, name, path], check=True)
    with Client(server.address) as client:
        assert client.job(name).result() == Circuit.load(path)
        assert name in [job.name for job in client.jobs()]


def test_events_lead_to_the_end(client: Client) -> None:
    job = client.submit(**QUICK)
    events = list(job.watch())
    sequences = [event.sequence for event in events]
    assert sequences == sorted(set(sequences))
    assert [event.decided for event in events] == sorted(event.decided for event in events)
    last, circuit = events[-1], job.result()
    assert (last.kind, last.state) == (EventKind.END, "SUCCEEDED")
    assert last.decided == last.total == circuit.num_edges_total
    assert (last.kept, last.evaluations) == (len(circuit.edges), circuit.num_evaluations)
    assert last.metric == pytest.approx(circuit.metric_value, abs=1e-5)


def test_a_watcher_resumes_where_it_was(slow_client: Client) -> None:
    job = slow_client.submit(**ENDLESS)
    seen = []
    for event in job.watch():
        seen.append(event.sequence)
        if event.evaluations >= 3:
            break
    later = next(iter(job.watch(after_sequence=seen[-1])))
    assert later.sequence > seen[-1]
    job.cancel()
    rest = list(job.watch(after_sequence=later.sequence))
    assert all(event.sequence > later.sequence for event in rest)
    assert (rest[-1].kind, rest[-1].state) == (EventKind.END, "CANCELLED")
    assert list(job.watch(after_sequence=rest[-1].sequence)) == []


def test_a_running_job_is_cancelled(slow_client: Client) -> None:
    job = slow_client.submit(**ENDLESS)
    wait_for_a_verdict(job)
    assert job.state == "RUNNING"
    with pytest.raises(Conflict, match="RUNNING"):
        job.delete()
    assert job.cancel() in ("CANCELLING", "CANCELLED")
    with pytest.raises(JobCancelled, match=job.name):
        job.result()
    assert job.state == job.cancel() == "CANCELLED"


def test_a_queued_job_is_cancelled_while_others_run(slow_client: Client) -> None:
    running = [slow_client.submit(**ENDLESS) for _ in range(AT_A_TIME)]
    for job in running:
        wait_for_a_verdict(job)
    queued = slow_client.submit(**ENDLESS)
    wait_for_a_verdict(running[0])
    assert queued.state == "QUEUED"
    queued.cancel()
    with pytest.raises(JobCancelled):
        queued.result()
    assert {job.state for job in running} == {"RUNNING"}


def test_waiting_in_vain_leaves_the_job_alone(slow_client: Client) -> None:
    job = slow_client.submit(**ENDLESS)
    with pytest.raises(TimeoutError):
        job.result(timeout=0.1)
    wait_for_a_verdict(job)
    assert job.state == "RUNNING"


def test_deleted_jobs_are_gone(client: Client) -> None:
    job = client.submit(**PLAIN)
    job.result()
    job.delete()
    for use in (job.result, job.delete, job.cancel, lambda: list(job.watch())):
        with pytest.raises(NotFound, match=job.name):
            use()
    assert job.name not in [other.name for other in client.jobs()]


def test_results_do_not_depend_on_the_neighbours(client: Client) -> None:
    requests = [QUICK | {"task": Task.ioi(num_prompts=3, seed=seed)} for seed in range(4)]
    requests += [
        PLAIN,
        PLAIN | {"grouping": "none"},
        QUICK | {"ablation": "mean"},
        QUICK | {"threshold": 0.5},
    ]
    alone = [client.discover(**request).canonical_bytes() for request in requests]
    with ThreadPoolExecutor(len(requests)) as pool:
        together = list(pool.map(lambda request: client.discover(**request).canonical_bytes(), requests))
    assert together == alone
    assert len(set(alone)) == len(alone)


def test_one_failure_is_nobody_elses(client: Client) -> None:
    jobs = [client.submit(**QUICK), client.submit(**(PLAIN | {"model": "overflowing", "metric": "l2"}))]
    jobs.append(client.submit(**PLAIN))
    with pytest.raises(JobFailed):
        jobs[1].result()
    assert jobs[0].result().num_edges_total == NUM_EDGES
    assert jobs[2].result() == client.discover(**PLAIN)


def test_evaluate_measures_what_was_found(client: Client) -> None:
    circuit = client.discover(**QUICK)
    evaluation = client.evaluate("demo", QUICK["task"], circuit)
    assert (evaluation.value, evaluation.full, evaluation.empty) == (
        circuit.metric.value,
        circuit.metric.full,
        circuit.metric.empty,
    )
    assert evaluation.full == 0
    edges = client.discover("demo", QUICK["task"], method="single_edge").edges
    assert client.evaluate("demo", QUICK["task"], edges).value == 0
    assert client.evaluate("demo", QUICK["task"], []).value == evaluation.empty
    assert evaluation.faithfulness is not None
    assert 0 < evaluation.faithfulness < 1


def test_a_repeated_request_is_the_same_job(server: ServerProcess, client: Client) -> None:
    before = len(client.jobs())
    spec = job_spec(JobRequest(**PLAIN))
    request = pb.CreateJobRequest(spec=spec, request_id="once")
    with grpc.insecure_channel(server.address) as channel:
        stub = JobServiceStub(channel)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(stub.CreateJob, [request] * 8))
        names = {answer.job.name for answer in answers}
        assert len(names) == 1
        assert len(client.jobs()) == before + 1
        request.spec.acdc.threshold = 0.5
        with pytest.raises(grpc.RpcError) as error:
            stub.CreateJob(request)
        assert error.value.code() is grpc.StatusCode.ALREADY_EXISTS
        request.request_id, request.validate_only = "", True
        assert stub.CreateJob(request).job.name == ""
    assert len(client.jobs()) == before + 1


def test_sigterm_ends_the_server_in_good_order() -> None:
    few = Backoff(attempts=1, first_s=0.01)
    with ServerProcess({}, *SLOW) as process, Client(process.address, backoff=few) as client:
        job = client.submit(**ENDLESS)
        wait_for_a_verdict(job)
        with ThreadPoolExecutor(2) as pool:
            result, evaluation = pool.submit(job.result), pool.submit(last_event, job)
            assert process.stop() == 0
            for future in (result, evaluation):
                with pytest.raises((JobFailed, Unavailable)) as error:
                    future.result()
                assert "the server stopped" in str(error.value) or process.address in str(error.value)
        with pytest.raises(Unavailable, match="pahq-server serve"):
            client.server_info()
        assert "Traceback" not in process.log()


def last_event(job: JobHandle) -> None:
    """Raises what the watcher is told: an error of its stream, or the discovery's own in the last event."""
    *_, last = job.watch()
    raise JobFailed(last.error, job.name)
