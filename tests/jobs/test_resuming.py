"""What a later process makes of the jobs that an earlier one left."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.fake_engine import GRAPH, OBJECTIVE, PATIENCE_S, FakeEngine
from helpers.specs import acdc, alone, changed, found, single_edge
from helpers.waiting import listed, result_of, wait_end, wait_state, wait_until

from pahq_server.core.engine import Objective, ResolvedObjective
from pahq_server.core.errors import (
    AlreadyExistsError,
    NotFoundError,
    QuotaExceededError,
    StorageError,
)
from pahq_server.core.task import BuiltinTask, PromptTask
from pahq_server.jobs.job import Job, JobState, Snapshot
from pahq_server.jobs.quotas import Quotas
from pahq_server.jobs.resuming import MOST_CRASHES
from pahq_server.jobs.service import JobPolicy, JobService
from pahq_server.jobs.spec import JobSpec
from pahq_server.store.database import Database
from pahq_server.store.jobs import SqliteJobStore

SPEC = acdc(2.0, grouping="none")
SINGLE = single_edge()


class Process:
    """A service on a database, as one process has it; the engine is held from the start."""

    def __init__(self, path: Path, engine: FakeEngine | None = None, **policy: object) -> None:
        self.engine = engine or FakeEngine()
        self.engine.hold()
        self.fail: Callable[[str], None] = lambda name: None
        self.database = Database(path, lambda name: self.fail(name))
        version = str(policy.pop("version", "1.2.3"))
        self.jobs = JobService(
            self.engine, version, JobPolicy(**{"window": 2, **policy}), store=SqliteJobStore(self.database)
        )
        self.jobs.start()

    def create(self, spec: JobSpec = SPEC, request_id: str = "", user: str = "local") -> Job:
        return self.jobs.create(spec, request_id, user=user)

    def work(self, job: Job, evaluations: int) -> None:
        """Lets the engine go on until a job has so many evaluations."""
        while job.snapshot.records < evaluations:
            self.engine.wait_for_call()
            before = job.snapshot
            self.engine.let()
            _wait_changed(job, before)

    def crashed(self, copy: Path) -> Path:
        """What is on disk, as another process would find it if this one died now."""
        assert self.database.path is not None
        shutil.copytree(self.database.path.parent, copy, ignore=shutil.ignore_patterns("copy*", "*-shm"))
        return copy / self.database.path.name

    def stop(self) -> None:
        """As on SIGTERM: what is under way ends, nothing new begins."""
        closing = threading.Thread(target=self.jobs.close)
        closing.start()
        while not self.jobs._scheduler._closing:
            threading.Event().wait(0.001)
        self.engine.release()
        closing.join(PATIENCE_S)
        assert not closing.is_alive()
        self.database.close()


def _wait_changed(job: Job, before: Snapshot) -> None:
    wait_until(job, lambda now: now != before)


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts one process after another on the same database."""
    started: list[Process] = []

    def begin(engine: FakeEngine | None = None, path: Path | None = None, **policy: object) -> Process:
        started.append(Process(path or tmp_path / "jobs.sqlite3", engine, **policy))
        return started[-1]

    yield begin
    for process in started:
        process.engine.release()
        process.jobs.close()
        process.database.close()


@pytest.mark.parametrize("spec", [SPEC, changed(SPEC, grouping="gates"), SINGLE])
@pytest.mark.parametrize("evaluations", [0, 1, 7])
def test_a_job_goes_on_where_it_stopped(spec: JobSpec, evaluations: int, start: Start) -> None:
    first = start()
    job = first.create(spec)
    wait_state(job, JobState.RUNNING)
    first.work(job, evaluations)
    first.stop()
    assert job.interrupted
    assert job.snapshot.state is JobState.RUNNING
    second = start()
    again = second.jobs.find(job.name)
    assert again.snapshot.records >= evaluations
    assert again.snapshot.sequence >= job.snapshot.sequence
    assert again.snapshot.started == job.snapshot.started
    replayed = again.snapshot.records
    second.engine.release()
    result = result_of(second.jobs, again)
    undisturbed = alone(spec)
    assert found(result).verdicts == undisturbed.verdicts
    assert found(result).circuit.key == undisturbed.circuit.key
    assert np.array_equal(found(result).scores, undisturbed.scores, equal_nan=True)
    counts = result.run["counts"]
    assert isinstance(counts, dict)
    assert counts["replayed"] == replayed


