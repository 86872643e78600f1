"""Jobs that an earlier process left are gone on with while calls are answered."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.fake_engine import OBJECTIVE, PATIENCE_S, FakeEngine
from helpers.specs import acdc, changed
from helpers.waiting import listed, result_of, wait_end, wait_state, wait_until

from pahq_server.core.engine import Objective, ResolvedObjective
from pahq_server.core.errors import (
    AlreadyExistsError,
    ConflictError,
    QuotaExceededError,
    ResourceExhaustedError,
)
from pahq_server.jobs import resuming
from pahq_server.jobs.job import Job, JobState
from pahq_server.jobs.quotas import Quotas
from pahq_server.jobs.service import JobPolicy, JobService
from pahq_server.store.database import Database
from pahq_server.store.jobs import SqliteJobStore

SPEC = acdc(2.0, grouping="none")


class SlowlyPreparing(FakeEngine):
    """Prepares a measurement in the thread of resuming only when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.preparing, self.prepare_on = threading.Semaphore(0), threading.Semaphore(0)

    def resolve(self, objective: Objective, activations: bool = True) -> ResolvedObjective:
        if threading.current_thread().name == "pahq-resumption":
            self.preparing.release()
            assert self.prepare_on.acquire(timeout=PATIENCE_S), "the test forgot a job"
        return super().resolve(objective)

    def let_all(self) -> None:
        self.prepare_on.release(1000)

    def wait_preparing(self) -> None:
        assert self.preparing.acquire(timeout=PATIENCE_S), "no job is resumed"


class Server:
    """A service that resumes behind, on a database."""

    def __init__(self, path: Path, **policy: object) -> None:
        self.engine = SlowlyPreparing()
        self.fail: Callable[[str], None] = lambda name: None
        self.database = Database(path, lambda name: self.fail(name))
        self.jobs = JobService(
            self.engine,
            "1.2.3",
            JobPolicy(**{"window": 2, **policy}),  # type: ignore[arg-type]
            store=SqliteJobStore(self.database),
        )
        self.jobs.start(wait=False)

    def stop(self) -> None:
        self.engine.let_all()
        self.engine.release()
        self.jobs.close()
        self.database.close()


