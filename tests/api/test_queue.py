"""Positions in the queue as clients see them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers.api_server import RunningServer, spec
from helpers.fake_engine import PATIENCE_S, FakeEngine
from pahq.v1 import jobs_pb2 as pb

from pahq_server.scheduler import queue


@pytest.fixture
def server() -> Iterator[RunningServer]:
    """One slot, and an engine that waits."""
    engine = FakeEngine()
    engine.hold()
    with RunningServer(engine, slots=1) as server:
        yield server


@pytest.fixture(autouse=True)
def _always_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where positions were told just now, there would be no other batch to tell them again."""
    monkeypatch.setattr(queue, "TELL_AGAIN", 0)


def three_jobs(server: RunningServer) -> list[str]:
    """The first one runs. Positions are told between batches."""
    names = [server.create(spec()).name for _ in range(3)]
    server.engine.wait_for_call()
    server.engine.let()
    server.engine.wait_for_call()
    return names


def watch(server: RunningServer, name: str, after: int = 0) -> Iterator[pb.Event]:
    request = pb.WatchJobRequest(name=name, after_sequence=after)
    for response in server.job_stub.WatchJob(request, timeout=PATIENCE_S):
        yield response.event


def told(events: Iterator[pb.Event], position: int) -> pb.Event:
    """The event that tells a position, without one that tells another one again and again."""
    seen = []
    for event in events:
        seen.append(event.queue_position if event.HasField("queue_position") else None)
        if seen[-1] == position:
            assert len(seen) == len(set(seen))
            return event
    raise AssertionError(f"position {position} never came, but {seen}")


def cancel(server: RunningServer, name: str) -> None:
    server.job_stub.CancelJob(pb.CancelJobRequest(name=name))


def test_a_new_position_in_the_queue_is_an_event_of_the_same_sequence(server: RunningServer) -> None:
    first, second, third = three_jobs(server)
    events = watch(server, third)
    before = told(events, 2)
    assert (before.kind, before.state) == (pb.EVENT_KIND_STATE, pb.JOB_STATE_QUEUED)
    found = server.job_stub.GetJob(pb.GetJobRequest(name=third)).job
    assert (found.queue_position, found.HasField("start_time")) == (2, False)
    cancel(server, second)
    server.engine.let()
    after = told(events, 1)
    assert (after.sequence, after.kind) == (before.sequence, pb.EVENT_KIND_STATE)
    # Who asks again for what came later is told where it stands.
    assert told(watch(server, third, after.sequence), 1).sequence == before.sequence
    cancel(server, first)
    server.engine.release()
    last = list(events)[-1]
    assert last.kind == pb.EVENT_KIND_END
    assert not last.HasField("queue_position")
    found = server.job_stub.GetJob(pb.GetJobRequest(name=third)).job
    assert not found.HasField("queue_position")
    assert not found.HasField("estimated_start_time")
    assert found.charged_seconds > 0


def test_starts_are_estimated_from_the_pace_of_the_job_that_runs(server: RunningServer) -> None:
    names = three_jobs(server)
    for _ in range(3):
        server.engine.let()
        server.engine.wait_for_call()
    found = {d.name: d for d in server.job_stub.ListJobs(pb.ListJobsRequest()).jobs}
    first, second, third = (found[name] for name in names)
    assert not first.HasField("estimated_start_time")
    assert first.charged_seconds > 0
    for waiting in (second, third):
        assert waiting.estimated_start_time.ToNanoseconds() >= waiting.create_time.ToNanoseconds()
    assert second.estimated_start_time.ToNanoseconds() <= third.estimated_start_time.ToNanoseconds()
    for name in names:
        cancel(server, name)
