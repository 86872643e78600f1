from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers.fake_engine import Failures, FakeEngine

from pahq_server.jobs.service import JobPolicy, JobService
from pahq_server.store.base import JobStore

NewService = Callable[..., JobService]


@pytest.fixture
def engine() -> FakeEngine:
    engine = FakeEngine()
    engine.failures["bad"] = Failures()
    return engine


@pytest.fixture
def new_service(engine: FakeEngine) -> Iterator[NewService]:
    """Starts a job service; it is closed after the test."""
    started: list[JobService] = []

    def make(store: JobStore | None = None, **policy: Any) -> JobService:
        service = JobService(engine, "1.2.3", JobPolicy(**policy), store=store)
        service.start()
        started.append(service)
        return service

    yield make
    engine.release()
    for service in started:
        service.close()


@pytest.fixture
def service(new_service: NewService) -> JobService:
    return new_service()
