from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers.api_server import RunningServer
from helpers.fake_engine import Failures, FakeEngine


@pytest.fixture
def engine() -> FakeEngine:
    engine = FakeEngine()
    engine.failures["bad"] = Failures()
    return engine


@pytest.fixture
def server(engine: FakeEngine) -> Iterator[RunningServer]:
    with RunningServer(engine) as running:
        yield running