def test_queued_jobs_keep_their_order(start: Start) -> None:
    first = start()
    jobs = [first.create(changed(SPEC, threshold=float(number))) for number in range(7)]
    first.engine.wait_for_call()
    first.stop()
    second = start()
    assert listed(second.jobs) == [job.name for job in reversed(jobs)]
    second.engine.release()
    for job in jobs:
        assert wait_end(second.jobs.find(job.name)).state is JobState.SUCCEEDED


@pytest.mark.parametrize(
    "task",
    [
        BuiltinTask("ioi", 4, 7),
        PromptTask(clean=("a \u00e9\n", (1, 2)), corrupted=((3,), "x"), answers=((1,),), positions=(0, 2)),
        PromptTask(clean=((1,),), positions=()),
    ],
)
def test_what_was_asked_for_comes_back(task: PromptTask | BuiltinTask, start: Start) -> None:
    first = start()
    job = first.create(replace(SPEC, objective=replace(OBJECTIVE, task=task)))
    wait_state(job, JobState.RUNNING)
    first.stop()
    second = start()
    assert second.jobs.find(job.name).spec == job.spec
    second.engine.release()
    wait_end(second.jobs.find(job.name))
    assert second.engine.opened[-1].objective.task == task
    third = start()
    listed_spec = third.jobs.page(None, 1)[0][0].spec
    assert replace(listed_spec.objective, task=task) == job.spec.objective
    if isinstance(task, BuiltinTask):
        assert listed_spec == job.spec


def test_request_ids_are_known_after_a_restart(start: Start) -> None:
    first = start()
    running, done = first.create(request_id="running"), first.create(SINGLE, request_id="done")
    first.stop()
    second = start()
    assert second.create(request_id="running") is second.jobs.find(running.name)
    second.engine.release()
    wait_end(second.jobs.find(done.name))
    second.stop()
    third = start()
    assert third.create(SINGLE, request_id="done").name == done.name
    with pytest.raises(AlreadyExistsError):
        third.create(request_id="done")


def test_a_job_that_was_to_stop_stops(start: Start, tmp_path: Path) -> None:
    first = start()
    job = first.create()
    wait_state(job, JobState.RUNNING)
    first.work(job, 2)
    first.jobs.cancel(job.name)
    second = start(path=first.crashed(tmp_path / "copy"))
    now = second.jobs.find(job.name).snapshot
    assert now.state is JobState.CANCELLED
    result = second.jobs.artifact(job.name)
    assert result is not None
    assert result.partial
    assert found(result).verdicts == alone(SPEC).verdicts[: now.records]
    assert now.sequence > job.snapshot.sequence
    assert second.engine.opened == []


def test_a_crash_loses_nothing_that_was_told(start: Start, tmp_path: Path) -> None:
    """Whenever somebody could see something, it was stored before."""
    first = start()
    job = first.create()
    wait_state(job, JobState.RUNNING)
    for evaluations in range(1, 9, 3):
        first.work(job, evaluations)
        seen = job.snapshot
        second = start(path=first.crashed(tmp_path / f"copy {evaluations}"))
        again = second.jobs.find(job.name)
        assert again.snapshot.sequence >= seen.sequence
        second.engine.release()
        result = result_of(second.jobs, again)
        assert found(result).verdicts == alone(SPEC).verdicts


# What cannot go on


class OtherRevision(FakeEngine):
    def resolve(self, objective: Objective, activations: bool = True) -> ResolvedObjective:
        return replace(super().resolve(objective), revision="beef")


class NoModel(FakeEngine):
    def resolve(self, objective: Objective, activations: bool = True) -> ResolvedObjective:
        raise NotFoundError(f"model {objective.model!r}", "served models: none")


class Broken(FakeEngine):
    def resolve(self, objective: Objective, activations: bool = True) -> ResolvedObjective:
        raise RuntimeError("something about a prompt")


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        (OtherRevision, "model 'toy' has revision beef now; the job was accepted for c0ffee"),
        (NoModel, "cannot go on after a restart: model 'toy' not found; served models: none"),
        (Broken, "internal error (RuntimeError); see the server's log"),
    ],
)
def test_a_job_that_cannot_go_on_fails_and_says_why(
    engine: type[FakeEngine], reason: str, start: Start
) -> None:
    first = start()
    job = first.create()
    wait_state(job, JobState.RUNNING)
    first.work(job, 2)
    first.stop()
    second = start(engine())
    now = second.jobs.find(job.name).snapshot
    assert now.state is JobState.FAILED
    assert reason in now.error
    assert now.sequence > job.snapshot.sequence
    assert second.engine.opened == []


