"""What the scheduler asks of a job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pahq_server.core.circuit import PatchedPass
from pahq_server.core.engine import ResolvedObjective
from pahq_server.scheduler.places import Place


class Run(Protocol):
    """Something that needs scores, step by step. Its methods are called from the worker thread.

    `begin`, `deliver` and `end` may raise, which ends this run alone. The others do not raise.
    """

    resolved: ResolvedObjective
    user: str
    name: str  # of the job, for the log; empty if it has none

    def begin(self) -> Sequence[PatchedPass]:
        """The first rows."""
        ...

    def deliver(self, scores: Sequence[float]) -> Sequence[PatchedPass]:
        """Takes the scores of the last rows; returns the next ones, empty at the end."""
        ...

    def stopped(self) -> bool:
        """Whether it was asked to stop; then nothing more is delivered."""
        ...

    def end(self, error: Exception | None) -> None:
        """Called once, last: with the reason if it failed or could not start."""
        ...

    def done(self) -> float:
        """Share of its work that is done, from 0 to 1."""
        ...

    def charge(self, seconds: float) -> None:
        """Tells what was spent on it: of the worker's time, its part of what it shared with others."""
        ...

    def place(self, place: Place) -> None:
        """Tells where it stands in the queue, now and then while it is there."""
        ...
