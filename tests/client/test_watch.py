"""Watching a discovery, through interruptions and for a limited time."""

from __future__ import annotations

import threading

import pytest
from pahq.v1 import jobs_pb2 as pb

from pahq_client import (
    Client,
    Event,
    EventKind,
    InvalidRequest,
    JobState,
    PermissionDenied,
    Progress,
    Unavailable,
)
from pahq_client.retries import Backoff

from .fake_jobs import STARTED
from .fake_server import Code, FakeServer, Fault

PROGRESS = Progress(4, 10, "edges", figures={"kept": 2, "metric": 0.5, "evaluations": 4})


def test_events(client: Client, server: FakeServer) -> None:
    events = list(client.submit("demo", "ioi").watch())
    assert [event.sequence for event in events] == [1, 2, 3, 4]
    assert [event.kind for event in events] == ["STATE", "STATE", "PROGRESS", "END"]
    assert events[2] == Event(3, EventKind.PROGRESS, JobState.RUNNING, PROGRESS)
    assert (events[2].decided, events[2].total, events[2].kept) == (4, 10, 2)
    assert (events[2].metric, events[2].evaluations) == (0.5, 4)
    assert events[3].state.is_final


def test_watch_from_a_sequence(client: Client) -> None:
    job = client.submit("demo", "ioi")
    assert [event.sequence for event in job.watch(after_sequence=2)] == [3, 4]
    assert list(job.watch(after_sequence=4)) == []  # the end was seen: nothing is left


def test_watch_survives_interruptions(client: Client, server: FakeServer) -> None:
    server.cuts = [1, 0, 2]
    assert [event.sequence for event in client.submit("demo", "ioi").watch()] == [1, 2, 3, 4]
    assert [r.after_sequence for r in server.called("WatchJob")] == [0, 1, 1, 3]


def test_watch_survives_a_stream_that_just_ends(client: Client, server: FakeServer) -> None:
    server.outcome, server.cut_fault, server.cuts = None, None, [2, 0]
    job = client.submit("demo", "ioi")
    events = job.watch()
    assert [next(events).sequence for _ in range(3)] == [1, 2, 3]
    job.cancel()
    assert [event.state for event in events] == ["CANCELLED"]


def test_watch_drops_what_a_server_repeats(client: Client, server: FakeServer) -> None:
    server.repeat, server.cuts = True, [2, 3]
    assert [event.sequence for event in client.submit("demo", "ioi").watch()] == [1, 2, 3, 4]


def test_new_places_in_the_queue_repeat_the_sequence(client: Client, server: FakeServer) -> None:
    """Each is passed on once, also when it comes again after an interruption."""
    server.outcome, server.cuts = None, [4]
    job = client.submit("demo", "ioi")
    fake = server.jobs[job.name]
    fake.move(3, STARTED)
    events = job.watch()
    assert [next(events).queue_position for _ in range(4)] == [None, None, None, 3]
    fake.move(2, STARTED)
    moved = next(events)
    assert (moved.sequence, moved.queue_position, moved.estimated_start) == (3, 2, STARTED)
    fake.end(pb.JOB_STATE_SUCCEEDED)
    assert [(event.sequence, event.queue_position) for event in events] == [(4, None)]
    assert [request.after_sequence for request in server.called("WatchJob")] == [0, 3]


def test_watch_gives_up_after_its_tries(client: Client, server: FakeServer) -> None:
    server.cuts = [1] + [0] * 20
    job = client.submit("demo", "ioi")
    events = job.watch()
    assert next(events).sequence == 1
    with pytest.raises(Unavailable) as raised:
        next(events)
    assert raised.value.address == server.address
    assert len(server.called("WatchJob")) == 1 + 3


def test_tries_start_over_with_every_event(client: Client, server: FakeServer) -> None:
    server.outcome = None
    job = client.submit("demo", "ioi")
    fake = server.jobs[job.name]
    for number in range(10):
        fake.add(pb.JOB_STATE_RUNNING, pb.EVENT_KIND_PROGRESS, decided=number)
    fake.end(pb.JOB_STATE_SUCCEEDED)
    server.cuts = [1] * 13
    assert len(list(job.watch())) == 14


def test_other_errors_end_a_watch_at_once(client: Client, server: FakeServer) -> None:
    server.cuts, server.cut_fault = [1], Fault(Code.PERMISSION_DENIED)
    with pytest.raises(PermissionDenied):
        list(client.submit("demo", "ioi").watch())
    assert len(server.called("WatchJob")) == 1


def test_result_survives_a_restart_of_the_server() -> None:
    first = FakeServer()
    first.outcome = None
    try:
        with Client(first.address, backoff=Backoff(attempts=50, first_s=0.02, most_s=0.2)) as client:
            job = client.submit("demo", "ioi")
            second: list[FakeServer] = []

            def restart(event: Event) -> None:
                if event.kind is EventKind.PROGRESS and not second:
                    first.stop()
                    second.append(FakeServer(first.port))
                    second[0].jobs = first.jobs
                    first.jobs[job.name].end(pb.JOB_STATE_SUCCEEDED)

            try:
                assert len(job.result(progress=restart).edges) == 2
                assert second[0].called("WatchJob")[0].after_sequence == 3
            finally:
                for server in second:
                    server.stop()
    finally:
        first.stop()


def test_a_long_stream_is_opened_anew(
    client: Client, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pahq_client.jobs.STREAM_SECONDS", 0.05)
    server.outcome = None
    job = client.submit("demo", "ioi")
    events = job.watch()
    for _ in range(3):
        next(events)

    def end_later() -> None:
        while len(server.called("WatchJob")) < 4:
            server.watching.clear()
            server.watching.wait()
        server.jobs[job.name].end(pb.JOB_STATE_SUCCEEDED)

    ender = threading.Thread(target=end_later)
    ender.start()
    assert [event.sequence for event in events] == [4]
    ender.join()


def test_result_timeout_leaves_the_job_alone(client: Client, server: FakeServer) -> None:
    server.outcome = None
    job = client.submit("demo", "ioi")
    for timeout in (0, 0.1):
        with pytest.raises(TimeoutError, match=job.name):
            job.result(timeout=timeout)
    assert job.state is JobState.RUNNING
    assert not server.called("CancelJob")
    server.jobs[job.name].end(pb.JOB_STATE_SUCCEEDED)
    assert len(job.result(timeout=0).edges) == 2
    for wrong in (-1, float("nan"), "1"):
        with pytest.raises(InvalidRequest, match="timeout"):
            job.result(timeout=wrong)  # type: ignore[arg-type]


def test_result_timeout_holds_while_the_server_is_away(client: Client, server: FakeServer) -> None:
    server.outcome = None
    job = client.submit("demo", "ioi")
    server.cuts = [0] * 1000
    endless = Backoff(attempts=10**6, first_s=0.01, most_s=0.02)
    with Client(server.address, backoff=endless) as patient, pytest.raises(TimeoutError):
        patient.job(job.name).result(timeout=0.2)
