"""Watching a job."""

from __future__ import annotations

import threading
from itertools import pairwise

import grpc
import pytest
from helpers.api_server import RunningServer, refused, spec
from helpers.fake_engine import PATIENCE_S, FakeEngine
from helpers.waiting import wait_end
from pahq.v1 import jobs_pb2 as pb

from pahq_server.core.errors import NonFiniteMetricError


def test_events_go_forward_and_the_last_is_the_end(server: RunningServer, engine: FakeEngine) -> None:
    engine.hold()
    name = server.create(spec()).name
    engine.wait_for_call()
    stream = server.job_stub.WatchJob(pb.WatchJobRequest(name=name), timeout=PATIENCE_S)
    first = next(stream).event
    assert (first.kind, first.state) == (pb.EVENT_KIND_STATE, pb.JOB_STATE_RUNNING)
    engine.let(3)
    second = next(stream).event
    assert second.kind == pb.EVENT_KIND_PROGRESS
    assert second.progress.figures["evaluations"] > 0
    engine.release()
    events = [first, second, *(message.event for message in stream)]
    assert all(a.sequence < b.sequence for a, b in pairwise(events))
    assert all(a.progress.done <= b.progress.done for a, b in pairwise(events))
    assert [event.kind for event in events].index(pb.EVENT_KIND_END) == len(events) - 1
    assert events[-1].state == pb.JOB_STATE_SUCCEEDED


def test_a_job_that_has_ended_has_one_event(server: RunningServer) -> None:
    name = server.finish(spec())
    (event,) = server.events(name)
    assert (event.kind, event.state) == (pb.EVENT_KIND_END, pb.JOB_STATE_SUCCEEDED)
    assert event.progress.done == event.progress.total


def test_watching_goes_on_after_any_event(server: RunningServer) -> None:
    name = server.finish(spec())
    (end,) = server.events(name)
    for after in (-5, 0, 1, end.sequence - 1):
        assert [event.sequence for event in server.events(name, after)] == [end.sequence]
    # Who has had the last event gets nothing more, and is not kept waiting.
    assert server.events(name, end.sequence) == []


def test_a_watcher_that_resumes_sees_nothing_twice(server: RunningServer, engine: FakeEngine) -> None:
    engine.hold()
    name = server.create(spec()).name
    engine.wait_for_call()
    seen = []
    for _ in range(4):
        after = seen[-1].sequence if seen else 0
        request = pb.WatchJobRequest(name=name, after_sequence=after)
        stream = server.job_stub.WatchJob(request, timeout=PATIENCE_S)
        engine.let()
        seen.append(next(stream).event)
        stream.cancel()
    engine.release()
    seen += server.events(name, seen[-1].sequence)
    assert all(a.sequence < b.sequence for a, b in pairwise(seen))
    assert seen[-1].kind == pb.EVENT_KIND_END


def test_cancelling_is_seen(server: RunningServer, engine: FakeEngine) -> None:
    engine.hold()
    name = server.create(spec()).name
    engine.wait_for_call()
    stream = server.job_stub.WatchJob(pb.WatchJobRequest(name=name), timeout=PATIENCE_S)
    assert next(stream).event.state == pb.JOB_STATE_RUNNING
    server.job_stub.CancelJob(pb.CancelJobRequest(name=name))
    cancelling = next(stream).event
    assert (cancelling.kind, cancelling.state) == (pb.EVENT_KIND_STATE, pb.JOB_STATE_CANCELLING)
    engine.release()
    # The step that was under way may bring one more verdict.
    *_, end = [message.event for message in stream]
    assert (end.kind, end.state) == (pb.EVENT_KIND_END, pb.JOB_STATE_CANCELLED)


def test_the_end_of_a_failed_job_says_why(server: RunningServer, engine: FakeEngine) -> None:
    engine.failures["bad"].run = NonFiniteMetricError("the metric is nan")
    name = server.create(spec(model="bad")).name
    *_, end = server.events(name)
    assert (end.kind, end.state) == (pb.EVENT_KIND_END, pb.JOB_STATE_FAILED)
    assert end.error_message == "the metric is nan"
    found = server.job_stub.GetJob(pb.GetJobRequest(name=name)).job
    assert found.error_message == "the metric is nan"


def test_several_watchers_see_the_same_end(server: RunningServer, engine: FakeEngine) -> None:
    engine.hold()
    name = server.create(spec()).name
    ends: list[pb.Event] = []
    threads = [threading.Thread(target=lambda: ends.append(server.events(name)[-1])) for _ in range(5)]
    for thread in threads:
        thread.start()
    engine.release()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(ends) == 5
    assert len({end.SerializeToString(deterministic=True) for end in ends}) == 1  # else maps have any order


def test_a_watcher_that_leaves_is_forgotten(server: RunningServer, engine: FakeEngine) -> None:
    engine.hold()
    name = server.create(spec()).name
    job = server.jobs.find(name)
    before = len(job._listeners)
    stream = server.job_stub.WatchJob(pb.WatchJobRequest(name=name), timeout=PATIENCE_S)
    next(stream)
    assert len(job._listeners) == before + 1
    stream.cancel()
    for _ in range(int(PATIENCE_S * 100)):
        if len(job._listeners) == before:
            break
        threading.Event().wait(0.01)
    assert len(job._listeners) == before
    engine.release()
    wait_end(job)


def test_what_is_not_there(server: RunningServer) -> None:
    with refused() as refusal:
        server.events("users/local/jobs/none")
    assert (refusal.code, refusal.info.reason) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")


def test_stopping_the_server_ends_the_streams(engine: FakeEngine) -> None:
    with RunningServer(engine) as server:
        engine.hold()
        name = server.create(spec()).name
        stream = server.job_stub.WatchJob(pb.WatchJobRequest(name=name), timeout=PATIENCE_S)
        next(stream)
        server.stop()
        with pytest.raises(grpc.RpcError) as caught:
            list(stream)
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)  # type: ignore[attr-defined]


def test_the_estimate_is_there_while_a_job_runs(server: RunningServer, engine: FakeEngine) -> None:
    engine.hold()
    name = server.create(spec()).name
    engine.wait_for_call()
    stream = server.job_stub.WatchJob(pb.WatchJobRequest(name=name), timeout=PATIENCE_S)
    assert not next(stream).event.progress.HasField("eta_seconds")
    engine.let(8)
    moving = next(stream).event
    assert moving.progress.done > 0
    assert moving.progress.eta_seconds >= 0
