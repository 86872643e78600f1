"""One job: states and sequence numbers only go forward, whoever calls in whatever order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import pairwise

import pytest
from helpers.fake_engine import GRAPH, PATIENCE_S
from helpers.specs import acdc
from hypothesis import given
from hypothesis import strategies as st

from pahq_server.core.artifact import Artifact, Progress, Records
from pahq_server.core.errors import NonFiniteMetricError
from pahq_server.jobs.job import Job, JobState, Journal, Snapshot
from pahq_server.store.records import StoredArtifact

SPEC = acdc(1.0, grouping="gates")

ARTIFACT = StoredArtifact(Artifact("circuit", 1, b""), {}, {})


def new_job() -> Job:
    return Job("users/local/jobs/1", SPEC, GRAPH.num_edges, "edges")


def advance(job: Job) -> None:
    job.update(Progress(job.snapshot.records + 1), Records(b"x", 1))


OPERATIONS: dict[str, Callable[[Job], None]] = {
    "start": Job.start,
    "advance": advance,
    "cancel": Job.cancel,
    "succeed": lambda job: job.succeed(ARTIFACT),
    "fail": lambda job: job.fail(NonFiniteMetricError("the metric is nan")),
    "end_cancelled": Job.end_cancelled,
}


@pytest.mark.parametrize(
    ("operations", "states"),
    [
        (["start", "advance", "succeed"], [2, 2, 5]),
        (["start", "cancel", "end_cancelled"], [2, 3, 4]),
        (["cancel", "end_cancelled"], [3, 4]),
        (["cancel", "start", "succeed"], [3, 3, 5]),  # the last verdict came before the worker looked
        (["start", "advance", "fail"], [2, 2, 6]),
        (["fail", "cancel", "succeed"], [6, 6, 6]),
        (["start", "succeed", "fail", "end_cancelled"], [2, 5, 5, 5]),
        (["start", "end_cancelled", "succeed"], [2, 4, 4]),
    ],
)
def test_life_of_a_job(operations: list[str], states: list[int]) -> None:
    job, seen = new_job(), []
    assert job.snapshot.state is JobState.QUEUED
    for operation in operations:
        OPERATIONS[operation](job)
        seen.append(job.snapshot.state.value)
    assert seen == states


@given(st.lists(st.sampled_from(sorted(OPERATIONS)), max_size=12))
def test_states_and_sequences_only_go_forward(operations: list[str]) -> None:
    job = new_job()
    before = job.snapshot
    for operation in operations:
        OPERATIONS[operation](job)
        now = job.snapshot
        assert now.state.value >= before.state.value
        grown = (now.state, now.records) != (before.state, before.records)
        assert (now.sequence > before.sequence) == grown
        if before.state.final:
            assert now == before
        before = now


def test_sequences_of_a_whole_life_strictly_increase() -> None:
    job = new_job()
    sequences = [job.snapshot.sequence]
    for operation in ["start", *["advance"] * 5, "cancel", "advance", "end_cancelled"]:
        OPERATIONS[operation](job)
        sequences.append(job.snapshot.sequence)
    assert all(a < b for a, b in pairwise(sequences))
    assert sequences[0] > 0  # so that "after 0" means everything


def test_progress_without_records_is_an_event_too() -> None:
    job = new_job()
    job.start()
    before = job.snapshot
    job.update(Progress(3, "training"))
    assert job.snapshot.sequence > before.sequence
    job.update(Progress(2, "what was done is not taken back"))
    assert job.snapshot.progress.done == 3


def test_concurrent_calls_never_take_a_job_back() -> None:
    job, go, over = new_job(), threading.Event(), threading.Event()
    seen: list[Snapshot] = []

    def look() -> None:
        go.wait()
        while not over.is_set():
            seen.append(job.snapshot)
        seen.append(job.snapshot)

    def work() -> None:
        go.wait()
        job.start()
        for done in range(1, 2000):
            job.update(Progress(done), Records(b"x", 1))
        job.end_cancelled()

    def cancel() -> None:
        go.wait()
        for _ in range(500):
            job.cancel()

    threads = [threading.Thread(target=target) for target in (look, work, cancel, cancel)]
    for thread in threads:
        thread.start()
    go.set()
    for thread in threads[1:]:
        thread.join(PATIENCE_S)
    over.set()
    threads[0].join(PATIENCE_S)
    assert [s.sequence for s in seen] == sorted(s.sequence for s in seen)
    assert [s.state.value for s in seen] == sorted(s.state.value for s in seen)
    assert (seen[-1].state, seen[-1].records) == (JobState.CANCELLED, 1999)


def test_records_that_stand_alone_replace_those_that_are_not_stored() -> None:
    first, second, third = Records(b"1", 1), Records(b"2", 2, alone=True), Records(b"3", 3)
    assert first + second + third == Records(b"23", 6, alone=True)
    assert (first + second) + third == first + (second + third)
    assert first + third == Records(b"13", 4)


def test_listeners_hear_every_change_until_they_stop_listening() -> None:
    job, heard = new_job(), []
    stop = job.listen(lambda: heard.append(job.snapshot.state))
    job.start()
    advance(job)
    stop()
    job.cancel()
    assert heard == [JobState.RUNNING, JobState.RUNNING]
    stop()  # twice is fine


def test_who_begins_to_listen_does_not_wait_for_the_disk() -> None:
    storing, stored = threading.Event(), threading.Event()

    class Slow(Journal):
        def advance(self, now: Snapshot) -> None:
            storing.set()
            assert stored.wait(PATIENCE_S)

    job = Job("users/local/jobs/1", SPEC, GRAPH.num_edges, "edges", journal=Slow())
    worker = threading.Thread(target=job.start)
    worker.start()
    assert storing.wait(PATIENCE_S)
    heard = threading.Event()
    listening = threading.Thread(target=lambda: job.listen(heard.set), daemon=True)
    listening.start()
    listening.join(PATIENCE_S)
    assert not listening.is_alive()
    stored.set()
    worker.join(PATIENCE_S)
    assert heard.is_set()


def test_times() -> None:
    job = new_job()
    assert (job.snapshot.started, job.snapshot.ended) == (None, None)
    job.start()
    job.succeed(ARTIFACT)
    now = job.snapshot
    assert now.started is not None
    assert now.ended is not None
    assert now.created <= now.started <= now.ended


def test_no_estimate_without_a_pace() -> None:
    job = new_job()
    assert job.snapshot.eta_s(100) is None
    job.start()
    assert job.snapshot.eta_s(100) is None
    advance(job)
    estimate = job.snapshot.eta_s(100)
    assert estimate is not None
    assert estimate >= 0
    job.fail(NonFiniteMetricError("x"))
    assert job.snapshot.eta_s(100) is None


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (NonFiniteMetricError("the metric is nan"), "the metric is nan"),
        (MemoryError("no room for 3 GiB"), "no room for 3 GiB"),
        (KeyError("secret prompt"), "internal error (KeyError); see the server's log"),
    ],
)
def test_the_reason_of_a_failure_says_nothing_it_should_not(error: Exception, text: str) -> None:
    job = new_job()
    job.fail(error)
    assert job.snapshot.error == text
