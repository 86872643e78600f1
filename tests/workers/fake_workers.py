"""Workers without models, and a cluster whose every event a test can write itself."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, cast

from helpers.fake_engine import FakeEngine

from pahq_server.core.engine import UNDER_WAY, MemoryUsage, Outcome, Timed, Work
from pahq_server.engine.catalogue import ServedModel
from pahq_server.engine.worker import Worker
from pahq_server.workers.cluster import Answer, ClusterEvent, Lost, Ready
from pahq_server.workers.host import WorkerHost
from pahq_server.workers.messages import Call, WorkerInfo
from pahq_server.workers.pool import RemotePool

from .thread_cluster import sent

HARDWARE = {"processor": "beads", "threads": "1", "platform": "attic-1"}
MEMORY = FakeEngine().memory_usage()


def info(
    hardware: dict[str, str] = HARDWARE,
    models: Sequence[ServedModel] = (),
    memory: MemoryUsage = MEMORY,
    host: str = "attic",
) -> WorkerInfo:
    return WorkerInfo(host, "abacus", hardware, tuple(models), 1e9, {}, 1 << 20, memory)


def model(revision: str = "c0ffee", **changes: Any) -> ServedModel:
    return ServedModel(
        "toy", cast(Any, None), revision, 1234, changes.pop("precisions", ("fp32",)), **changes
    )


class FakeHost(WorkerHost):
    """Answers by a fake engine."""

    def __init__(self, engine: FakeEngine | None = None, says: WorkerInfo | None = None) -> None:
        self.engine, self._says = engine or FakeEngine(), says or info()
        super().__init__(cast(Worker, self.engine))

    def info(self) -> WorkerInfo:
        return self._says


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# Says what follows a call of a worker, and the call's number; None for its answer.
React = Callable[[int, int, Call], Sequence[ClusterEvent] | None]


class ScriptedCluster:
    """Implements `Cluster` with one thread, which tells one event after another.

    Args:
        size: how many workers.
        react: see `React`.
        make: makes the host of a worker, whenever it starts.
        comes_back: whether workers that a test did not revive start again when they are replaced.
    """

    def __init__(
        self,
        size: int,
        react: React = lambda worker, number, call: None,
        make: Callable[[int], WorkerHost] = lambda worker: FakeHost(),
    ) -> None:
        self.size, self.react, self.make = size, react, make
        self.calls: list[tuple[int, int, Call]] = []
        self.replaced: list[tuple[int, str]] = []
        self.hosts: dict[int, WorkerHost] = {}
        self._events: queue.Queue[Callable[[], object] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._tell_all, daemon=True)

    def start(self, tell: Callable[[ClusterEvent], None]) -> None:
        self.tell = tell
        self._thread.start()
        for worker in range(self.size):
            self.ready(worker)

    def call(self, worker: int, number: int, call: Call) -> None:
        self.calls.append((worker, number, call))
        self._events.put(lambda: self._answer(worker, number, call))

    def replace(self, worker: int, reason: str) -> None:
        self.replaced.append((worker, reason))
        self.lose(worker, reason)
        self.ready(worker)

    def stop(self) -> None:
        self._events.put(None)
        self._thread.join()

    # What tests ask for

    def lose(self, worker: int, reason: str = "a test ended it") -> None:
        self._events.put(lambda: self.tell(self.lost(worker, reason)))

    def lost(self, worker: int, reason: str = "a test ended it", refused: bool = False) -> Lost:
        """The event; the calls that the worker still has are not answered."""
        self.hosts.pop(worker, None)
        return Lost(worker, reason, refused)

    def ready(self, worker: int) -> None:
        self._events.put(lambda: self.tell(self.started(worker)))

    def started(self, worker: int) -> Ready:
        self.hosts[worker] = self.make(worker)
        return Ready(worker, self.hosts[worker].info())

    def settle(self) -> None:
        """Waits until all events so far have been told."""
        done = threading.Event()
        self._events.put(done.set)
        assert done.wait(30.0), "the cluster's thread has ended"

    def of(self, kind: type[Call]) -> list[tuple[int, Call]]:
        return [(worker, call) for worker, _, call in self.calls if isinstance(call, kind)]

    def _tell_all(self) -> None:
        while (event := self._events.get()) is not None:
            event()

    def _answer(self, worker: int, number: int, call: Call) -> None:
        host = self.hosts.get(worker)
        if host is None:
            return  # it was lost before it could answer
        events = self.react(worker, number, call)
        if events is None:
            try:
                content: object = host.run(sent(call))
            except Exception as error:  # noqa: BLE001 - the answer
                content = error
            events = [Answer(worker, number, content)]
        for event in events:
            self.tell(event)


def finished(pool: RemotePool, work: Sequence[Work]) -> list[Outcome]:
    """Asks for operations until all of them have their outcomes, and returns these."""
    found: dict[int, Outcome] = {}
    while left := [number for number in range(len(work)) if number not in found]:
        for number, outcome in zip(left, pool.run([work[number] for number in left]), strict=True):
            if isinstance(outcome, Timed):
                found[number] = outcome.outcome
            elif outcome is not UNDER_WAY:
                found[number] = outcome
    return [found[number] for number in range(len(work))]
