"""Estimates of discoveries."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from pahq_server.core.engine import Estimate, Objective
from pahq_server.core.task import BuiltinTask
from pahq_server.demo import model_path
from pahq_server.engine import cost
from pahq_server.engine.cost import BOOKKEEPING_S, forward_operations, job_bytes, whole_operations
from pahq_server.engine.engine import ModelEngine
from pahq_server.models.loading import load
from pahq_server.models.streaming import load_rounded
from pahq_server.precision.policy import POLICIES

OBJECTIVE = Objective("demo", BuiltinTask("ioi", 4, 0), "kl_divergence", "resample", "group", "fp32")
# A machine that does a billion operations per second.
GFLOPS = 1.0


@pytest.fixture(autouse=True)
def _known_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "measured_gflops", lambda device: GFLOPS)


def estimate(engine: ModelEngine, **changes: object) -> Estimate:
    return engine.estimate(engine.resolve(replace(OBJECTIVE, **changes)))  # type: ignore[arg-type]


def test_bounds_memory_and_size_of_the_task() -> None:
    engine = ModelEngine({"demo": load(str(model_path()))})
    small, large = estimate(engine), estimate(engine, task=BuiltinTask("ioi", 16, 0))
    resolved = engine.resolve(OBJECTIVE)
    arch = load(str(model_path())).model.architecture
    assert small.memory_bytes == job_bytes(arch, resolved.task)
    assert 0 < small.least_seconds < small.most_seconds
    assert small.most_seconds > BOOKKEEPING_S * resolved.graph.num_edges
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


@pytest.mark.parametrize("precision", ["paper", "rtn-int8", "rtn-fp8", "rtn-int8-weight"])
def test_policies_that_compute_circuits_from_scratch_say_how_slow_that_is(precision: str) -> None:
    engine = ModelEngine({"demo": load(str(model_path()))})
    exact, slow = (engine.resolve(replace(OBJECTIVE, precision=p)) for p in ("fp32", precision))
    (warning,) = slow.warnings
    factors = re.search(r"scratch: ([\d.]+) to (\d+) times", warning)
    assert repr(precision) in warning
    assert factors is not None
    assert 1 < float(factors[1]) < float(factors[2])
    # The same counts, as times.
    fp32, whole = engine.estimate(exact), engine.estimate(slow)
    bookkeeping = BOOKKEEPING_S * exact.graph.num_edges
    assert whole.least_seconds / fp32.least_seconds == pytest.approx(float(factors[2]), rel=0.1)
    assert whole.least_seconds / (fp32.most_seconds - bookkeeping) == pytest.approx(
        float(factors[1]), rel=0.1
    )
    assert whole.most_seconds == pytest.approx(whole.least_seconds + bookkeeping)


@pytest.mark.parametrize("precision", [p.name for p in POLICIES.values() if p.operand == "differences"])
def test_other_policies_are_not_slow(precision: str) -> None:
    engine = ModelEngine({"demo": load(str(model_path()))})
    assert engine.resolve(replace(OBJECTIVE, precision=precision)).warnings == ()


def test_the_operations_of_a_whole_model_are_counted_one_by_one() -> None:
    """By the shapes of all products of one pass: every receiver has an input and a projection of its own."""
    arch = load(str(model_path())).model.architecture
    graph, prompts, tokens = arch.graph("group"), 3, 5
    products = [(prompts, arch.d_model, arch.output_vocabulary)]
    for receiver in range(graph.num_receivers):
        products.append((prompts * tokens, graph.upstream(receiver), arch.d_model))
        if graph.receiver(receiver).kind in ("q", "k", "v"):
            products.append((prompts * tokens, arch.d_model, arch.d_head))
    for _ in range(arch.layers):
        products += [
            (prompts * tokens, arch.d_model, arch.d_mlp),
            (prompts * tokens, arch.d_mlp, arch.d_model),
        ]
        for _ in range(arch.heads):
            products += 2 * [(prompts * tokens, tokens, arch.d_head)]
            products.append((prompts * tokens, arch.d_head, arch.d_model))
    counted = sum(2 * rows * inputs * outputs for rows, inputs, outputs in products)
    assert whole_operations(arch, graph, prompts, tokens) == counted


def test_a_known_weight_is_reckoned_in_passes() -> None:
    """Between plain forward passes and passes from scratch, whose operations are counted above."""
    engine = ModelEngine({"demo": load(str(model_path()))})
    resolved = engine.resolve(OBJECTIVE)
    arch, task = load(str(model_path())).model.architecture, resolved.task
    prompts, tokens = len(task.clean), max(map(len, task.clean))
    whole, plain = (
        whole_operations(arch, resolved.graph, prompts, tokens),
        forward_operations(arch, prompts, tokens),
    )
    assert 0 < plain < whole
    few, many = engine.estimate(resolved, 3.0), engine.estimate(resolved, 300.0)
    assert many.least_seconds == pytest.approx(100 * few.least_seconds)
    assert many.most_seconds == pytest.approx(100 * few.most_seconds)
    rate = 3 * plain / few.least_seconds
    assert few.most_seconds == pytest.approx(3 * (whole / rate + BOOKKEEPING_S))
    assert few.memory_bytes == engine.estimate(resolved).memory_bytes
    assert few.most_seconds < engine.estimate(resolved).most_seconds


def test_a_search_may_have_fewer_or_more_tests_than_edges() -> None:
    engine = ModelEngine({"demo": load(str(model_path()))})
    resolved = engine.resolve(OBJECTIVE)
    edges, each_once = resolved.graph.num_edges, engine.estimate(resolved)
    assert engine.estimate(resolved, tests=(edges, edges)) == each_once
    other = engine.estimate(resolved, tests=(edges // 10, 12 * edges))
    assert other.least_seconds == pytest.approx(each_once.least_seconds * (edges // 10) / edges)
    assert other.most_seconds == pytest.approx(12 * each_once.most_seconds)
