"""A cluster whose workers are threads, which can be lost, can hang and come back when a test says so."""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from pahq_server.workers.cluster import Answer, ClusterEvent, Lost, Ready
from pahq_server.workers.host import WorkerHost
from pahq_server.workers.messages import Call

# Is told each call before it is answered: of which worker, and its number among all calls of that worker. May
# raise `Die`, which loses the worker, or wait, which makes it hang.
Fault = Callable[[int, int, Call], None]


def sent(call: Call) -> Call:
    """What a worker gets of a call: equal, and of other objects, which share what was shared within it."""
    return copy.deepcopy(call)


class Die(Exception):
    """Loses the worker that raises it."""


@dataclass(eq=False)
class _Thread:
    """One life of a worker."""

    worker: int
    calls: queue.Queue[tuple[int, Call] | None] = field(default_factory=queue.Queue)
    lost: bool = False


class ThreadCluster:
    """Implements `Cluster`.

    Args:
        size: how many workers.
        make: makes the host of a worker, whenever it starts. An exception loses the worker.
        fault: see `Fault`.
        comes_back: whether lost workers start again.
    """

    def __init__(
        self,
        size: int,
        make: Callable[[int], WorkerHost],
        fault: Fault = lambda worker, number, call: None,
        comes_back: bool = True,
    ) -> None:
        self.size, self._make, self._fault, self.comes_back = size, make, fault, comes_back
        self.calls: list[list[Call]] = [[] for _ in range(size)]
        self.losses = 0
        self._lives: list[_Thread] = []
        self._lock = threading.RLock()
        self._stopped = False

    def start(self, tell: Callable[[ClusterEvent], None]) -> None:
        self._tell = tell
        with self._lock:
            self._lives = [_Thread(worker) for worker in range(self.size)]
            for life in self._lives:
                self._begin(life)

    def call(self, worker: int, number: int, call: Call) -> None:
        with self._lock:
            self._lives[worker].calls.put((number, call))

    def replace(self, worker: int, reason: str) -> None:
        threading.Thread(target=self.lose, args=(worker, reason), daemon=True).start()

    def lose(self, worker: int, reason: str = "a test ended it") -> None:
        """Ends a worker, whatever it does."""
        with self._lock:
            life = self._lives[worker]
            if life.lost or self._stopped:
                return
            life.lost = True
            life.calls.put(None)
            self.losses += 1
            self._lives[worker] = _Thread(worker)
        self._tell(Lost(worker, reason))
        if self.comes_back:
            self.revive(worker)

    def revive(self, worker: int) -> None:
        """Starts a worker that was lost."""
        with self._lock:
            self._begin(self._lives[worker])

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for life in self._lives:
                life.lost = True
                life.calls.put(None)

    def _begin(self, life: _Thread) -> None:
        threading.Thread(target=self._live, args=(life,), daemon=True).start()

    def _live(self, life: _Thread) -> None:
        worker = life.worker
        try:
            host = self._make(worker)
        except Exception as error:  # noqa: BLE001 - what the test wants
            self._told(life, Lost(worker, str(error), refused=True))
            return
        self._told(life, Ready(worker, host.info()))
        while (item := life.calls.get()) is not None:
            number, call = item
            self.calls[worker].append(call)
            try:
                self._fault(worker, len(self.calls[worker]), call)
                answer: object = host.run(sent(call))
            except Die as error:
                self.lose(worker, str(error) or "it died")
                return
            except Exception as error:  # noqa: BLE001 - the answer
                answer = error
            self._told(life, Answer(worker, number, answer))

    def _told(self, life: _Thread, event: ClusterEvent) -> None:
        with self._lock:
            if life.lost:
                return
        self._tell(event)
