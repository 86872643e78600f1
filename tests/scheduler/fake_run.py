"""Runs that tests drive."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from helpers.fake_engine import OBJECTIVE, PATIENCE_S, FakeEngine

from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.operations import Operation, ScorePasses
from pahq_server.scheduler.run import QueuePosition
from pahq_server.scheduler.scheduler import Scheduler

# Starts a scheduler with some runs queued.
Start = Callable[..., Scheduler]


class FakeRun:
    """Asks for one patched pass, so many times.

    Args:
        engine: prepares it.
        steps: how many times.
        model: that it runs on.
        user: whose it is.
    """

    def __init__(self, engine: FakeEngine, steps: int = 3, model: str = "toy", user: str = "local") -> None:
        self.user, self.name = user, f"users/{user}/jobs/1"
        self.charged = 0.0
        self.positions: list[QueuePosition] = []
        self.resolved = engine.resolve(replace(OBJECTIVE, model=model))
        self.steps, self.delivered = steps, 0
        self.at_end: Callable[[], None] = lambda: None
        self.ends: list[Exception | None] = []
        self.ended = threading.Event()
        self.stop_asked = False
        self.breaks: Exception | None = None
        self.breaks_at_begin = False
        self.breaks_at_end = False

    def begin(self) -> Operation | None:
        if self.breaks_at_begin:
            raise KeyError("begin")
        return self._operation()

    def deliver(self, result: object) -> Operation | None:
        assert isinstance(result, list)
        assert len(result) == 1
        self.delivered += 1
        if self.breaks is not None:
            raise self.breaks
        return self._operation() if self.delivered < self.steps else None

    def stopped(self) -> bool:
        return self.stop_asked

    def end(self, error: Exception | None) -> None:
        self.at_end()
        self.ends.append(error)
        self.ended.set()
        if self.breaks_at_end:
            raise KeyError("end")

    def done(self) -> float:
        return self.delivered / self.steps

    def charge(self, seconds: float) -> None:
        self.charged += seconds

    def queued_at(self, position: QueuePosition) -> None:
        self.positions.append(position)

    def wait(self) -> Exception | None:
        """The error that it ended with."""
        assert self.ended.wait(PATIENCE_S), "the run did not end"
        (error,) = self.ends
        return error

    def _operation(self) -> Operation | None:
        return ScorePasses((PatchedPass(BaseCircuit(Circuit.full(self.resolved.graph))),))
