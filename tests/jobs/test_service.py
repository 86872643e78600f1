"""The job service over a fake engine: creating, finding, cancelling, forgetting."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from helpers.fake_engine import GRAPH, OBJECTIVE, PATIENCE_S, FakeEngine
from helpers.specs import acdc, alone, changed, found, single_edge
from helpers.waiting import close_in_mid_step, listed, result_of, wait_end, wait_state

from pahq_server.core.errors import (
    ConflictError,
    InvalidRequestError,
    NonFiniteMetricError,
    NotFoundError,
)
from pahq_server.jobs.job import Job, JobState, Snapshot
from pahq_server.jobs.service import JobService
from pahq_server.jobs.spec import JobSpec

SPEC = acdc(2.0, grouping="gates")
BAD = replace(SPEC, objective=replace(OBJECTIVE, model="bad"))
NewService = Callable[..., JobService]


def create(service: JobService, spec: JobSpec = SPEC, request_id: str = "") -> Job:
    return service.create(spec, request_id)


def test_a_job_finds_what_its_search_finds(service: JobService) -> None:
    job = create(service)
    result, now = result_of(service, job), job.snapshot
    expected = alone(SPEC)
    assert now.state is JobState.SUCCEEDED
    assert found(result).verdicts == expected.verdicts
    assert found(result).circuit.key == expected.circuit.key
    assert np.array_equal(found(result).scores, expected.scores, equal_nan=True)
    assert now.records == now.progress.figures["evaluations"] == len(expected.verdicts)
    assert (now.progress.done, now.progress.figures["kept"]) == (GRAPH.num_edges, expected.circuit.num_kept)
    assert (job.total, job.unit) == (GRAPH.num_edges, "edges")
    assert job.summary is not None
    assert job.summary.figures == {
        "metric": expected.metric_value,
        "metric_full": expected.metric_full,
        "metric_empty": expected.metric_empty,
    }


def test_several_jobs_advance_together_and_do_not_mix(engine: FakeEngine, service: JobService) -> None:
    engine.hold()
    specs = [changed(SPEC, threshold=t, grouping=g) for t in (1.0, 3.0) for g in ("gates", "none")]
    specs += [single_edge()]
    jobs = [create(service, spec) for spec in specs]
    engine.release()
    for job in jobs:
        assert found(result_of(service, job)).verdicts == alone(job.spec).verdicts
    assert max(map(len, engine.steps)) == 4  # as many as may run at a time


@pytest.mark.parametrize("window", [2, 32])
def test_the_window_changes_nothing_but_the_number_of_steps(
    window: int, engine: FakeEngine, service: JobService, new_service: NewService
) -> None:
    one = result_of(service, create(service))
    steps = len(engine.steps)
    longer = new_service(window=window)
    other = result_of(longer, create(longer))
    assert found(other).verdicts == found(one).verdicts
    assert other.request == one.request
    assert len(engine.steps) - steps < steps


def test_provenance(engine: FakeEngine, service: JobService) -> None:
    job = create(service)
    result = result_of(service, job)
    assert result.request == {
        "model_revision": "c0ffee",
        "task_hash": engine.resolve(OBJECTIVE).task.hash,
        "parameters": {
            "method": "acdc",
            "metric": "kl_divergence",
            "ablation": "resample",
            "kv_receivers": "group",
            "threshold": 2.0,
            "grouping": "gates",
        },
        "policy": "fp32",
        "version": "1.2.3",
    }
    assert result.run["model"] == "toy"
    assert (result.run["device"], result.run["hardware"]) == ("abacus", {"beads": "100"})
    counts = result.run["counts"]
    assert isinstance(counts, dict)
    assert counts["passes"] >= counts["batches"] >= 1


# Cancelling


def test_cancelling_a_running_job(engine: FakeEngine, service: JobService) -> None:
    engine.hold()
    job = create(service)
    engine.wait_for_call()
    assert service.cancel(job.name) is job
    assert job.snapshot.state is JobState.CANCELLING
    engine.release()
    now = wait_end(job)
    assert (now.state, now.error) == (JobState.CANCELLED, "")
    assert job.summary is None
    assert now.ended is not None


def test_cancelling_a_waiting_job_does_not_wait_for_its_turn(engine: FakeEngine, service: JobService) -> None:
    engine.hold()
    running = [create(service) for _ in range(4)]
    waiting = create(service)
    engine.wait_for_call()
    service.cancel(waiting.name)
    for _ in range(3):
        engine.let()
        engine.wait_for_call()
    now = wait_end(waiting)
    assert (now.state, now.started, now.records) == (JobState.CANCELLED, None, 0)
    assert not any(job.snapshot.state.final for job in running)
    engine.release()
    assert {wait_end(job).state for job in running} == {JobState.SUCCEEDED}


def test_cancelling_a_finished_job_changes_nothing(service: JobService) -> None:
    job = create(service)
    before = wait_end(job)
    service.cancel(job.name)
    service.cancel(job.name)
    assert job.snapshot == before


def test_cancels_from_many_threads_never_take_a_job_back(service: JobService) -> None:
    jobs = [create(service) for _ in range(12)]
    over = threading.Event()
    seen: dict[str, list[Snapshot]] = {job.name: [job.snapshot] for job in jobs}

    def look() -> None:
        while not over.is_set():
            for job in jobs:
                if job.snapshot != seen[job.name][-1]:
                    seen[job.name].append(job.snapshot)

    def cancel(every: int) -> None:
        for job in jobs[::every]:
            service.cancel(job.name)

    looker = threading.Thread(target=look)
    cancellers = [threading.Thread(target=cancel, args=(every,)) for every in (2, 3, 3)]
    for thread in (looker, *cancellers):
        thread.start()
    ends = [wait_end(job) for job in jobs]
    over.set()
    for thread in (looker, *cancellers):
        thread.join(PATIENCE_S)
    for job, end in zip(jobs, ends, strict=True):
        steps = [*seen[job.name], end]
        assert all(a.sequence <= b.sequence for a, b in pairwise(steps))
        assert all(a.state.value <= b.state.value for a, b in pairwise(steps))
        artifact = service.artifact(job.name)
        assert (end.state is JobState.SUCCEEDED) == (artifact is not None and not artifact.partial)
        assert end.state in (JobState.SUCCEEDED, JobState.CANCELLED)
        assert job.snapshot == end
    assert ends[1].state is ends[5].state is JobState.SUCCEEDED  # nobody cancelled these


# What a job had found that did not come to its end


def interrupted(engine: FakeEngine, service: JobService, spec: JobSpec = SPEC, steps: int = 5) -> Job:
    """A job that was cancelled after some batches."""
    engine.hold()
    job = create(service, spec)
    engine.let(steps)
    for _ in range(steps + 1):
        engine.wait_for_call()
    service.cancel(job.name)
    engine.release()
    assert wait_end(job).state is JobState.CANCELLED
    return job


@pytest.mark.parametrize("spec", [SPEC, single_edge()])
def test_what_a_cancelled_job_had_found(spec: JobSpec, engine: FakeEngine, service: JobService) -> None:
    job = interrupted(engine, service, spec)
    result = service.artifact(job.name)
    assert result is not None
    assert result.partial
    verdicts = found(result).verdicts
    assert verdicts == alone(spec).verdicts[: len(verdicts)]
    assert len(verdicts) == job.snapshot.records > 0
    assert result.request["version"] == "1.2.3"
    assert (result.run["state"], result.run["task"]) == ("cancelled", {"num_prompts": 1})
    assert job.summary is service.find(job.name).summary is None


def test_what_a_failed_job_had_found(engine: FakeEngine, service: JobService) -> None:
    engine.hold()
    job = create(service, BAD)
    for _ in range(3):
        engine.wait_for_call()
        engine.let()
    engine.wait_for_call()
    engine.failures["bad"].run = NonFiniteMetricError("the metric is nan")
    engine.release()
    assert wait_end(job).state is JobState.FAILED
    result = service.artifact(job.name)
    assert result is not None
    assert result.partial
    assert found(result).verdicts == alone(SPEC).verdicts[: job.snapshot.records]


def test_a_job_that_had_found_nothing(engine: FakeEngine, service: JobService) -> None:
    engine.hold()
    running, waiting = [create(service) for _ in range(4)], create(service)
    assert service.artifact(waiting.name) is None
    service.cancel(waiting.name)
    engine.release()
    assert wait_end(waiting).state is JobState.CANCELLED
    assert service.artifact(waiting.name) is None
    assert {wait_end(job).state for job in running} == {JobState.SUCCEEDED}


def test_what_was_found_needs_its_model(engine: FakeEngine, service: JobService) -> None:
    job = interrupted(engine, service, BAD)
    engine.revision = "beef"
    with pytest.raises(ConflictError, match="was found with revision c0ffee of the model, which is not"):
        service.artifact(job.name)
    del engine.failures["bad"]
    with pytest.raises(ConflictError, match="cannot be read: model 'bad' not found"):
        service.artifact(job.name)


# Failures


@pytest.mark.parametrize("place", ["open", "run"])
@pytest.mark.parametrize(
    ("error", "text"),
    [
        (NonFiniteMetricError("the metric is nan"), "the metric is nan"),
        (RuntimeError("the prompt was: …"), "internal error (RuntimeError); see the server's log"),
    ],
)
def test_a_failing_job_fails_alone_and_says_why(
    error: Exception, text: str, place: str, engine: FakeEngine, service: JobService
) -> None:
    setattr(engine.failures["bad"], place, error)
    good, bad, other = create(service), create(service, BAD), create(service)
    now = wait_end(bad)
    assert (now.state, now.error, service.artifact(bad.name)) == (JobState.FAILED, text, None)
    assert {wait_end(job).state for job in (good, other)} == {JobState.SUCCEEDED}
    assert engine.open_states == {}


def test_a_request_that_cannot_be_prepared_creates_nothing(engine: FakeEngine, service: JobService) -> None:
    with pytest.raises(NotFoundError, match="model 'nobody' not found"):
        create(service, replace(SPEC, objective=replace(OBJECTIVE, model="nobody")))
    with pytest.raises(InvalidRequestError, match="unknown metric"):
        create(service, replace(SPEC, objective=replace(OBJECTIVE, metric="charm")))
    with pytest.raises(InvalidRequestError, match="unknown method"):
        create(service, replace(SPEC, method="charm"))
    assert listed(service) == []
    assert engine.opened == []


# Finding and forgetting


def test_names_are_resource_names_and_jobs_are_listed_newest_first(service: JobService) -> None:
    jobs = [create(service) for _ in range(3)]
    assert all(job.name.startswith("users/local/jobs/") for job in jobs)
    assert listed(service) == [job.name for job in jobs[::-1]]
    assert all(service.find(job.name).name == job.name for job in jobs)


@pytest.mark.parametrize("method", [JobService.find, JobService.cancel, JobService.delete])
def test_what_is_not_there(method: Callable[[JobService, str], object], service: JobService) -> None:
    with pytest.raises(NotFoundError, match="job 'users/me/jobs/7' not found"):
        method(service, "users/me/jobs/7")


def test_only_finished_jobs_can_be_deleted(engine: FakeEngine, service: JobService) -> None:
    engine.hold()
    job = create(service)
    wait_state(job, JobState.RUNNING)
    with pytest.raises(ConflictError, match="is RUNNING: cancel it first"):
        service.delete(job.name)
    service.cancel(job.name)
    with pytest.raises(ConflictError, match="is CANCELLING"):
        service.delete(job.name)
    engine.release()
    wait_end(job)
    service.delete(job.name)
    with pytest.raises(NotFoundError):
        service.find(job.name)
    assert listed(service) == []


def test_close_fails_what_is_left(engine: FakeEngine, service: JobService) -> None:
    engine.hold()
    jobs = [create(service) for _ in range(6)]
    engine.wait_for_call()
    close_in_mid_step(service, engine)
    assert {(job.snapshot.state, job.snapshot.error) for job in jobs} == {
        (JobState.FAILED, "the server stopped")
    }
    assert engine.open_states == {}