@pytest.mark.parametrize("change", [{"version": "1.3.0"}, {"environment": {"executor": "literal"}}])
def test_scores_of_another_version_are_not_mixed_with_new_ones(
    change: dict[str, object], start: Start
) -> None:
    first = start()
    job = first.create()
    wait_state(job, JobState.RUNNING)
    first.work(job, 6)
    first.stop()
    second = start(**change)
    again = second.jobs.find(job.name)
    assert (again.snapshot.records, again.snapshot.progress.done) == (0, 0)
    assert again.snapshot.sequence >= job.snapshot.sequence
    second.engine.release()
    result = result_of(second.jobs, again)
    assert result.run["counts"]["replayed"] == 0  # type: ignore[index]
    assert result.request["version"] == change.get("version", "1.2.3")


# Stopping


def test_after_a_stop_a_new_job_is_left_to_the_next_process(start: Start) -> None:
    first = start()
    first.engine.release()
    first.jobs.close()
    job = first.create()
    assert job.interrupted
    assert job.snapshot.state is JobState.QUEUED
    first.database.close()
    second = start()
    second.engine.release()
    assert wait_end(second.jobs.find(job.name)).state is JobState.SUCCEEDED


def test_watchers_hear_that_the_process_stops(start: Start) -> None:
    first = start()
    job = first.create()
    wait_state(job, JobState.RUNNING)
    heard = threading.Event()
    job.listen(lambda: heard.set() if job.interrupted else None)
    first.stop()
    assert heard.is_set()


# Results that are there already


def test_an_equal_job_of_the_same_user_is_not_computed_again(start: Start) -> None:
    process = start(reuse=True)
    process.engine.release()
    first = process.create(user="ada")
    one = result_of(process.jobs, first)
    assert process.create(user="ada").snapshot.state is JobState.SUCCEEDED
    again = process.create(changed(SPEC, grouping="none"), user="ada")
    reused = process.jobs.artifact(again.name)
    assert reused is not None
    assert reused.artifact == one.artifact
    assert reused.request == one.request
    assert len(process.engine.opened) == 1
    wait_end(process.create(user="bob"))
    wait_end(process.create(changed(SPEC, threshold=2.5), user="ada"))
    assert len(process.engine.opened) == 3
    process.stop()
    other = start(reuse=True, environment={"executor": "literal"})
    assert other.create(user="ada").snapshot.state is JobState.QUEUED
    other.engine.release()


# Quotas


@pytest.mark.parametrize(
    ("quota", "text"),
    [
        ({"queued_jobs": 2}, "3 queued jobs would be more than the 2 that each user may have"),
        ({"prompt_tokens": 13}, "16 prompt tokens would be more than the 13"),
        ({"stored_results": 3}, "4 stored results would be more than the 3"),
    ],
)
def test_quotas_are_each_users_own(quota: dict[str, int], text: str, start: Start) -> None:
    process = start(quotas=Quotas(running_jobs=1, **quota))
    jobs = [process.create(user="ada")]
    wait_state(jobs[0], JobState.RUNNING)  # holds the only place
    jobs += [process.create(user="ada") for _ in range(2)]
    for _ in range(2):
        with pytest.raises(QuotaExceededError, match=text) as caught:
            process.create(user="ada")
        assert (caught.value.quota, caught.value.subject) == (next(iter(quota)), "users/ada")
    assert process.create(user="bob").snapshot.state in (JobState.QUEUED, JobState.RUNNING)
    process.jobs.cancel(jobs[-1].name)
    process.engine.release()
    wait_end(jobs[-1])
    wait_end(jobs[0])
    wait_end(jobs[1])
    if "stored_results" in quota:
        assert process.create(user="ada")  # the cancelled one gave no result
        with pytest.raises(QuotaExceededError):
            process.create(user="ada")
        process.jobs.delete(jobs[0].name)
    assert process.create(user="ada")


# When the store fails


def disk_full(name: str) -> None:
    raise sqlite3.OperationalError("database or disk is full")


def damaged(name: str) -> None:
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    raise error


