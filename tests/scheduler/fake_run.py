"""Runs that tests drive."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from helpers.fake_engine import OBJECTIVE, PATIENCE_S, FakeEngine

from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.scheduler.places import Place
from pahq_server.scheduler.scheduler import Scheduler

# Starts a scheduler with some runs queued.
Start = Callable[..., Scheduler]


class FakeRun:
    """Asks for one row, so many times.

    Args:
        engine: prepares it.
        steps: how many times.
        model: that it runs on.
        user: whose it is.
    """

    def __init__(self, engine: FakeEngine, steps: int = 3, model: str = "toy", user: str = "local") -> None:
        self.user, self.name = user, f"users/{user}/discoveries/1"
        self.charged = 0.0
        self.places: list[Place] = []
        self.resolved = engine.resolve(replace(OBJECTIVE, model=model))
        self.steps, self.delivered = steps, 0
        self.at_end: Callable[[], None] = lambda: None
        self.ends: list[Exception | None] = []
        self.ended = threading.Event()
        self.stop_asked = False
        self.breaks: Exception | None = None
        self.breaks_at_begin = False
        self.breaks_at_end = False

    def begin(self) -> Sequence[PatchedPass]:
        if self.breaks_at_begin:
            raise KeyError("begin")
        return self._rows()

    def deliver(self, scores: Sequence[float]) -> Sequence[PatchedPass]:
        assert len(scores) == 1
        self.delivered += 1
        if self.breaks is not None:
            raise self.breaks
        return self._rows() if self.delivered < self.steps else ()

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

    def place(self, place: Place) -> None:
        self.places.append(place)

    def wait(self) -> Exception | None:
        """The error that it ended with."""
        assert self.ended.wait(PATIENCE_S), "the run did not end"
        (error,) = self.ends
        return error

    def _rows(self) -> Sequence[PatchedPass]:
        return (PatchedPass(BaseCircuit(Circuit.full(self.resolved.graph))),)
