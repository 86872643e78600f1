"""Watchers that never read, and slow ones: they take neither memory nor computing time, and get the end."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest
from pahq.v1 import jobs_pb2 as pb
from pahq.v1 import task_pb2

from .conftest import Figures
from .http2 import RawClient, framed
from .secured import SecuredServer, Stubs, objective, wait_until

SHORT, FULL = 20, 200
MIB_PER_STREAM = 1.0
WATCH = "pahq.v1.JobService/WatchJob"
ROUNDS = 5
# Takes several times as long as opening all streams, which so many first evaluations are left for.
UNCOUNTED = 500
LONG = task_pb2.Task(builtin=task_pb2.BuiltinTask(name="ioi", num_prompts=32))


class NeverReading:
    """Streams of which the server may send nothing, on one connection.

    Args:
        client: of the connection; its window is 0.
        name: of the job to watch.
        count: how many.
    """

    def __init__(self, client: RawClient, name: str, count: int) -> None:
        self._client = client
        self.streams = [client.open(WATCH) for _ in range(count)]
        request = framed(pb.WatchJobRequest(name=name).SerializeToString())
        for stream in self.streams:
            client.send_at_once(stream, request)

    def read_all(self) -> list[list[pb.Event]]:
        """Reads at last, to the end."""
        for stream in self.streams:
            self._client.read_on(stream, 1 << 20)
        return [events_of(self._client.wait(stream).data) for stream in self.streams]


def events_of(data: bytes) -> list[pb.Event]:
    events = []
    while data:
        size = int.from_bytes(data[1:5], "big")
        events.append(pb.WatchJobResponse.FromString(data[5 : 5 + size]).event)
        data = data[5 + size :]
    return events


class Slow:
    """Watchers that take their time after every event, each in a thread of its own."""

    def __init__(self, stubs: Stubs, name: str, count: int, pause_s: float) -> None:
        self._stubs, self._name, self._pause_s = stubs, name, pause_s
        self.seen: list[list[pb.Event]] = [[] for _ in range(count)]
        self._threads = [threading.Thread(target=self._watch, args=(seen,)) for seen in self.seen]
        for thread in self._threads:
            thread.start()

    def _watch(self, seen: list[pb.Event]) -> None:
        request = pb.WatchJobRequest(name=self._name)
        for answer in self._stubs.ask(self._stubs.job_stub.WatchJob, request, timeout=600):
            seen.append(answer.event)
            if answer.event.kind != pb.EVENT_KIND_END:
                time.sleep(self._pause_s)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(600)
            assert not thread.is_alive()


def check(events: list[pb.Event]) -> None:
    """They go forward, and the last is the end."""
    assert events[-1].kind == pb.EVENT_KIND_END
    assert events[-1].state == pb.JOB_STATE_SUCCEEDED
    assert [event.kind for event in events].count(pb.EVENT_KIND_END) == 1
    assert all(a.sequence < b.sequence or a.queue_position != b.queue_position for a, b in pairwise(events))


def evaluations(stubs: Stubs, name: str) -> float:
    """How many evaluations a job has behind it."""
    return stubs.get(name).progress.figures["evaluations"]


def finish(stubs: Stubs, name: str) -> float:
    """Waits for the end; returns the number of evaluations."""
    for _ in stubs.ask(stubs.job_stub.WatchJob, pb.WatchJobRequest(name=name), timeout=600):
        pass
    job = stubs.get(name)
    assert job.state == pb.JOB_STATE_SUCCEEDED
    return job.progress.figures["evaluations"]


def create(stubs: Stubs, number: int, task: task_pb2.Task | None = None) -> str:
    """A job of some seconds, which no other has been equal to: so there is no result to take over."""
    own = {} if task is None else {"objective": objective(task=task)}
    return stubs.create(method="single_edge", threshold=0.1 + number * 1e-6, **own)


def watched(server: SecuredServer, count: int, figures: Figures) -> None:
    with server.as_user("ada") as ada, RawClient(server, window=0) as client, server.peak() as peak:
        name = create(ada, count)
        never = NeverReading(client, name, count)
        slow = Slow(ada, name, count, pause_s=0.3)
        finish(ada, name)
        slow.join()
    # The client is closed: who never read was heard of no more. Those who read late get their end below.
    for events in slow.seen:
        check(events)
    assert len(never.streams) == count
    per_stream = peak[0] / (2 * count)
    figures(never=count, slow=count, mib_per_stream=round(per_stream, 3), events=median(map(len, slow.seen)))
    if count >= FULL:  # with fewer, the job itself is most of it
        assert per_stream <= MIB_PER_STREAM


def late_readers(server: SecuredServer, count: int) -> None:
    with server.as_user("ada") as ada, RawClient(server, window=0) as client:
        name = create(ada, 10_000 + count)
        never = NeverReading(client, name, count)
        finish(ada, name)
        for events in never.read_all():
            check(events)


def test_watchers_that_do_not_read_cost_little(secured: SecuredServer, figures: Figures) -> None:
    watched(secured, SHORT, figures)


def test_who_reads_late_gets_the_end(secured: SecuredServer) -> None:
    late_readers(secured, SHORT)


@pytest.mark.long
def test_many_watchers_that_do_not_read(secured: SecuredServer, figures: Figures) -> None:
    watched(secured, FULL, figures)
    late_readers(secured, FULL)


@pytest.mark.long
def test_watchers_do_not_slow_the_executor(secured: SecuredServer, figures: Figures) -> None:
    alone, watched_too = [], []
    with secured.as_user("ada") as ada:
        finish(ada, create(ada, 20_000))
        for number in range(ROUNDS):
            alone.append(cost(secured, ada, 21_000 + number, 0))
            watched_too.append(cost(secured, ada, 22_000 + number, FULL))
    ratio = median(watched_too) / median(alone)
    figures(ms_alone=round(median(alone), 3), ms_watched=round(median(watched_too), 3), ratio=round(ratio, 3))
    assert ratio <= 1.05


def cost(server: SecuredServer, stubs: Stubs, number: int, watchers: int) -> float:
    """CPU milliseconds of the executor's thread per evaluation, while the watchers watch.

    Opening a stream is a call like any other, and computes on the core that the executor is on: the first
    evaluations, in which streams are opened, do not count.
    """
    with contextlib.ExitStack() as stack:
        name = create(stubs, number, LONG)
        if watchers:
            client = stack.enter_context(RawClient(server, window=0))
            NeverReading(client, name, watchers)
            slow = Slow(stubs, name, watchers, pause_s=0.3)
            stack.callback(slow.join)
        wait_until(lambda: evaluations(stubs, name) >= UNCOUNTED, "the first evaluations")
        assert not watchers or all(slow.seen), "streams are still being opened"
        before, done = cpu_by_thread(server), evaluations(stubs, name)
        evaluated = finish(stubs, name) - done
        after = cpu_by_thread(server)
    assert evaluated > UNCOUNTED, "too few were left to measure"
    spent = {thread: after[thread] - before.get(thread, 0.0) for thread in after}
    for events in slow.seen if watchers else ():
        check(events)
    # The thread that computes, by what it does.
    return max(spent.values()) * 1000 / evaluated


def cpu_by_thread(server: SecuredServer) -> dict[str, float]:
    tick = os.sysconf("SC_CLK_TCK")
    return {
        thread.name: sum(map(int, fields[11:13])) / tick
        for thread, fields in _stats(Path(f"/proc/{server.process.process.pid}/task"))
    }


def _stats(tasks: Path) -> Iterator[tuple[Path, list[str]]]:
    for thread in tasks.iterdir():
        with contextlib.suppress(OSError):  # it has ended
            yield thread, (thread / "stat").read_text("utf-8").rpartition(")")[2].split()