LEFT = [("ada", 1.0), ("ada", 1.5), ("bob", 2.0), ("ada", 2.5), ("bob", 3.0)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database with jobs of two users, none of them begun."""
    path = tmp_path / "jobs.sqlite3"
    database = Database(path)
    service = JobService(FakeEngine(), "1.2.3", JobPolicy(window=2), store=SqliteJobStore(database))
    service.start()
    service.close()  # what is created now is left to a later process
    for user, threshold in LEFT:
        service.create(changed(SPEC, threshold=threshold), f"{threshold}", user=user)
    database.close()
    return path


Start = Callable[..., Server]


@pytest.fixture
def start(path: Path) -> Iterator[Start]:
    started: list[Server] = []

    def begin(**policy: object) -> Server:
        started.append(Server(path, **policy))
        return started[-1]

    yield begin
    for server in started:
        server.stop()


def of(server: Server, user: str) -> list[Job]:
    """Oldest first."""
    return server.jobs.page(user, 100)[0][::-1]


def test_jobs_can_be_asked_about_before_they_go_on(start: Start) -> None:
    server = start()
    server.engine.wait_preparing()  # the first; the others wait
    assert not server.jobs.resumed
    jobs = of(server, "ada")
    assert [job.snapshot.state for job in jobs] == [JobState.QUEUED] * 3
    assert [job.spec.parameters.threshold for job in jobs] == [1.0, 1.5, 2.5]
    assert all(server.jobs.find(job.name) is job for job in jobs)
    assert server.jobs.artifact(jobs[1].name) is None
    assert server.jobs.count_by_state()["queued"] == len(LEFT)
    again = server.jobs.create(changed(SPEC, threshold=1.5), "1.5", user="ada")
    assert again is jobs[1]
    with pytest.raises(AlreadyExistsError):
        server.jobs.create(SPEC, "1.5", user="ada")
    with pytest.raises(ConflictError, match="QUEUED: cancel it first"):
        server.jobs.delete(jobs[1].name)
    server.engine.let_all()
    assert server.jobs.wait_resumed()
    assert server.jobs.resumed
    for job in (*jobs, *of(server, "bob")):
        assert result_of(server.jobs, job)


def test_whoever_watches_a_job_that_waits_hears_of_it(start: Start) -> None:
    server = start()
    server.engine.wait_preparing()
    last = of(server, "bob")[-1]
    heard: list[JobState] = []
    last.listen(lambda: heard.append(last.snapshot.state))
    server.engine.let_all()
    wait_end(last)
    assert heard[-1] is JobState.SUCCEEDED
    assert JobState.RUNNING in heard


def test_a_job_that_waits_can_be_cancelled_and_deleted(start: Start) -> None:
    server = start()
    server.engine.wait_preparing()
    first, second, _ = of(server, "ada")
    cancelled = server.jobs.cancel(second.name)
    assert cancelled is second
    assert second.snapshot.state is JobState.CANCELLED
    server.jobs.delete(second.name)
    assert second.name not in listed(server.jobs)
    # The one that is being taken up ends as soon as it is.
    assert server.jobs.cancel(first.name).snapshot.state is JobState.CANCELLING
    server.engine.let_all()
    assert wait_end(first).state is JobState.CANCELLED
    for job in (*of(server, "ada")[1:], *of(server, "bob")):
        assert wait_end(job).state is JobState.SUCCEEDED


def test_users_take_turns_and_keep_their_order(start: Start) -> None:
    server = start(slots=1)
    server.engine.hold()
    server.engine.wait_preparing()
    newcomer = server.jobs.create(SPEC, "", user="eve")  # who has nothing that waits
    wait_state(newcomer, JobState.RUNNING)
    behind = server.jobs.create(changed(SPEC, threshold=9.0), "", user="ada")
    assert behind.snapshot.state is JobState.QUEUED
    ada, bob = of(server, "ada"), of(server, "bob")
    assert ada[-1] is behind
    began: list[Job] = []

    def note(job: Job) -> Callable[[], None]:
        return lambda: (
            began.append(job) if job.snapshot.state is JobState.RUNNING and job not in began else None
        )

    for job in (*ada, *bob):
        job.listen(note(job))
    server.engine.let_all()
    assert server.jobs.wait_resumed()
    server.engine.release()
    for job in (*ada, *bob):
        wait_end(job)
    assert [job for job in began if job.user == "ada"] == ada
    assert [job for job in began if job.user == "bob"] == bob


def test_what_comes_while_the_last_is_taken_up_waits_behind_it(start: Start) -> None:
    server = start(slots=1)
    for job in (*of(server, "ada")[1:], *of(server, "bob")):
        server.jobs.cancel(job.name)
    server.engine.wait_preparing()
    first = of(server, "ada")[0]
    behind = server.jobs.create(changed(SPEC, threshold=9.0), "", user="ada")
    # Its turn has not come, though the worker has nothing else to do.
    newcomer = server.jobs.create(SPEC, "", user="eve")
    assert wait_end(newcomer).state is JobState.SUCCEEDED
    assert behind.snapshot.state is JobState.QUEUED
    server.engine.let_all()
    wait_end(behind)
    began = [job.snapshot.started for job in (first, behind)]
    assert None not in began
    assert began == sorted(began)  # type: ignore[type-var]


def test_what_waits_counts(start: Start) -> None:
    server = start(quotas=Quotas(queued_jobs=3))
    server.engine.wait_preparing()
    with pytest.raises(QuotaExceededError, match="4 queued jobs"):
        server.jobs.create(SPEC, "", user="ada")
    server.engine.let_all()


def test_the_queue_is_full_also_of_what_waits(start: Start) -> None:
    server = start(max_queued=2)
    server.engine.wait_preparing()
    with pytest.raises(ResourceExhaustedError, match="are waiting already"):
        server.jobs.create(SPEC, "", user="ada")
    with pytest.raises(ResourceExhaustedError):
        server.jobs.evaluations.evaluate(OBJECTIVE, [[]], user="ada")
    server.engine.let_all()


def test_a_stop_does_not_wait_for_all_of_them(start: Start, path: Path) -> None:
    first = start()
    first.engine.wait_preparing()
    left = [*of(first, "ada"), *of(first, "bob")]
    behind = first.jobs.create(changed(SPEC, threshold=9.0), "behind", user="bob")
    told = [threading.Event() for _ in left]
    for job, heard in zip(left, told, strict=True):

        def listener(job: Job = job, heard: threading.Event = heard) -> None:
            # The one at hand may come to its end before the worker stops.
            if job.interrupted or job.snapshot.state.final:
                heard.set()

        job.listen(listener)
    closing = threading.Thread(target=first.jobs.close)
    closing.start()
    while not first.jobs._resumption._closing.is_set():
        threading.Event().wait(0.001)
    first.engine.prepare_on.release()  # the one at hand, and no other
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    assert all(heard.wait(PATIENCE_S) for heard in told)
    assert behind.interrupted
    assert len(first.engine.opened) <= 1
    assert not first.jobs.wait_resumed()
    first.database.close()
    second = start()
    second.engine.let_all()
    assert second.jobs.wait_resumed()
    names = [job.name for job in (*left, behind)]
    for name in names:
        job = second.jobs.find(name)
        assert job.snapshot.crash_count <= 1
        assert wait_end(job).state is JobState.SUCCEEDED


def test_one_that_cannot_go_on_does_not_hold_up_the_others(start: Start, path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE jobs SET prompts = '{' WHERE id = 1")
        connection.execute("UPDATE jobs SET spec = '{' WHERE id = 3")
    connection.close()
    server = start()
    server.engine.let_all()
    assert server.jobs.wait_resumed()
    states = [wait_end(job).state for job in (*of(server, "ada"), *of(server, "bob"))]
    assert states.count(JobState.FAILED) == 2
    assert states.count(JobState.SUCCEEDED) == len(LEFT) - 2


def test_a_database_that_cannot_be_used_now_is_tried_again(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resuming, "RETRY_S", 0.01)
    server = start()
    prompts, refused = server.jobs._resumption._store.prompts, threading.Event()

    def full(job: int) -> str | None:
        if not refused.is_set():
            refused.set()
            with server.database.reading():
                raise sqlite3.OperationalError("disk I/O error")
        return prompts(job)

    monkeypatch.setattr(server.jobs._resumption._store, "prompts", full)
    server.engine.let_all()
    assert server.jobs.wait_resumed()
    for job in (*of(server, "ada"), *of(server, "bob")):
        assert wait_end(job).state is JobState.SUCCEEDED
    assert refused.is_set()


def test_an_end_that_cannot_be_stored_is_stored_later(start: Start) -> None:
    server = start()
    server.engine.wait_preparing()
    job = of(server, "bob")[-1]

    def full(name: str) -> None:
        if name.startswith("finish"):
            raise sqlite3.OperationalError("database or disk is full")

    server.fail = full
    assert server.jobs.cancel(job.name).snapshot.state is JobState.CANCELLING
    server.fail = lambda name: None
    assert wait_end(job).state is JobState.CANCELLED
    server.engine.let_all()


def test_a_worker_that_fails_leaves_those_that_wait_to_a_later_process(start: Start) -> None:
    server = start()
    server.engine.wait_preparing()
    server.jobs._scheduler._fail(MemoryError("nothing is left"))
    server.engine.let_all()
    assert server.jobs.wait_resumed()
    for job in (*of(server, "ada"), *of(server, "bob")):
        wait_until(job, lambda now, job=job: job.interrupted)  # type: ignore[misc]
        assert job.snapshot.state is JobState.QUEUED
