"""Estimates of discoveries."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pahq_server.core.engine import Estimate, Measurement
from pahq_server.core.task import BuiltinTask
from pahq_server.demo import model_path
from pahq_server.engine import estimating
from pahq_server.engine.engine import ModelEngine
from pahq_server.engine.operations import BOOKKEEPING_S
from pahq_server.engine.sizing import job_bytes
from pahq_server.models.loading import load
from pahq_server.models.streaming import load_rounded
from pahq_server.precision.policy import POLICIES

MEASUREMENT = Measurement("demo", BuiltinTask("ioi", 4, 0), "kl_divergence", "resample", "group", "fp32")
# A machine that does a billion operations per second.
GFLOPS = 1.0


@pytest.fixture(autouse=True)
def _known_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimating, "measured_gflops", lambda device: GFLOPS)


def estimate(engine: ModelEngine, **changes: object) -> Estimate:
    return engine.estimate(engine.prepare(replace(MEASUREMENT, **changes)))  # type: ignore[arg-type]


def test_bounds_memory_and_size_of_the_task() -> None:
    engine = ModelEngine({"demo": load(str(model_path()))})
    small, large = estimate(engine), estimate(engine, task=BuiltinTask("ioi", 16, 0))
    prepared = engine.prepare(MEASUREMENT)
    arch = load(str(model_path())).model.architecture
    assert small.memory_bytes == job_bytes(arch, prepared.task)
    assert 0 < small.least_seconds < small.most_seconds
    assert small.most_seconds > BOOKKEEPING_S * prepared.graph.num_edges
    assert large.least_seconds == pytest.approx(4 * small.least_seconds, rel=0.1)
    assert large.memory_bytes > small.memory_bytes
    assert not small.streams_weights


def test_full_precision_beside_rounded_weights_is_said_to_be_slower() -> None:
    engine = ModelEngine({"demo": load_rounded(str(model_path()), POLICIES["pahq-int8"])})
    streamed, rounded = estimate(engine), estimate(engine, precision="pahq-int8")
    assert streamed.streams_weights
    assert not rounded.streams_weights
    assert streamed.most_seconds > rounded.most_seconds
    assert streamed.least_seconds == rounded.least_seconds
