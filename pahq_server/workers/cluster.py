"""What the pool asks of a cluster: processes with one worker each, that may die at any time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from pahq_server.workers.messages import Call, WorkerInfo


@dataclass(frozen=True)
class Ready:
    """A worker has loaded its models and takes calls: for the first time, or again after it was lost.

    Args:
        worker: number of the worker, from 0.
        info: what it says of itself.
    """

    worker: int
    info: WorkerInfo


@dataclass(frozen=True)
class Lost:
    """A worker cannot be reached: its process has ended, or what connects it. No call to it is answered.

    The cluster starts it again by itself; `Ready` tells when it has.

    Args:
        worker: its number.
        reason: why, in words for the operator.
        refused: whether a model, an option or a device is what is wrong, so that starting again is of no use.
    """

    worker: int
    reason: str
    refused: bool = False


@dataclass(frozen=True)
class Delayed:
    """A worker that is to start, or to start again, takes long.

    Args:
        worker: its number.
        reason: what may be missing, in words for the operator.
    """

    worker: int
    reason: str


@dataclass(frozen=True)
class Answer:
    """The answer to a call.

    Args:
        worker: who answers.
        number: of the call.
        content: the answer, or the exception with which the call failed.
    """

    worker: int
    number: int
    content: object


ClusterEvent: TypeAlias = Ready | Lost | Delayed | Answer


class Cluster(Protocol):
    """Processes with one worker each.

    Args of what implements it say how many; ``size`` is their number. A worker runs its calls one after
    another, in the order in which they were made. Methods may be called from any thread and do not wait.
    """

    size: int

    def start(self, tell: Callable[[ClusterEvent], None]) -> None:
        """Starts the workers. ``tell`` is called from a thread of the cluster, and must not wait."""
        ...

    def call(self, worker: int, number: int, call: Call) -> None:
        """Calls a worker. `Answer` or, for all its calls at once, `Lost` follows."""
        ...

    def replace(self, worker: int, reason: str) -> None:
        """Ends a worker's process, whatever it does, and starts it again. `Lost` follows with the reason."""
        ...

    def stop(self) -> None:
        """Ends all processes. Waits until they have ended, some seconds at most; nothing is told after it."""
        ...