@pytest.mark.parametrize("stage", ["begin", "written"])
def test_what_cannot_be_stored_is_refused(stage: str, start: Start) -> None:
    process = start()
    job = process.create()
    wait_state(job, JobState.RUNNING)
    process.fail = lambda name: disk_full(name) if name.endswith(stage) else None
    with pytest.raises(StorageError, match="cannot be used now: database or disk is full"):
        process.create(SINGLE, request_id="x")
    with pytest.raises(StorageError):
        process.jobs.cancel(job.name)
    assert job.snapshot.state is JobState.RUNNING
    assert listed(process.jobs) == [job.name]
    process.fail = lambda name: None
    created = process.create(SINGLE, request_id="x")
    process.engine.release()
    assert {wait_end(j).state for j in (job, created)} == {JobState.SUCCEEDED}


@pytest.mark.parametrize("operation", ["advance", "finish"])
def test_a_running_job_goes_on_and_is_stored_later(operation: str, start: Start) -> None:
    process = start()
    job = process.create()
    failed = threading.Event()

    def fail(name: str) -> None:
        if name.startswith(operation):
            failed.set()
            disk_full(name)

    process.fail = fail
    process.engine.release()
    assert failed.wait(PATIENCE_S)
    while process.engine.open_states or not process.engine.opened:
        threading.Event().wait(0.001)
    if operation == "finish":
        assert not job.snapshot.state.final
        assert process.jobs.artifact(job.name) is None
    process.fail = lambda name: None
    result = result_of(process.jobs, job)
    assert found(result).verdicts == alone(SPEC).verdicts
    assert job.snapshot.started is not None


def test_an_end_that_was_not_stored_is_reached_again(start: Start) -> None:
    first = start()
    job = first.create()
    first.fail = lambda name: disk_full(name) if name.startswith("finish") else None
    first.engine.release()
    wait_until(job, lambda now: now.progress.done == GRAPH.num_edges)
    first.jobs.close()
    assert job.interrupted
    assert not job.snapshot.state.final
    first.database.close()
    second = start()
    second.engine.release()
    result = result_of(second.jobs, second.jobs.find(job.name))
    assert found(result).verdicts == alone(SPEC).verdicts


def test_a_damaged_database_fails_the_job_alone(start: Start) -> None:
    process = start()
    job = process.create()
    wait_state(job, JobState.RUNNING)
    process.fail = damaged
    process.engine.let()
    now = wait_end(job)
    assert (now.state, now.error) == (
        JobState.FAILED,
        "the database is damaged: database disk image is malformed",
    )
    process.fail = lambda name: None
    # The store still has it as running: nobody may wait for that.
    assert process.jobs.find(job.name) is job
    assert process.jobs.page("local", 10)[0] == [job]
    process.engine.release()
    assert wait_end(process.create(SINGLE)).state is JobState.SUCCEEDED


# Jobs that may be what the server dies of


def test_a_job_at_which_the_server_crashes_again_and_again_is_given_up(start: Start, tmp_path: Path) -> None:
    process = start()
    job = process.create()
    wait_state(job, JobState.RUNNING)
    for death in range(MOST_CRASHES):
        process = start(path=process.crashed(tmp_path / f"copy {death}"))
        assert process.jobs.find(job.name).snapshot.state is JobState.RUNNING
        process.engine.wait_for_call()
    process = start(path=process.crashed(tmp_path / "copy last"))
    now = process.jobs.find(job.name).snapshot
    assert now.state is JobState.FAILED
    assert f"the server crashed {MOST_CRASHES + 1} times while it ran, without coming further" in now.error
    assert process.engine.opened == []


def test_a_job_that_comes_further_or_is_stopped_in_good_order_may_go_on(start: Start, tmp_path: Path) -> None:
    process = start()
    job = process.create()
    wait_state(job, JobState.RUNNING)
    for death in range(2 * MOST_CRASHES - 1):
        if death == MOST_CRASHES - 1:
            process.stop()
            process = start(path=process.database.path)
        else:
            process = start(path=process.crashed(tmp_path / f"copy {death}"))
        job = process.jobs.find(job.name)
        if death == 2:
            process.work(job, job.snapshot.records + 1)
    assert job.snapshot.state is JobState.RUNNING
    process.engine.release()
    assert found(result_of(process.jobs, job)).verdicts == alone(SPEC).verdicts
