"""Schedulers that are closed after the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers.fake_engine import Failures, FakeEngine

from pahq_server.scheduler.scheduler import Scheduler

from .fake_run import FakeRun, Start


@pytest.fixture
def engine() -> FakeEngine:
    engine = FakeEngine()
    engine.failures["bad"] = Failures()
    return engine


@pytest.fixture
def start(engine: FakeEngine) -> Iterator[Start]:
    """Starts a scheduler; it is closed after the test."""
    started: list[Scheduler] = []

    def starter(*runs: FakeRun, max_running: int = 4) -> Scheduler:
        scheduler = Scheduler(engine, max_running)
        for run in runs:
            scheduler.submit(run)
        scheduler.start()
        started.append(scheduler)
        return scheduler

    yield starter
    engine.release()
    for scheduler in started:
        scheduler.close()
