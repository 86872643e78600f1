"""A job as the scheduler sees it."""

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
        start_s: seconds until it begins, about; None while nothing is known of the pace.
    """

    position: int
    start_s: float | None


class Run(Protocol):
    """Something that needs operations, one after another. Its methods are called from the worker thread.

    `begin`, `deliver` and `end` may raise, which ends this run alone. The others do not raise.

    Attributes:
        resolved: the objective whose tensors its operations need.
        user: who is charged.
        name: of the job, for the log; empty if it has none.
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
        """Told what was spent on the run: of the worker's time, its part of what it shared with others."""
        ...

    def queued_at(self, position: QueuePosition) -> None:
        """Told where the run stands in the queue, now and then while it is there."""
        ...


@dataclass(eq=False, kw_only=True)
class Entry(Claim):
    """A run with its claim to a slot.

    Args:
        run: the job.
        submitted: when it came, by the scheduler's clock.
        state: its tensors, while it has a slot.
        operation: what it wants next; it keeps that when it loses its slot.
    """

    run: Run
    submitted: float
    state: EngineStateId | None = None
    operation: Operation | None = None
