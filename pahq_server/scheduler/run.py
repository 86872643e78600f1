"""A run, which is a job or an evaluation as the scheduler sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pahq_server.core.engine import EngineStateId, ResolvedObjective
from pahq_server.core.operations import Operation
from pahq_server.scheduler.slots import Claim


@dataclass(frozen=True)
class QueuePosition:
    """Where a job stands in the queue.

    Args:
        position: 1 for the next to begin.
        start_s: seconds until it begins, about; None while it is unknown how long jobs take.
    """

    position: int
    start_s: float | None


class Run(Protocol):
    """Needs operations, one after another. Its methods are called from the worker thread.

    `begin`, `deliver` and `end` may raise, which ends this run alone. The others do not raise.

    Attributes:
        resolved: the objective whose tensors its operations need.
        user: who is charged.
        name: name of the job, for the log; empty if it has none.
    """

    resolved: ResolvedObjective
    user: str
    name: str

    def begin(self) -> Operation | None:
        """Returns the first operation; None if none is needed."""
        ...

    def deliver(self, result: object) -> Operation | None:
        """Takes the result of the last operation; returns the next one, None at the end."""
        ...

    def stopped(self) -> bool:
        """Tells whether the run was asked to stop; then nothing more is delivered."""
        ...

    def end(self, error: Exception | None) -> None:
        """Called once, last: with the reason if the run failed or could not start."""
        ...

    def done(self) -> float:
        """Returns the share of the work that is done, from 0 to 1."""
        ...

    def charge(self, seconds: float) -> None:
        """Adds seconds of the worker's time that were spent on the run; of a shared batch, its part."""
        ...

    def queued_at(self, position: QueuePosition) -> None:
        """Called now and then while the run is queued, with its present position."""
        ...


@dataclass(eq=False, kw_only=True)
class Entry(Claim):
    """A run with its claim to a slot.

    Args:
        run: the run.
        submitted: when it was submitted, by the scheduler's clock.
        state: its tensors; None while it has no slot.
        operation: what it needs next; kept when it loses its slot.
    """

    run: Run
    submitted: float
    state: EngineStateId | None = None
    operation: Operation | None = None
